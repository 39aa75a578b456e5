"""Models that classify, find answers or embed: what they say of each row equals Transformers + PEFT, row by row."""

from __future__ import annotations

import random
import warnings
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from graft_runtime.contract.tasks import Task
from graft_runtime.messages import (
    BaseLoaded,
    Encode,
    Encoded,
    Generate,
    Generated,
    Mounted,
    MountFailed,
    ServedAdapter,
    Unmount,
    Unmounted,
)
from safetensors.torch import load_file, save_file

WEIGHTS = "adapter_model.safetensors"
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
BATCH_WIDE = {
    "deberta": "query_proj",  # the table of relative positions goes through it as well
    "xlnet": "layer_1",  # tokens lead, rows follow
}


class Setting:
    """A base with adapters on its runner, and Transformers and PEFT beside."""

    def __init__(self, engine: Any, base: Path, task: str) -> None:
        from tests.support.bases import auto_class

        self.engine, self.base, self.auto_class = engine, base, auto_class(task)
        self.runner = engine.engine.serving.runner
        self.models: dict[str | None, Any] = {None: self.auto_class.from_pretrained(base).eval()}

    def mount(self, name: str, adapter: Path) -> None:
        from peft import PeftModel

        assert isinstance(self.engine.mount(name, adapter), Mounted)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.models[name] = PeftModel.from_pretrained(self.auto_class.from_pretrained(self.base), adapter).eval()

    def row(self, prompt: list[int], name: str | None, types: list[int] | None = None) -> Encode:
        """A request; `outputs` names it."""
        return Encode("", prompt, (ServedAdapter(name, 1.0),) if name else (), types)

    def outputs(self, rows: list[Encode]) -> list[torch.Tensor]:
        """Of all rows in one step of the engine."""
        for number, row in enumerate(rows):
            self.engine.handle(msgspec.structs.replace(row, request=str(number)))
        made = {event.request: event for event in self.engine.step() if isinstance(event, Encoded)}
        assert not self.engine.engine.busy
        assert self.runner.bank.active == 0
        answers = [made[str(number)] for number in range(len(rows))]
        assert [answer.fault for answer in answers] == [None] * len(rows)
        return [torch.tensor(answer.values).view(answer.shape) for answer in answers]

    @torch.inference_mode()
    def expected(self, prompt: list[int], name: str | None, types: list[int] | None = None) -> torch.Tensor:
        more = {"token_type_ids": torch.tensor([types])} if types else {}
        made = self.models[name](input_ids=torch.tensor([prompt]), **more)
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
    assert setting.runner.sharing.side == SIDES.get(family, "right")
    batch_wide = BATCH_WIDE.get(family)
    assert batch_wide is None or any(path.endswith(batch_wide) for path in setting.runner.sharing.batch_wide)
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
    engine.handle(Generate("x", [1, 2], 4))
    (answer,) = engine.step()
    assert isinstance(answer, Generated)
    assert answer.fault is not None
    assert (answer.finish, answer.fault.code) == ("error", "NotGenerative")
    assert not engine.engine.busy


@pytest.fixture
def classifier(make_base: Any, make_adapter: Any, in_process: Any) -> Setting:
    """BERT that classifies, with adapters `one` and `two`; two requests run at once."""
    base = make_base("bert", "SEQ_CLS")
    setting = Setting(in_process(base, max_sequences=2), base, "SEQ_CLS")
    for name in ("one", "two"):
        setting.mount(name, make_adapter(name, base=base, task="SEQ_CLS", target_modules=ATTENTION["bert"]))
    return setting


def encoded(setting: Setting, *messages: Encode) -> list[Encoded]:
    """The answers, in the order that they come in."""
    for message in messages:
        setting.engine.handle(message)
    events: list[Any] = []
    while setting.engine.engine.busy:
        events += setting.engine.step()
    return [event for event in events if isinstance(event, Encoded)]


