"""Merging into bases that classify, find answers, embed or translate: the very weights of PEFT's merge_and_unload()."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from graft_runtime.contract.tasks import Task
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.merge.files import AdapterPath, merge_files
from graft_runtime.merge.memory import merge_into
from graft_runtime.messages import BaseLoaded
from graft_runtime.model.load import load_base
from safetensors.torch import load_file, save_file

from tests.support.bases import auto_class, load_for
from tests.support.merges import merge_source
from tests.support.wrapped import build_wrapped

PROMPT = [3, 1, 2, 5, 9, 11, 4]
WEIGHTS = "adapter_model.safetensors"
KINDS: list[tuple[str, str, dict[str, Any]]] = [
    ("bert", "SEQ_CLS", {"target_modules": ["query", "value"]}),
    ("bert", "TOKEN_CLS", {"target_modules": ["query", "dense"]}),
    ("bert", "QUESTION_ANS", {"target_modules": ["query"]}),
    ("bert", "FEATURE_EXTRACTION", {"target_modules": ["query"]}),
    ("deberta", "SEQ_CLS", {"target_modules": ["query_proj", "key_proj"], "use_dora": True}),
    ("llama", "SEQ_CLS", {"target_modules": ["q_proj", "down_proj"]}),
    ("gpt2", "TOKEN_CLS", {"target_modules": ["c_attn"]}),
    ("xlnet", "SEQ_CLS", {"target_modules": ["layer_1"], "modules_to_save": ["logits_proj"], "task_type": None}),
    ("t5", "SEQ_CLS", {"target_modules": ["q"], "modules_to_save": ["classification_head"], "task_type": None}),
    ("bart", "SEQ_CLS", {"target_modules": ["q_proj"], "modules_to_save": ["classification_head"], "task_type": None}),
    ("t5", "SEQ_2_SEQ_LM", {"target_modules": ["q", "wo"]}),
    ("t5", "SEQ_2_SEQ_LM", {"target_modules": ["q"], "trainable_token_indices": [3, 11]}),
    ("bart", "SEQ_2_SEQ_LM", {"target_modules": ["q_proj", "fc1"], "bias": "all"}),
]


def trained(adapter: Path) -> Path:
    """With a head that has moved away from the base's, as training would move it."""
    weights = load_file(adapter / WEIGHTS)
    generator = torch.Generator().manual_seed(3)
    for name, tensor in weights.items():
        if "lora_" not in name:
            weights[name] = tensor + 0.2 * torch.randn(tensor.shape, generator=generator)
    save_file(weights, adapter / WEIGHTS)
    return adapter


def merged_by_peft(base: Path, task: str, adapter: Path) -> Any:
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(load_for(task, base), adapter).merge_and_unload()


def different(mine: Any, theirs: Any) -> list[str]:
    expected = theirs.state_dict()
    return [name for name, tensor in mine.state_dict().items() if not torch.equal(tensor, expected[name])]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind[0]}-{kind[1]}")
def test_both_ways_of_merging_are_peft_s(
    kind: tuple[str, str, dict[str, Any]], make_base: Any, make_adapter: Any, tmp_path: Path
) -> None:
    family, task, options = kind
    base = make_base(family, task)
    adapter = trained(make_adapter("merged", base=base, task=task, **options))
    expected = merged_by_peft(base, task, adapter)
    loaded = load_base(base, name="tiny", dtype="float32", max_sequence_length=256)
    assert loaded.task is Task(task)
    changed = different(loaded.model, expected)
    assert changed
    merge_into(loaded, [merge_source(adapter)], max_rank=16)
    assert different(loaded.model, expected) == []
    merge_files(base, [AdapterPath(adapter)], tmp_path / "output")
    written, report = auto_class(task).from_pretrained(tmp_path / "output", output_loading_info=True)
    assert not any(report.values()), report
    assert different(written, expected) == []


def test_a_merged_classifier_is_served(make_base: Any, make_adapter: Any, in_process: Any) -> None:
    from graft_runtime.runners.encoder import EncoderRow

    base = make_base("bert", "SEQ_CLS")
    adapter = trained(make_adapter("served", base=base, task="SEQ_CLS", target_modules=["query"]))
    engine = in_process(base, merge=(merge_source(adapter, "served"),))
    (started,) = engine.started
    assert isinstance(started, BaseLoaded)
    assert (started.runner, started.task) == ("encoder", Task.SEQ_CLS)
    with torch.inference_mode():
        (made,) = engine.engine.serving.runner.run([EncoderRow(PROMPT)])
        expected = merged_by_peft(base, "SEQ_CLS", adapter)(input_ids=torch.tensor([PROMPT])).logits[0]
        plain = load_for("SEQ_CLS", base)(input_ids=torch.tensor([PROMPT])).logits[0]
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(made, plain, atol=1e-2)


def test_an_adapter_with_labels_of_its_own_is_refused(make_base: Any, make_adapter: Any, tmp_path: Path) -> None:
    base = make_base("bert", "SEQ_CLS")
    adapter = make_adapter("five", base=base, task="SEQ_CLS", labels=5, target_modules=["query"])
    loaded = load_base(base, name="tiny", dtype="float32", max_sequence_length=256)
    for merge in (
        lambda: merge_into(loaded, [merge_source(adapter, "five")], max_rank=16),
        lambda: merge_files(base, [AdapterPath(adapter)], tmp_path / "output"),
    ):
        with pytest.raises(GraftError) as caught:
            merge()
        assert caught.value.code is ErrorCode.UNSUPPORTED_METHOD
        assert "labels of its own" in caught.value.what
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q", "lm_head"]},
        {"target_modules": ["q"], "trainable_token_indices": {"shared": [3, 11], "lm_head": [5]}},
    ],
    ids=["head", "tokens apart"],
)
def test_an_embedding_of_encoder_decoder_and_head_stays_one(
    options: dict[str, Any], make_base: Any, make_adapter: Any, tmp_path: Path
) -> None:
    """Transformers ties them whatever the config says: no checkpoint could hold more than one."""
    base = make_base("t5", "SEQ_2_SEQ_LM")
    adapter = trained(make_adapter("apart", base=base, task="SEQ_2_SEQ_LM", **options))
    with pytest.raises(GraftError) as caught:
        merge_files(base, [AdapterPath(adapter)], tmp_path / "output")
    assert caught.value.code is ErrorCode.UNSUPPORTED_METHOD
    assert "another module's too" in caught.value.what
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_checkpoint_with_the_names_of_earlier_versions_is_merged_into(family: str, tmp_path: Path) -> None:
    """Transformers still writes them for models that take images as well."""
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    base, adapter = build_wrapped(family, tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(base)
    assert not any(".language_model.layers" in name for name in load_file(base / "model.safetensors"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    loaded = load_base(base, name="tiny", dtype="float32", max_sequence_length=256)
    assert different(loaded.model, expected)
    merge_into(loaded, [merge_source(adapter)], max_rank=16)
    assert different(loaded.model, expected) == []
    merge_files(base, [AdapterPath(adapter)], tmp_path / "output")
    written, report = AutoModelForImageTextToText.from_pretrained(tmp_path / "output", output_loading_info=True)
    assert not any(report.values()), report
    assert different(written, expected) == []
