"""Names that drifted: of tensors that were not written by `save_pretrained`, and of modules that moved since.

A name that is right is never touched. One that is not is mapped only where one way takes every tensor of the file to a
module that it fits; where none does, or two do, the file is refused as it stands.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from graft_runtime.adapters.keys import PREFIX
from graft_runtime.adapters.layout import BaseLayout
from graft_runtime.adapters.tensors import TensorSpan

MAX_WAYS = 64
"""Ways to map that are tried; an honest file has one or two."""
WRAPPERS = frozenset({"model", "language_model", "text_model", "transformer", "base_model", "thinker"})
"""How models call the model inside of them that does the work; what they call towers for images is none of these."""

_RUNTIME = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch.compile, FSDP and checkpointing put into a state dict."""
_PARAMETER = (
    r"\.(lora_(?:A|B|E|embedding_A|embedding_B|magnitude_vector)|hada_\w+|lokr_\w+|vera_lambda_\w+|ia3_l"
    r"|ln_tuning_layers|modules_to_save|trainable_tokens_delta)"
)
_ADAPTER_NAME = re.compile(_PARAMETER + r"\.(?!(?:weight|bias)(?:\.|$))([^.]+)(?=\.|$)")
"""A raw state dict holds the adapter's own name after the parameter's; `save_pretrained` takes it out."""

_IS_ADAPTER = re.compile(_PARAMETER + r"(?=\.|$)")


@dataclass(frozen=True)
class Remap:
    """Old → new, and what was done in words."""

    names: Mapping[str, str]
    told: str


def plain_names(tensors: Mapping[str, TensorSpan]) -> tuple[dict[str, TensorSpan], str | None]:
    """Return the tensors under the names that `save_pretrained` would have given them, and what was done for that.

    Taken out are the prefixes of wrappers of torch and the adapter's own name; put in front is `base_model.model.`:
    where that holds for the whole file, and where no two tensors end up under one name.
    """
    names = {name: name for name in tensors}
    told = []
    for step, what in (
        (_without_runtime, "left out what torch wraps modules in"),
        (_without_adapter_name, "left out the adapter's own name"),
        (_with_prefix, f"put {PREFIX} in front"),
    ):
        changed = step(names.values())
        if changed:
            names = {old: changed.get(name, name) for old, name in names.items()}
            told.append(what)
    if not told or len(set(names.values())) < len(names):
        return dict(tensors), None
    return {names[name]: span for name, span in tensors.items()}, "; ".join(told)


def remap(paths: Collection[str], layout: BaseLayout, fits: Callable[[Mapping[str, str]], bool]) -> Remap | None:
    """Find where the modules that a file names are in this base, when they are not where the file says.

    Args:
        paths: of the modules, as the file names them.
        layout: of the base.
        fits: whether every tensor fits the module that its own is mapped to.

    Returns:
        One way for all of them; None when each is where the file says, when no way fits, or more than one.
    """
    if all(layout.kind(path) for path in paths):
        return None
    found: dict[tuple[str, ...], Remap] = {}
    for told, names in _ways(paths, layout):
        targets = tuple(names[path] for path in paths)
        if len(set(targets)) == len(targets) and all(map(layout.kind, targets)) and fits(names):
            found[targets] = Remap(names, told)
    return next(iter(found.values())) if len(found) == 1 else None


def _ways(paths: Collection[str], layout: BaseLayout) -> Iterator[tuple[str, dict[str, str]]]:
    renamed = {path: current(path, layout) for path in paths}
    yield "renamed modules as Transformers did", renamed
    for old, new in _prefixes(renamed.values(), layout):
        told = f"{old or 'nothing'} → {new or 'nothing'} at the start of modules' names"
        yield told, {path: _swapped(name, old, new, layout) for path, name in renamed.items()}


def current(path: str, layout: BaseLayout) -> str:
    """Replace the longest beginning of a path that has another name by now, if the path leads nowhere as it is.

    A shorter beginning is replaced where that alone leads somewhere.
    """
    if layout.kind(path):
        return path
    steps = path.split(".")
    starts = [(".".join(steps[:end]), steps[end:]) for end in range(len(steps), 0, -1)]
    found = [".".join([layout.former[start], *rest]) for start, rest in starts if start in layout.former]
    return next(filter(layout.kind, found), found[0] if found else path)


def _prefixes(paths: Iterable[str], layout: BaseLayout) -> list[tuple[str, str]]:
    """Find the beginnings that could be swapped so that the first path that leads nowhere leads somewhere."""
    lost = next((path for path in paths if not layout.kind(path)), None)
    if lost is None:
        return []
    wrappers = WRAPPERS | {*layout.wrapper.split(".")}
    steps = lost.split(".")
    starts = [steps[:end] for end in range(len(steps)) if set(steps[:end]) <= wrappers]
    swaps: dict[tuple[str, str], None] = {}
    for target in layout.paths:
        for start in starts:
            rest = ".".join(steps[len(start) :])
            before = target.removesuffix(rest)
            if target.endswith(rest) and (not before or before.endswith(".")):
                prefix = before.removesuffix(".")
                if not prefix or set(prefix.split(".")) <= wrappers:
                    swaps[".".join(start), prefix] = None
    return list(swaps)[:MAX_WAYS]


def _swapped(path: str, old: str, new: str, layout: BaseLayout) -> str:
    """Return the path with its beginning swapped, if that path leads somewhere; else the path as it is."""
    if old and not path.startswith(old + "."):
        return path
    rest = path.removeprefix(old + ".") if old else path
    swapped = f"{new}.{rest}" if new else rest
    return swapped if layout.kind(swapped) or not layout.kind(path) else path


def _without_runtime(names: Collection[str]) -> dict[str, str]:
    changed = {name: _RUNTIME.sub("", name) for name in names}
    if all(name.startswith("module.") for name in changed.values()):  # DataParallel
        changed = {name: other.removeprefix("module.") for name, other in changed.items()}
    return {name: other for name, other in changed.items() if name != other}


def _without_adapter_name(names: Collection[str]) -> dict[str, str]:
    found = {name: match for name in names if (match := _ADAPTER_NAME.search(name))}
    if len({match[2] for match in found.values()}) != 1:
        return {}
    return {name: _without(name, match) for name, match in found.items()}


def _without(name: str, match: re.Match[str]) -> str:
    before, parameter, after = name[: match.start()], match[1], name[match.end() :]
    if parameter == "modules_to_save":
        return before + after
    if parameter == "lora_magnitude_vector":
        after = after.removesuffix(".weight")
    return f"{before}.{parameter}{after}"


def _with_prefix(names: Collection[str]) -> dict[str, str]:
    if any(name.startswith("base_model.") for name in names) or not any(_IS_ADAPTER.search(name) for name in names):
        return {}
    return {name: PREFIX + name for name in names}
