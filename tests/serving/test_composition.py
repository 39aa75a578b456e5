"""Weighted sums of adapters, and vocabularies of different sizes, in one batch: against PEFT in float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from graft_runtime.engine.sampling import Draws, choose, limited
from graft_runtime.messages import Generate, Generated, Mounted, Sampling, ServedAdapter

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # peft's

PROMPTS = ([3, 1, 2, 5, 9, 11, 4], [7, 8, 300, 6], [1, 2, 5, 9, 3, 3, 2, 5, 10])
COUNT = 12
SUMS: tuple[dict[str, float], ...] = (
    {},
    {"a": 1.0},
    {"a": 0.5, "b": 1.5},
    {"b": -0.75},
    {"a": 0.3, "b": 0.3, "c": -0.4},
)


@pytest.fixture(scope="module", params=["llama", "bloom"])
def family(request: pytest.FixtureRequest) -> str:
    """Served by the decoder runner, and by the padded one."""
    return str(request.param)


@pytest.fixture(scope="module")
def base(make_base: Callable[..., Path], family: str) -> Path:
    return make_base(family)


@pytest.fixture(scope="module")
def adapters(make_adapter: Callable[..., Path], base: Path) -> dict[str, Path]:
    return {
        "a": make_adapter("a", base=base),
        "b": make_adapter("b", base=base, r=8, use_rslora=True, lora_bias=True),
        "c": make_adapter("c", base=base, r=2, lora_alpha=5),
    }


@torch.inference_mode()
def deltas(base: Path, adapter: Path) -> dict[str, tuple[Any, Any]]:
    """What PEFT adds to the weight and the bias of each module."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    found = {}
    for path, module in model.base_model.model.named_modules():
        if hasattr(module, "get_delta_weight"):
            bias = module.lora_B["default"].bias
            offset = None if bias is None else module.scaling["default"] * bias
            found[path] = (module.get_delta_weight("default"), offset)
    return found


