"""Models that classify, find answers or embed: what they say of each row equals Transformers + PEFT, row by row."""

from __future__ import annotations

import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from graft_runtime.contract import Task
from graft_runtime.messages import BaseLoaded, Generated, Mounted, Submit
from graft_runtime.model.rows import RowAdapter
from graft_runtime.runners.encoder import EncoderRow

TOLERANCE = 1e-4
"""In float32."""
PROMPTS = [[101, *b"hello", 257], [101, *b"select * from users where id = 7", 257], [101, 257]]
KINDS = [
    ("bert", "SEQ_CLS"),
    ("bert", "TOKEN_CLS"),
    ("bert", "QUESTION_ANS"),
    ("bert", "FEATURE_EXTRACTION"),
    ("roberta", "SEQ_CLS"),
    ("deberta", "SEQ_CLS"),
    ("deberta", "TOKEN_CLS"),
    ("llama", "SEQ_CLS"),
    ("llama", "FEATURE_EXTRACTION"),
    ("gpt2", "TOKEN_CLS"),
    ("t5", "SEQ_CLS"),
    ("bart", "SEQ_CLS"),
    ("xlnet", "SEQ_CLS"),
]
ATTENTION = {
    "bert": ["query", "value"],
    "roberta": ["query", "value"],
    "deberta": ["query_proj", "key_proj"],
    "llama": ["q_proj", "v_proj"],
    "gpt2": ["c_attn"],
    "t5": ["q", "v"],
    "bart": ["q_proj", "v_proj"],
    "xlnet": ["layer_1"],
}
SIDES = {"xlnet": "left"}
"""Where its rows are padded: it looks at the last token for the whole."""
UNLED = {
    "deberta": "query_proj",  # the table of relative positions goes through it as well
    "xlnet": "layer_1",  # tokens lead, rows follow
}


class Setting:
    """A base with adapters on its runner, and Transformers and PEFT beside."""

    def __init__(self, engine: Any, base: Path, task: str) -> None:
        from tests.serving.conftest import auto_class

        self.engine, self.base, self.auto_class = engine, base, auto_class(task)
        self.runner = engine.engine._ready().runner
        self.models: dict[str | None, Any] = {None: self.auto_class.from_pretrained(base).eval()}

    def mount(self, name: str, adapter: Path) -> None:
        from peft import PeftModel

        assert isinstance(self.engine.mount(name, adapter), Mounted)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.models[name] = PeftModel.from_pretrained(self.auto_class.from_pretrained(self.base), adapter).eval()

    def row(self, prompt: list[int], name: str | None) -> EncoderRow:
        mounts = self.engine.engine._mounts
        return EncoderRow(prompt, (RowAdapter(mounts.hold(name), 1.0),) if name else ())

    @torch.inference_mode()
    def outputs(self, rows: list[EncoderRow]) -> list[torch.Tensor]:
        for row in rows:
            assert self.runner.bank.hold(row.adapters)
        made: list[torch.Tensor] = self.runner.forward(rows)
        for row in rows:
            self.runner.bank.release(row.adapters)
        return made

    @torch.inference_mode()
    def expected(self, prompt: list[int], name: str | None) -> torch.Tensor:
        made = self.models[name](input_ids=torch.tensor([prompt]))
        if "start_logits" in made:
            return torch.stack([made.start_logits[0], made.end_logits[0]])
        output: torch.Tensor = made.logits[0] if "logits" in made else made.last_hidden_state[0]
        return output


def same(mine: torch.Tensor, theirs: torch.Tensor) -> bool:
    return mine.shape == theirs.shape and bool((mine - theirs).abs().max() <= TOLERANCE)


@pytest.mark.parametrize(("family", "task"), KINDS)
def test_alone_and_mixed_equal_peft(family: str, task: str, make_base: Any, make_adapter: Any, in_process: Any) -> None:
    base = make_base(family, task)
    engine = in_process(base)
    (loaded,) = engine.started
    assert isinstance(loaded, BaseLoaded)
    assert (loaded.runner, loaded.task) == ("encoder", Task(task))
    setting = Setting(engine, base, task)
    assert setting.runner._sharing.side == SIDES.get(family, "right")
    unled = UNLED.get(family)
    assert unled is None or any(path.endswith(unled) for path in setting.runner._sharing.unled)
    options = {"attention": ATTENTION[family], "more": ATTENTION[family]}
    for name, modules in options.items():
        setting.mount(name, make_adapter(name, base=base, task=task, task_type=None, target_modules=modules))
    rows = [(prompt, name) for prompt in PROMPTS for name in (None, *options)]
    expected = [setting.expected(*row) for row in rows]
    assert not same(expected[0], expected[1]), "adapters must show"
    for row, theirs in zip(rows, expected, strict=True):
        assert same(setting.outputs([setting.row(*row)])[0], theirs), row
    for seed in range(2):
        order = random.Random(seed).sample(range(len(rows)), len(rows))
        made = setting.outputs([setting.row(*rows[index]) for index in order])
        for index, mine in zip(order, made, strict=True):
            assert same(mine, expected[index]), rows[index]


def test_a_request_for_text_is_refused(make_base: Any, in_process: Any) -> None:
    engine = in_process(make_base("bert", "SEQ_CLS"))
    engine.handle(Submit("x", [1, 2], 4))
    (answer,) = engine.step()
    assert isinstance(answer, Generated)
    assert answer.fault is not None
    assert (answer.finish, answer.fault.code) == ("error", "NotGenerative")
    assert not engine.engine.busy


@pytest.mark.parametrize("family", ["bert", "roberta", "deberta", "llama", "bart"])
def test_adapters_with_heads_of_their_own(family: str, make_base: Any, make_adapter: Any, in_process: Any) -> None:
    """Saved with the adapter by PEFT, with as many labels as the base or other ones; cut per row."""
    from peft import PeftModel

    from tests.serving.conftest import load_for

    base = make_base(family, "SEQ_CLS")
    setting = Setting(in_process(base), base, "SEQ_CLS")
    head = ["classification_head"] if family == "bart" else None
    for name, labels in (("same", 3), ("more", 5), ("fewer", 2)):
        options = {"target_modules": ATTENTION[family], "modules_to_save": head}
        adapter = make_adapter(name, base=base, task="SEQ_CLS", labels=labels, **options)
        assert isinstance(setting.engine.mount(name, adapter), Mounted)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            setting.models[name] = PeftModel.from_pretrained(load_for("SEQ_CLS", base, labels), adapter).eval()
    rows = [(prompt, name) for prompt in PROMPTS for name in (None, "same", "more", "fewer")]
    random.Random(0).shuffle(rows)
    for row, mine in zip(rows, setting.outputs([setting.row(*row) for row in rows]), strict=True):
        assert same(mine, setting.expected(*row)), row
