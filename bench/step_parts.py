"""Where a step's time goes on this processor, with what is compiled and without: a table, and a picture of it.

    python bench/step_parts.py --model DIRECTORY --adapters DIRECTORY … [--out docs/step-parts.svg]

Rows that decode, greedy, of the base alone and with the adapters in turns, one engine after the other in every round.
It counts the time of the processors, all threads together: other work on the machine changes that least.
"""

from __future__ import annotations

import argparse
import html
import logging
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import graft_runtime.engine.__main__  # noqa: F401 - sets what the engine's process has in its environment
from driven_engine import GREEDY, DrivenEngine
from engine_load import Prompts
from graft_runtime.contract.config import EngineConfig
from graft_runtime.engine import next_tokens, packed
from graft_runtime.engine.loader import Loader
from graft_runtime.messages import ServedAdapter, Start
from graft_runtime.model.linear import Linear
from graft_runtime.runners.decoder.over_extents import ExtentArrangement

PARTS = {
    "layers": "linear modules of the layers, adapters included",
    "head": "the head",
    "attention": "attention",
    "norms": "norms",
    "choosing": "choosing tokens",
    "rest": "all else",
}
COLOURS = ("#4269d0", "#97bbf5", "#ff725c", "#efb118", "#6cc5b0", "#9c9c9c")
ROWS, PROMPT, STEPS, WARM = 16, 64, 12, 3

Times = dict[str, float]
"""Milliseconds of processors' time of one step by part."""


class Clock:
    """Adds up what parts of a step take."""

    def __init__(self) -> None:
        self.spent = dict.fromkeys(PARTS, 0.0)

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, with its time counted under the part."""

        def call(*given: Any, **named: Any) -> Any:
            started = time.process_time()
            made = function(*given, **named)
            self.spent[part] += time.process_time() - started
            return made

        return call


@contextmanager
def watched(engine: DrivenEngine) -> Iterator[Clock]:
    """Count inside what the parts of the engine's steps take."""
    clock, model = Clock(), engine.model
    attend, choose = ExtentArrangement.attend, next_tokens.next_tokens
    ExtentArrangement.attend = clock.timed("attention", attend)  # type: ignore[method-assign]
    setattr(packed, "next_tokens", clock.timed("choosing", choose))  # noqa: B010 - it is imported there
    touched = []
    for module in model.modules():
        part = "norms" if type(module).__name__.endswith("RMSNorm") else None
        part = ("head" if module is model.get_output_embeddings() else "layers") if isinstance(module, Linear) else part
        if part is not None:
            module.forward = clock.timed(part, module.forward)
            touched.append(module)
    try:
        yield clock
    finally:
        ExtentArrangement.attend = attend  # type: ignore[method-assign]
        setattr(packed, "next_tokens", choose)  # noqa: B010
        for module in touched:
            del module.forward


def step_times(engine: DrivenEngine, adapters: list[str], prompts: Prompts) -> Times:
    """Return what the parts of a step of rows that decode take, the median of each."""
    names = [str(row) for row in range(ROWS)]
    for row, name in enumerate(names):
        served = (ServedAdapter(adapters[row % len(adapters)], 1.0),) if adapters else ()
        engine.submit(name, prompts(PROMPT), WARM + STEPS + ROWS, served, GREEDY)
    answering = set[str]()
    while len(answering) < ROWS:
        answering |= engine.step().keys()
    for _ in range(WARM):
        engine.step()
    found: list[Times] = []
    for _ in range(STEPS):
        with watched(engine) as clock:
            started = time.process_time()
            engine.step()
            whole = time.process_time() - started
        rest = whole - sum(clock.spent.values())
        found.append({part: 1000 * spent for part, spent in (clock.spent | {"rest": rest}).items()})
    engine.cancel(names)
    return {part: statistics.median(step[part] for step in found) for part in PARTS}


def picture(bars: dict[str, Times], title: str) -> str:
    """Return the bars as an SVG."""
    left, width, height = 250, 620, 34
    most = max(sum(times.values()) for times in bars.values())
    lines = [f'<text x="8" y="20" font-weight="bold">{html.escape(title)}</text>']
    for row, (name, times) in enumerate(bars.items()):
        x, y = float(left), 40 + row * height
        lines.append(f'<text x="{left - 8}" y="{y + 16}" text-anchor="end">{html.escape(name)}</text>')
        for colour, part in zip(COLOURS, PARTS, strict=True):
            wide = times[part] / most * width
            told = f"{PARTS[part]}: {times[part]:.1f} ms"
            lines.append(
                f'<rect x="{x:.1f}" y="{y}" width="{wide:.1f}" height="22" fill="{colour}"><title>{told}</title></rect>'
            )
            x += wide
        lines.append(f'<text x="{x + 6:.1f}" y="{y + 16}">{sum(times.values()):.0f} ms</text>')
    below = 40 + len(bars) * height + 16
    for index, (colour, said) in enumerate(zip(COLOURS, PARTS.values(), strict=True)):
        x, y = 8 + index % 3 * 330, below + index // 3 * 22
        lines.append(f'<rect x="{x}" y="{y - 11}" width="12" height="12" fill="{colour}"/>')
        lines.append(f'<text x="{x + 18}" y="{y}">{said}</text>')
    box, font = f'viewBox="0 0 1000 {below + 36}"', 'font-family="sans-serif" font-size="13"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {box} {font}>'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *lines, "</svg>"]) + "\n"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="directory of the base")
    parser.add_argument("--adapters", type=Path, nargs="+", required=True, help="their directories")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="an SVG file")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    engines = {}
    for compiles in (False, True):
        limits = EngineConfig(max_sequences=ROWS, max_sequence_length=2048, compile=compiles)
        engine = DrivenEngine(Loader(), Start(str(arguments.model), "base", arguments.dtype, limits))
        for directory in arguments.adapters:
            engine.mount(directory.name, directory)
        engines[compiles] = engine
    prompts = Prompts(range(8, engines[True].loaded.vocabulary_size * 3 // 4))
    adapters = [directory.name for directory in arguments.adapters]
    rounds: dict[str, list[Times]] = {}
    for _ in range(arguments.rounds):
        for whose, served in (("base", []), (f"{len(adapters)} adapters", adapters)):
            for compiles, engine in engines.items():
                name = f"{whose}, {'compiled' if compiles else 'not compiled'}"
                rounds.setdefault(name, []).append(step_times(engine, served, prompts))
    bars = {
        name: {part: statistics.median(one[part] for one in found) for part in PARTS} for name, found in rounds.items()
    }
    for name, times in bars.items():
        wholes = [sum(one.values()) for one in rounds[name]]
        print(f"{name:>28}: {sum(times.values()):6.1f} ms ({min(wholes):.1f} … {max(wholes):.1f})", end="")
        print("".join(f"  {part} {spent:.1f}" for part, spent in times.items()))
    if arguments.out:
        dtype = str(engines[True].loaded.dtype)
        title = f"A step of {ROWS} rows that decode, {dtype}, all threads together: where the processors' time goes"
        arguments.out.write_text(picture(bars, title))


if __name__ == "__main__":
    main()
