"""Models that are no causal language models, through the real server: what they answer, and what they refuse."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from graft_runtime.contract.checkpoints import Source
from graft_runtime.contract.config import BaseModelConfig
from graft_runtime.contract.tasks import Task

TEXTS = ["great", "I will never come back here again.", "größe"]
LABELS = ["good", "bad", "mixed"]
PROMPT = [*b"select * from users", 257]


def served(make_pod: Callable[..., Any], base: Path, adapter: Path, **config: Any) -> Any:
    pod = make_pod(base=base, **config)
    pod.mount_set(pod.set_of(1, pod.entry("own", adapter, pinned=True)))
    pod.start()
    pod.wait_ready()
    return pod


@torch.inference_mode()
def expected(base: Path, adapter: Path | None) -> list[int]:
    from peft import PeftModel
    from transformers import AutoModelForSeq2SeqLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = AutoModelForSeq2SeqLM.from_pretrained(base)
        model = PeftModel.from_pretrained(model, adapter) if adapter else model
        made = model.eval().generate(
            input_ids=torch.tensor([PROMPT]), max_new_tokens=8, do_sample=False, eos_token_id=None
        )
    return made[0, 1:].tolist()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def translator(make_pod: Any, make_base: Any, make_adapter: Any) -> Any:
    base = make_base("t5", "SEQ_2_SEQ_LM")
    adapter = make_adapter("own", base=base, task="SEQ_2_SEQ_LM", target_modules=["q", "v", "wi", "wo"])
    pod = served(make_pod, base, adapter)
    pod.answers = {"tiny": expected(base, None), "own": expected(base, adapter)}
    return pod


def test_a_prompt_has_an_encoder_of_its_own(translator: Any) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(translator.shelf / "base")
    assert translator.status().base.runner == "padded"
    assert translator.answers["tiny"] != translator.answers["own"]
    for model, tokens in translator.answers.items():
        text = translator.text(model, prompt=PROMPT)
        assert text == tokenizer.decode(tokens, skip_special_tokens=True), model
    usage = translator.complete("own", PROMPT).json["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (len(PROMPT), 8)


def test_a_language_model_that_its_pool_loads_to_classify_makes_no_text(
    make_pod: Any, tiny_base: Path, make_adapter: Any
) -> None:
    adapter = make_adapter("own", task="SEQ_CLS", target_modules=["q_proj", "v_proj"])
    task = BaseModelConfig(name="tiny", source=Source(uri="pvc://shelf/base"), task=Task.SEQ_CLS)
    pod = served(make_pod, tiny_base, adapter, base_model=task)
    assert pod.status().base.runner == "encoder"
    assert pod.report("own").ready
    for model in ("tiny", "own"):
        refused = pod.complete(model)
        assert (refused.status, refused.json["error"]["code"]) == (400, "NotGenerative")


@torch.inference_mode()
def scores(base: Path, adapter: Path | None) -> list[list[float]]:
    """What Transformers and PEFT make of each of TEXTS, by itself."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = AutoModelForSequenceClassification.from_pretrained(base)
        model = PeftModel.from_pretrained(model, adapter) if adapter else model
    ids = [torch.tensor([tokenizer(text)["input_ids"]]) for text in TEXTS]
    return [model.eval()(input_ids=each).logits[0].softmax(-1).tolist() for each in ids]


@pytest.fixture(scope="module")
def classifier(make_pod: Any, make_base: Any, make_adapter: Any, tmp_path_factory: Any) -> Any:
    base = tmp_path_factory.mktemp("moods") / "base"
    shutil.copytree(make_base("bert", "SEQ_CLS"), base)
    config = json.loads((base / "config.json").read_text())
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {name: at for at, name in enumerate(LABELS)}}
    (base / "config.json").write_text(json.dumps(config | names))
    modules = {"task": "SEQ_CLS", "target_modules": ["query", "value"], "base": base}
    adapters = {name: make_adapter(name, **modules) for name in ("one", "two")}
    pod = make_pod(base=base)
    pod.mount_set(pod.set_of(1, *(pod.entry(name, path) for name, path in adapters.items())))
    pod.start()
    pod.wait_ready()
    pod.scores = {"tiny": scores(base, None)} | {name: scores(base, path) for name, path in adapters.items()}
    return pod


def test_texts_are_classified_as_by_transformers_and_peft_alone_and_mixed(classifier: Any) -> None:
    assert len({str(expected) for expected in classifier.scores.values()}) == 3, "adapters must show"

    def classify(model: str) -> Any:
        return classifier.post("/classify", {"model": model, "input": TEXTS})

    def check(model: str, reply: Any) -> None:
        assert reply.status == 200, reply.content
        for told, expected in zip(reply.json["data"], classifier.scores[model], strict=True):
            assert told["probs"] == pytest.approx(expected, abs=1e-5)
            assert told["label"] == LABELS[expected.index(max(expected))]
        assert reply.headers.get("x-graft-adapter-digest") == (
            None if model == "tiny" else classifier.report(model).digest
        )

    for model in classifier.scores:
        check(model, classify(model))
    mixed = [*classifier.scores] * 8
    with ThreadPoolExecutor(len(mixed)) as threads:
        for model, reply in zip(mixed, threads.map(classify, mixed), strict=True):
            check(model, reply)


def test_a_text_may_come_as_tokens_and_is_counted(classifier: Any) -> None:
    tokens = classifier.post("/tokenize", {"model": "one", "prompt": TEXTS[0]}).json["tokens"]
    text, ids = (classifier.post("/classify", {"model": "one", "input": each}) for each in (TEXTS[0], tokens))
    assert text.json["data"] == ids.json["data"]
    assert text.json["usage"]["prompt_tokens"] == len(tokens)
    schemas = classifier.ask("GET", "/openapi.json").json["components"]
    jsonschema.validate(text.json, {"$ref": "#/components/schemas/Classification", "components": schemas})
    metrics = classifier.get("/metrics").content.decode()
    assert 'graft_requests_total{adapter="one",route="classify",status="200"}' in metrics


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"input": []}, 400, "input"),
        ({"input": ["x", ""]}, 400, "input"),
        ({"input": [[1], ["x"]]}, 400, "input[1][0]"),
        ({"input": [9999]}, 400, "input"),
        ({"input": [1] * 5000}, 400, "input"),
        ({"input": "x" * 5000}, 400, "input"),
        ({"input": "x", "model": "none"}, 404, "model"),
        ({"input": "x", "dimensions": 3}, 400, "dimensions"),
        ({}, 400, "input"),
    ],
)
def test_what_can_not_be_classified_is_told_so(classifier: Any, body: Any, status: int, param: str) -> None:
    reply = classifier.post("/classify", {"model": "one"} | body)
    assert (reply.status, reply.json["error"]["param"]) == (status, param), reply.content


def test_a_model_that_makes_text_classifies_none(translator: Any) -> None:
    refused = translator.post("/classify", {"model": "own", "input": "x"})
    assert (refused.status, refused.json["error"]["param"]) == (400, "model")


def test_labels_say_nothing_of_how_texts_go_together(classifier: Any, translator: Any) -> None:
    for pod, model in ((classifier, "one"), (translator, "own")):
        refused = pod.post("/score", {"model": model, "text_1": "x", "text_2": "y"})
        assert (refused.status, refused.json["error"]["param"]) == (400, "model")
