"""What one tenant's weights compute never reaches another's row, on either runner."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from graft_runtime.messages import Generate, Generated, Mounted, Sampling, ServedAdapter
from safetensors.torch import load_file, save_file

PROMPT = [256, 10, 20, 30]
LONG = [256, *range(40)]


def submit(name: str, adapter: str | None, prompt: list[int], weight: float = 1.0, tokens: int = 12) -> Generate:
    served = (ServedAdapter(adapter, weight),) if adapter else ()
    return Generate(name, prompt, tokens, served, Sampling(temperature=0))


def scaled(source: Path, target: Path, factor: float, part: str = "lora_B") -> Path:
    shutil.copytree(source, target)
    tensors = load_file(target / "adapter_model.safetensors")
    tensors = {name: tensor * factor if part in name else tensor for name, tensor in tensors.items()}
    save_file(tensors, target / "adapter_model.safetensors")
    return target


def run(engine: Any, submits: list[Generate]) -> tuple[dict[str, list[int]], dict[str, Generated]]:
    """Tokens and the last event of each."""
    for command in submits:
        engine.handle(command)
    tokens: dict[str, list[int]] = {}
    last: dict[str, Generated] = {}
    while engine.engine.busy:
        for event in engine.step():
            if isinstance(event, Generated):
                tokens.setdefault(event.request, []).extend(event.tokens)
                last[event.request] = event
    return tokens, last


@pytest.mark.parametrize("family", ["llama", "gpt_oss", "bloom"])
def test_no_other_row_changes(family: str, make_base: Any, make_adapter: Any, in_process: Any, tmp_path: Path) -> None:
    base = make_base(family)
    engine = in_process(base)
    good = make_adapter("good", base=base)
    # Finite itself, but infinite times any row's activations. A trial would refuse it; one may pass and overflow later.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.engine.serving.runner, "trial", lambda adapter, _: adapter)
        assert isinstance(engine.mount("infinite", scaled(good, tmp_path / "infinite", 2e38, "lora_A")), Mounted)
    assert isinstance(engine.mount("good", good), Mounted)
    assert isinstance(engine.mount("huge", scaled(good, tmp_path / "huge", 1e8)), Mounted)
    bystanders = [
        submit("base", None, PROMPT),
        submit("good", "good", PROMPT),
        submit("long", "good", LONG),
        submit("short", None, [1]),
    ]
    before: dict[str, list[int]] = {}
    for bystander in bystanders:
        before |= run(engine, [bystander])[0]
    huge = submit("huge", "huge", LONG)
    # 1e30 of it: what it computes is infinite or not a number, in its own keys and values as well
    overflows = submit("overflows", "good", LONG, weight=1e30)
    infinite = submit("infinite", "infinite", LONG)
    tokens, last = run(engine, [bystanders[0], huge, bystanders[1], infinite, overflows, *bystanders[2:]])
    assert last["overflows"].finish == last["infinite"].finish == "error"
    assert last["huge"].finish in {"length", "error"}
    assert {name: tokens[name] for name in before} == before
    # Shorter requests on the memory that those have used, while another keeps it from being given back.
    run_first = [submit("keeps", "good", PROMPT, tokens=100), huge, infinite, overflows]
    for command in run_first:
        engine.handle(command)
    kept = engine.step() + engine.step()
    assert any(isinstance(event, Generated) and event.request == "overflows" and event.finish for event in kept)
    assert (
        run(engine, [submit("keeps2", None, PROMPT), *bystanders[:2], bystanders[3]])[0].items()
        >= {name: before[name] for name in ("base", "good", "short")}.items()
    )