@pytest.fixture(scope="module")
def expected(base: Path, adapters: dict[str, Path]) -> Callable[[Mapping[str, float], list[int]], list[int]]:
    """What a model says greedily that has W + Σ weight · ΔW for weights, ΔW being PEFT's."""
    from transformers import AutoModelForCausalLM

    added = {name: deltas(base, path) for name, path in adapters.items()}
    models: dict[str, Any] = {}

    @torch.inference_mode()
    def model_of(parts: Mapping[str, float]) -> Any:
        model = AutoModelForCausalLM.from_pretrained(base).eval()
        for name, weight in parts.items():
            for path, (delta, offset) in added[name].items():
                module = model.get_submodule(path)
                module.weight += weight * delta
                if offset is not None:
                    old = 0 if module.bias is None else module.bias
                    module.bias = torch.nn.Parameter(old + weight * offset)
        return model

    @torch.inference_mode()
    def answer(parts: Mapping[str, float], prompt: list[int]) -> list[int]:
        if str(parts) not in models:
            models[str(parts)] = model_of(parts)
        model = models[str(parts)]
        tokens = list(prompt)
        for _ in range(COUNT):
            tokens.append(int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
        return tokens[len(prompt) :]

    return answer


@pytest.fixture
def engine(in_process: Callable[..., Any], base: Path, adapters: dict[str, Path]) -> Any:
    engine = in_process(base)
    for name, path in adapters.items():
        event = engine.mount(name, path)
        assert isinstance(event, Mounted), event
        assert event.facts.additive
        assert event.facts.scalable
        assert event.facts.vocabulary_size is None
    return engine


def submit(name: str, prompt: list[int], parts: Mapping[str, float], **sampling: Any) -> Generate:
    served = tuple(ServedAdapter(adapter, weight) for adapter, weight in parts.items())
    return Generate(name, list(prompt), COUNT, served, Sampling(**({"temperature": 0.0} | sampling)))


def test_a_weighted_sum_is_exact_beside_others_in_one_batch(engine: Any, expected: Any) -> None:
    work = {f"{number} {parts}": (prompt, parts) for number, prompt in enumerate(PROMPTS) for parts in SUMS}
    together = engine.answers([submit(name, *one) for name, one in work.items()])
    assert together == {name: expected(parts, prompt) for name, (prompt, parts) in work.items()}
    for name, one in list(work.items())[::-4]:
        assert engine.answers([submit("alone", *one)]) == {"alone": together[name]}


def faults(engine: Any, submit: Generate) -> list[str]:
    engine.handle(submit)
    return [event.fault.code for event in engine.step() if isinstance(event, Generated) and event.fault]


def test_an_activated_adapter_takes_its_part_from_its_invocation_on(
    engine: Any, make_adapter: Callable[..., Path], base: Path
) -> None:
    activated = make_adapter("activated", base=base, alora_invocation_tokens=[2, 5], target_modules="all-linear")
    assert engine.mount("activated", activated).facts.additive
    called, uncalled = PROMPTS[0], PROMPTS[1]

    def answer(prompt: list[int], **parts: float) -> list[int]:
        return list(engine.answers([submit("x", prompt, parts)])["x"])

    assert answer(uncalled, a=0.5, activated=1) == answer(uncalled, a=0.5)
    assert answer(called, a=0, activated=1) == answer(called, activated=1) != answer(called)
    assert answer(called, a=0.5, activated=1) not in [answer(called, a=0.5), answer(called, activated=1)]


def test_what_is_no_sum_is_refused_in_the_engine_too(
    engine: Any, make_adapter: Callable[..., Path], base: Path
) -> None:
    event = engine.mount("dora", make_adapter("dora", base=base, use_dora=True))
    assert (event.facts.additive, event.facts.scalable) == (False, False)
    assert faults(engine, submit("x", PROMPTS[0], {"a": 1, "dora": 1})) == ["NotComposable"]
    assert faults(engine, submit("x", PROMPTS[0], {"dora": 0.5})) == ["NotScalable"]
    assert len(engine.answers([submit("x", PROMPTS[0], {"dora": 1})])["x"]) == COUNT


def test_tokens_beyond_a_row_s_vocabulary_are_never_drawn() -> None:
    logits = torch.zeros(3, 8)
    logits[:, 5:] = 50.0
    cut = limited(logits, [5, 8, 6])
    assert torch.isinf(cut).sum(dim=-1).tolist() == [3, 0, 2]
    assert choose(cut, [Draws(Sampling(temperature=0.0))] * 3) == [0, 5, 5]
    drawn = choose(cut, [Draws(Sampling(temperature=2.0, seed=seed)) for seed in range(3)])
    assert drawn[0] is not None
    assert drawn[0] < 5
    assert limited(logits, [8, 9, 8]) is logits


@pytest.fixture(scope="module")
def grown(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter with ten tokens more than its base has, as Trainer saves one whose embeddings were resized."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(3)
    model.resize_token_embeddings(330)
    targets = "all-linear"
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=targets, init_lora_weights=False))
    with torch.no_grad():
        for embedding in (model.get_input_embeddings(), model.get_output_embeddings()):
            embedding.weight[320:] = torch.randn(10, embedding.weight.shape[1])
    directory = tmp_path_factory.mktemp("grown")
    model.save_pretrained(directory, save_embedding_layers=True)
    return directory


def test_each_row_has_the_tokens_of_its_own_vocabulary(engine: Any, base: Path, grown: Path, expected: Any) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    event = engine.mount("grown", grown)
    assert isinstance(event, Mounted), event
    assert (event.facts.vocabulary_size, event.facts.additive) == (330, False)
    prompt = [325, *PROMPTS[0], 329]
    assert faults(engine, submit("x", prompt, {})) == ["InvalidRequest"]
    assert faults(engine, submit("x", [330], {"grown": 1})) == ["InvalidRequest"]

    oracle = AutoModelForCausalLM.from_pretrained(base)
    oracle.resize_token_embeddings(330)
    oracle = PeftModel.from_pretrained(oracle, grown).eval()
    tokens = list(prompt)
    with torch.inference_mode():
        for _ in range(COUNT):
            tokens.append(int(oracle(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
    hot = [submit(f"hot {seed}", PROMPTS[1], {}, temperature=2.0, seed=seed) for seed in range(8)]
    rows = [submit("grown", prompt, {"grown": 1}), submit("base", PROMPTS[1], {}), submit("a", PROMPTS[1], {"a": 1})]
    answers = engine.answers([*rows, *hot])
    assert answers["grown"] == tokens[len(prompt) :]
    assert answers["base"] == expected({}, PROMPTS[1])
    assert answers["a"] == expected({"a": 1.0}, PROMPTS[1])
    assert all(token < 320 for row in hot for token in answers[row.request])