def test_a_pair_of_texts_has_types(classifier: Setting) -> None:
    prompt = [101, *b"what", 257, *b"that", 257]
    types = [0] * 6 + [1] * 5
    (mine,) = classifier.outputs([classifier.row(prompt, "one", types)])
    assert same(mine, classifier.expected(prompt, "one", types))
    assert not same(mine, classifier.expected(prompt, "one"))


def test_types_that_the_base_does_not_have_are_refused(classifier: Setting) -> None:
    classifier.engine.handle(Encode("strange", [1, 2, 3], (), [0, 1, 2]))
    (event,) = (event for event in classifier.engine.step() if isinstance(event, Encoded))
    assert event.fault is not None
    assert event.fault.code == "InvalidRequest"


def test_more_texts_than_run_at_once_wait(classifier: Setting) -> None:
    rows = [(PROMPTS[number % 3], ("one", None, "two")[number % 3]) for number in range(5)]
    messages = [
        Encode(str(number), *row[:1], (ServedAdapter(row[1], 1.0),) if row[1] else ())
        for number, row in enumerate(rows)
    ]
    answers = encoded(classifier, *messages)
    assert [answer.request for answer in answers] == ["0", "1", "2", "3", "4"]
    for answer, row in zip(answers, rows, strict=True):
        assert same(torch.tensor(answer.values).view(answer.shape), classifier.expected(*row))


def test_an_adapter_is_held_while_a_text_waits(classifier: Setting) -> None:
    classifier.engine.handle(Encode("x", PROMPTS[0], (ServedAdapter("one", 1.0),)))
    classifier.engine.handle(Unmount("one"))
    events = classifier.engine.step()
    assert [type(event) for event in events if isinstance(event, Encoded | Unmounted)] == [Encoded, Unmounted]


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (Encode("x", []), "InvalidRequest"),
        (Encode("x", [1, 320]), "InvalidRequest"),
        (Encode("x", [1, 2], (), [0]), "InvalidRequest"),
        (Encode("x", [1] * 1025), "ContextTooLong"),
        (Encode("x", [1], (ServedAdapter("none", 1.0),)), "NotReady"),
        (Encode("x", [1], (ServedAdapter("one", float("nan")),)), "InvalidRequest"),
    ],
)
def test_a_text_that_could_do_harm_is_refused(classifier: Setting, message: Encode, code: str) -> None:
    (answer,) = encoded(classifier, message)
    assert answer.fault is not None
    assert (answer.fault.code, answer.values) == (code, [])
    assert len(encoded(classifier, Encode("y", [1] * classifier.runner.context_length))[0].values) == 3


def test_only_the_text_that_fails_fails(classifier: Setting) -> None:
    run = classifier.runner.run

    def fails(rows: Any) -> Any:
        if any(77 in row.ids for row in rows):
            raise RuntimeError("boom")
        return run(rows)

    classifier.runner.run = fails
    good, bad = Encode("good", PROMPTS[0], (ServedAdapter("two", 1.0),)), Encode("bad", [1, 77])
    answers = {answer.request: answer for answer in encoded(classifier, good, bad)}
    assert answers["bad"].fault is not None
    assert answers["bad"].fault.code == "Internal"
    assert same(torch.tensor(answers["good"].values), classifier.expected(PROMPTS[0], "two"))


def test_a_model_that_generates_encodes_nothing(tiny_base: Path, in_process: Any) -> None:
    engine = in_process(tiny_base)
    engine.handle(Encode("x", [1, 2]))
    (answer,) = engine.step()
    assert answer.fault.code == "InvalidRequest"


@pytest.mark.parametrize("family", ["bert", "roberta", "deberta", "llama", "bart"])
def test_adapters_with_heads_of_their_own(family: str, make_base: Any, make_adapter: Any, in_process: Any) -> None:
    """Saved with the adapter by PEFT, with as many labels as the base or other ones; cut per row."""
    from peft import PeftModel

    from tests.support.bases import load_for

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


