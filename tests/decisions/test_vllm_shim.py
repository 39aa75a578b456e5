"""What vLLM's shim decides: versions, arguments, and whether an adapter is proved, with a list in the place of vLLM."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from graft_runtime.contract.checkpoints import Source
from graft_runtime.contract.config import EngineConfig, MergePart
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.messages import Generate, MergeSource, Mount, Sampling, ServedAdapter, Start
from graft_vllm.arguments import check_start, slot_rank
from graft_vllm.mounts import Mounts
from graft_vllm.parameters import count_parameters
from graft_vllm.plain_lora import read_plain_lora
from graft_vllm.proof import check_effect, check_slots
from graft_vllm.requests import engine_prompt, generated
from graft_vllm.versions import check_version
from safetensors.torch import save_file

Q, V = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"


def code_of(call: Callable[[], object]) -> ErrorCode:
    with pytest.raises(GraftError) as caught:
        call()
    return caught.value.code


def test_an_unknown_vllm_is_refused_with_what_to_do() -> None:
    check_version("0.32.0", unseen=False)
    check_version("0.32.1+cpu", unseen=False)
    check_version("0.99.0", unseen=True)
    for version in ("0.31.2", "0.320.0", "1.32.0", "dev"):
        with pytest.raises(GraftError, match=r"expected one of 0\.32") as caught:
            check_version(version, unseen=False)
        assert "--unseen-version" in (caught.value.hint or "")


@pytest.mark.parametrize(("asked", "given"), [(1, 8), (8, 8), (9, 16), (257, 320), (512, 512)])
def test_slots_have_the_least_rank_that_vllm_has(asked: int, given: int) -> None:
    assert slot_rank(asked) == given


def test_what_vllm_does_not_do_is_refused() -> None:
    assert code_of(lambda: slot_rank(513)) is ErrorCode.INVALID_SPEC
    start = Start("/base", "tiny", "float32", EngineConfig())
    check_start(start)
    part = MergeSource(MergePart(name="a", source=Source(uri="pvc://shelf/a")), "/a")
    merged = Start("/base", "tiny", "float32", EngineConfig(), merge=(part,))
    assert code_of(lambda: check_start(merged)) is ErrorCode.INVALID_SPEC


FILE = {Q: (4.0, 9.0), V: (1.0, 2.0)}


@pytest.mark.parametrize(
    "ranks",
    [
        [FILE],
        [{Q: (4.0, 4.5), V: (1.0, 0.5)}, {Q: (4.0, 4.5), V: (1.0, 1.5)}],  # A in copies, B in shards
        [{Q: (4.0, 9.0)}, {V: (1.0, 2.0)}],  # one layer a rank
    ],
)
def test_slots_that_hold_the_file_pass(ranks: list[dict[str, tuple[float, float]]]) -> None:
    check_slots("a", FILE, ranks)


@pytest.mark.parametrize(
    ("ranks", "code"),
    [
        ([{}], ErrorCode.UNSUPPORTED_METHOD),  # wrong prefix: nothing is applied
        ([{Q: (4.0, 9.0)}], ErrorCode.UNSUPPORTED_METHOD),  # one module left out
        ([{Q: (4.0, 8.0), V: (1.0, 2.0)}], ErrorCode.INTERNAL),  # cut off, or of another scale
        ([FILE | {"model.layers.1.mlp.up_proj": (1.0, 1.0)}], ErrorCode.INTERNAL),  # left by the slot's last tenant
        ([{Q: (float("nan"), 9.0), V: (1.0, 2.0)}], ErrorCode.INTERNAL),
        ([FILE, {Q: (2.0, 0.0)}], ErrorCode.INTERNAL),  # no whole number of copies
    ],
)
def test_slots_that_hold_anything_else_do_not(ranks: list[dict[str, tuple[float, float]]], code: ErrorCode) -> None:
    assert code_of(lambda: check_slots("a", FILE, ranks)) is code


def test_an_adapter_must_change_the_answer_by_more_than_noise_and_with_numbers() -> None:
    base = [{1: -0.5, 2: -1.0}]
    check_effect("a", base, [{1: -0.6, 2: -1.0}], 0.0)
    check_effect("a", base, [{3: -0.5, 2: -1.0}], 1.0)
    assert code_of(lambda: check_effect("a", base, base, 0.0)) is ErrorCode.NO_EFFECT
    assert code_of(lambda: check_effect("a", base, [{1: -0.6, 2: -1.0}], 0.2)) is ErrorCode.NO_EFFECT
    assert code_of(lambda: check_effect("a", base, [{1: float("nan"), 2: -1.0}], 0.0)) is ErrorCode.CORRUPT


def save_form(directory: Path, **changes: Any) -> Path:
    directory.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2} | changes.pop("config", {})
    (directory / "adapter_config.json").write_text(json.dumps(config))
    tensors = {
        f"base_model.model.{Q}.lora_A.weight": torch.ones(2, 4),
        f"base_model.model.{Q}.lora_B.weight": torch.full((3, 2), 2.0),
    }
    save_file(tensors | changes.pop("tensors", {}), directory / "adapter_model.safetensors")
    return directory


def test_a_normal_form_is_read_and_anything_else_is_corrupt(tmp_path: Path) -> None:
    file = read_plain_lora(save_form(tmp_path / "good"), "a")
    assert (file.rank, file.norms, file.tokens) == (2, {Q: (8.0, 24.0)}, [])
    a = f"base_model.model.{Q}.lora_A.weight"
    spoilt: dict[str, dict[str, Any]] = {
        "scaled": {"config": {"lora_alpha": 4}},
        "other": {"config": {"peft_type": "IA3"}},
        "rank": {"tensors": {a: torch.ones(3, 4)}},
        "nan": {"tensors": {a: torch.full((2, 4), float("nan"))}},
        "named": {"tensors": {"x.lora_A.weight": torch.ones(2, 4)}},
    }
    for name, changes in spoilt.items():
        directory = save_form(tmp_path / name, **changes)
        assert code_of(partial(read_plain_lora, directory, "a")) is ErrorCode.CORRUPT
    cut = save_form(tmp_path / "cut") / "adapter_model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-8])
    assert code_of(lambda: read_plain_lora(cut.parent, "a")) is ErrorCode.CORRUPT


def test_the_parameters_of_a_base_are_those_of_all_of_its_files(tmp_path: Path) -> None:
    """vLLM's workers on a CPU have packed weights, which are no parameters of the model any more."""
    save_file({"a": torch.ones(3, 4), "b": torch.ones(5)}, tmp_path / "model-1.safetensors", {"format": "pt"})
    save_file({"c": torch.tensor(1.0)}, tmp_path / "model-2.safetensors")
    assert count_parameters(tmp_path) == 18