@pytest.mark.parametrize(("family", "task"), [("bert", "TOKEN_CLS"), ("bert", "QUESTION_ANS")])
def test_adapters_bring_their_own_heads(
    family: str, task: str, make_base: Any, make_adapter: Any, in_process: Any
) -> None:
    base = make_base(family, task)
    setting = Setting(in_process(base), base, task)
    for name in ("first", "second"):
        adapter = make_adapter(name, base=base, task=task, target_modules=ATTENTION[family])
        move_head(adapter, seed=len(name))
        setting.mount(name, adapter)
    rows = [(prompt, name) for prompt in PROMPTS for name in (None, "first", "second")]
    made = setting.outputs([setting.row(*row) for row in rows])
    for row, mine in zip(rows, made, strict=True):
        assert same(mine, setting.expected(*row)), row
    for row in rows[:3]:
        assert same(setting.outputs([setting.row(*row)])[0], setting.expected(*row)), row


def move_head(adapter: Path, seed: int) -> None:
    """As training would: PEFT saves a fresh head as the base has it."""
    tensors = load_file(adapter / "adapter_model.safetensors")
    heads = [name for name in tensors if "lora_" not in name]
    assert heads
    generator = torch.Generator().manual_seed(seed)
    for name in heads:
        tensors[name] = tensors[name] + torch.randn(tensors[name].shape, generator=generator)
    save_file(tensors, adapter / "adapter_model.safetensors")


@pytest.mark.parametrize("method", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_virtual_tokens_are_refused(method: str, make_base: Any, in_process: Any, tmp_path: Path) -> None:
    import peft

    base = make_base("bert", "FEATURE_EXTRACTION")
    config = getattr(peft, method)(task_type="FEATURE_EXTRACTION", num_virtual_tokens=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tests.support.bases import load_for

        peft.get_peft_model(load_for("FEATURE_EXTRACTION", base), config).save_pretrained(tmp_path / "virtual")
    failed = in_process(base).mount("virtual", tmp_path / "virtual")
    assert isinstance(failed, MountFailed)
    assert failed.fault.code == "UnsupportedMethod"
    assert "4 virtual tokens" in failed.fault.what


def test_an_embedding_that_is_never_called_is_refused(make_base: Any, make_adapter: Any, in_process: Any) -> None:
    base = make_base("deberta", "SEQ_CLS")
    options = {"target_modules": ["query_proj"], "modules_to_save": ["rel_embeddings"]}
    failed = in_process(base).mount("own", make_adapter("own", base=base, task="SEQ_CLS", **options))
    assert isinstance(failed, MountFailed)
    assert failed.fault.code == "UnsupportedMethod"
    assert failed.fault.details == ("deberta.encoder.rel_embeddings: Embedding",)


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_a_head_that_peft_has_no_name_for(family: str, make_base: Any, make_adapter: Any, in_process: Any) -> None:
    """PEFT writes the names of classifiers that it knows into modules_to_save; this base calls its own otherwise."""
    base = make_base(family, "SEQ_CLS")
    setting = Setting(in_process(base), base, "SEQ_CLS")
    setting.mount("sql", make_adapter("sql", base=base, task="SEQ_CLS", target_modules=ATTENTION[family]))
    rows = [(prompt, name) for prompt in PROMPTS for name in (None, "sql")]
    for row, mine in zip(rows, setting.outputs([setting.row(*row) for row in rows]), strict=True):
        assert same(mine, setting.expected(*row)), row


def test_a_head_that_is_not_in_the_file(make_base: Any, make_adapter: Any, in_process: Any) -> None:
    base = make_base("bert", "SEQ_CLS")
    adapter = make_adapter("cut", base=base, task="SEQ_CLS", target_modules=["query"])
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({name: tensor for name, tensor in tensors.items() if "lora_" in name}, adapter / WEIGHTS)
    failed = in_process(base).mount("cut", adapter)
    assert isinstance(failed, MountFailed)
    assert failed.fault.code == "Corrupt"
    assert failed.fault.details == ("modules_to_save names classifier, score, no tensor is of these",)