class ListedVllm:
    """Keeps what it has loaded as vLLM does: also what it has loaded half."""

    def __init__(self) -> None:
        self.loaded: set[int] = set()
        self.numbers: list[int] = []
        self.fails = False
        self.norms = {Q: (8.0, 24.0)}

    async def add_lora(self, request: Any) -> bool:
        self.loaded.add(request.lora_int_id)
        self.numbers.append(request.lora_int_id)
        if self.fails:
            raise RuntimeError("half-way")
        return True

    async def remove_lora(self, number: int) -> bool:
        self.loaded.discard(number)
        return True

    async def list_loras(self) -> set[int]:
        return set(self.loaded)

    async def collective_rpc(self, method: str, args: tuple[int, ...]) -> list[Any]:
        return [self.norms]


async def trial(prompt: Sequence[int], adapter: Any) -> list[dict[int, float]]:
    return [{1: -0.5 if adapter is None else -0.7}]


def mounts_of(vllm: ListedVllm, places: int = 2) -> Mounts:
    return Mounts(vllm, places, trial, lambda name, number, path: SimpleNamespace(lora_int_id=number), 100)


async def test_a_failed_load_leaves_nothing_behind_and_no_number_comes_twice(tmp_path: Path) -> None:
    vllm, directory = ListedVllm(), str(save_form(tmp_path / "a"))
    mounts = mounts_of(vllm)
    vllm.fails = True
    with pytest.raises(GraftError, match="half-way"):
        await mounts.mount(Mount("1", directory, "a"))
    assert vllm.loaded == set()
    vllm.fails, vllm.norms = False, {Q: (8.0, 12.0)}
    with pytest.raises(GraftError, match="otherwise than in its file"):
        await mounts.mount(Mount("1", directory, "a"))
    assert vllm.loaded == set()
    vllm.norms = {Q: (8.0, 24.0)}
    assert (await mounts.mount(Mount("1", directory, "a"))).digest == "1"
    await mounts.mount(Mount("1", directory, "a"))
    assert (vllm.loaded, vllm.numbers) == ({3}, [1, 2, 3])
    await mounts.check_held()
    vllm.loaded.add(9)
    with pytest.raises(RuntimeError, match=r"\[3, 9\], expected \[3\]"):
        await mounts.check_held()


async def test_no_more_is_loaded_than_there_are_places_and_nothing_in_use_is_removed(tmp_path: Path) -> None:
    vllm, directory = ListedVllm(), str(save_form(tmp_path / "a"))
    mounts = mounts_of(vllm, places=1)
    await mounts.mount(Mount("1", directory, "a"))
    with pytest.raises(GraftError, match="has no place"):
        await mounts.mount(Mount("2", directory, "b"))
    mounts.get("1").hold()
    leaving = asyncio.create_task(mounts.unmount("1"))
    await asyncio.sleep(0)
    assert vllm.loaded == {1}
    mounts.get("1").release()
    await leaving
    assert vllm.loaded == set()
    assert code_of(lambda: mounts.get("1")) is ErrorCode.INTERNAL


def test_a_stop_token_ends_an_answer_and_is_not_in_it() -> None:
    generate = Generate("1", [1], 8, stop_tokens=(7,), sampling=Sampling(logprobs=1))
    told = {token: SimpleNamespace(logprob=-float(token), rank=rank) for token, rank in ((5, 1), (7, 3))}
    completion = SimpleNamespace(token_ids=[5, 7], finish_reason="stop", logprobs=[told, told])
    event = generated(generate, SimpleNamespace(outputs=[completion], num_cached_tokens=4), first=True)
    assert (event.tokens, event.finish, event.end, event.known) == ([5], "stop", 7, 4)
    assert [(each.logprob, each.top) for each in event.logprobs] == [(-5.0, [(5, -5.0)]), (-7.0, [(5, -5.0)])]


def test_keys_and_values_are_shared_by_digest_and_salt_alone() -> None:
    def salt(digest: str | None, salt: str = "") -> Any:
        adapters = (ServedAdapter(digest, 1.0),) if digest else ()
        return engine_prompt(Generate("1", [1], 8, adapters, salt=salt))["cache_salt"]

    assert len({salt(None), salt("a"), salt("b"), salt("a", "s"), salt("b", "s")}) == 5
    assert salt("a") == salt("a")
