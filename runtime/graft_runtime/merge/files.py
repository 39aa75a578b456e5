"""From checkpoint to checkpoint, tensor by tensor: at most one tensor in memory, and what is finished stays finished.

Shapes and types do not change. So each file of weights is copied as it is, and the changed tensors are written over
their place in it; a finished file gets its name at once. A head that gets a weight of its own is one file more.
`config.json` comes last: before it, nothing loads the output.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graft_runtime.adapters.files import CONFIG_FILE, WEIGHTS_FILE
from graft_runtime.adapters.layout import BaseLayout
from graft_runtime.base.files import INDEX_FILE, SINGLE_FILE, not_a_model, weight_files
from graft_runtime.base.quantised_files import check_full
from graft_runtime.contract.checkpoints import MODEL_FILE_PATTERNS, matches
from graft_runtime.durable import PARTIAL_SUFFIX, replacing, write_whole
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.merge.addend import Addend
from graft_runtime.merge.first_pass import effective
from graft_runtime.merge.places import Places, find_places
from graft_runtime.merge.sums import Sum
from graft_runtime.merge.ties import index_with_head, save_head, separable, separated_head, untied_config
from graft_runtime.model.load import empty_model
from graft_runtime.model.modules import BaseModules
from graft_runtime.model.observation import hollow
from graft_runtime.model.stored_weights import Place, Spans, StoredModule, find_place, read_spans, stored_names
from graft_runtime.model.whole import layout_in

HEAD_FILE = "model-head.safetensors"
_SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
RECORD_FILE = "graft_merge.json"
"""What was merged, beside the output's weights."""
MAX_RANK = 1024


@dataclass(frozen=True)
class AdapterPath:
    """One adapter of a merge, and how much of it."""

    directory: Path
    weight: float = 1.0


@dataclass(frozen=True)
class _Head:
    """A head that is tied in the base, and gets a weight and a file of its own in the output."""

    path: str
    embedding: Place
    named: Mapping[str, str]
    """The base's files → the output's."""
    file: str

    @classmethod
    def of(
        cls, path: str | None, layout: BaseLayout, files: Sequence[str], spans: Spans, modules: BaseModules
    ) -> _Head | None:
        """Return the head.

        Returns None where the head stays tied, or the checkpoint holds the head's weight beside the embedding's.
        """
        if path is None or any(name in spans for name in stored_names(f"{path}.weight", layout)):
            return None
        (embedding,) = (embedding for embedding, head in layout.ties.items() if head == path)
        place = find_place(embedding, "weight", spans, modules, layout)
        assert isinstance(place, Place), "a tied head's weight lies in the embedding's place"
        if list(files) == [SINGLE_FILE]:  # which Transformers would load alone, whatever an index says
            return cls(path, place, {SINGLE_FILE: _SHARDS[0]}, _SHARDS[1])
        return cls(path, place, {file: file for file in files}, HEAD_FILE)

    def write(self, output: Path, merged: Sum) -> None:
        """Write the head's file."""
        module = StoredModule({"weight": self.embedding})
        made = merged.onto(self.path, module) if self.path in merged.paths else {}
        with replacing(output / self.file) as partial:
            save_head(partial, self.path, made.get("weight", module.weight))

    def index(self, spans: Spans) -> bytes:
        """Return the index of the output."""
        size = sum(span.end - span.begin for _, span in spans.values())
        own = self.embedding.span.end - self.embedding.span.begin
        weight_map = {name: self.named[file.name] for name, (file, _) in spans.items()}
        return index_with_head(weight_map, size + own, self.path, self.file)


def merge_files(
    base: Path, adapters: Sequence[AdapterPath], output: Path, *, tell: Callable[[str], None] = lambda _: None
) -> None:
    """Write W' = W + Σ weight · B·A as a checkpoint of its own.

    The merge goes on where an interrupted run of the same merge stopped.

    Args:
        base: a checkpoint in safetensors, of a model for the task that its config.json says.
        adapters: in the order of the sum.
        output: an empty or missing directory, or one that a run with the same inputs left.
        tell: given a line for each file that is finished, and each adapter whose modules have moved.

    Raises:
        GraftError: what a mount of one of the adapters raises; InvalidRequest when `output` holds something else.
        OSError: reading or writing failed.
    """
    check_full(base, base.name, "a merge")
    model = empty_model(base, name=base.name)
    layout, modules = layout_in(base, model, base.name), BaseModules(model)
    shared = modules.shared_weights()
    shared -= separable(layout, shared)
    merged = Sum(
        [
            Addend.read(
                adapter.directory,
                name=adapter.directory.name,
                weight=adapter.weight,
                max_rank=MAX_RANK,
                layout=layout,
                shared=shared,
            )
            for adapter in adapters
        ]
    )
    hollow(model)
    try:
        merged = effective(model, merged)[0]
    except GraftError:
        raise
    except Exception as error:  # whatever a model raises
        what = f"{type(model).__name__} failed on a trial: {type(error).__name__}: {error}"
        raise not_a_model(base.name, what, "use a model that takes text alone") from error
    for idle in (addend.files for addend in merged.addends if addend.files.facts.unused):
        tell(f"adapter `{idle.name}` is merged in part: {idle.facts.unused}")
    for moved in (addend.files for addend in merged.addends if addend.files.facts.remapped):
        tell(f"adapter `{moved.name}` names its modules otherwise than its base: {moved.facts.remapped}")
    files = weight_files(base)
    spans = read_spans(base, files)
    places = find_places(base, spans, merged, modules, layout)
    head = _Head.of(separated_head(merged, layout), layout, files, spans, modules)
    named = head.named if head is not None else {file: file for file in files}
    finished = _begin(output, _record(base, files, adapters), [*named.values(), *([head.file] if head else [])])
    for file, name in named.items():
        if name in finished:
            tell(f"{name} is finished already")
            continue
        _merge_file(base / file, output / name, places, merged)
        tell(f"{name} is finished")
    if head is not None and head.file not in finished:
        head.write(output, merged)
        tell(f"{head.file} is finished")
    if not finished:
        _check_effect(merged, output, [*named.values(), *([head.file] if head else [])])
    _copy_small_files(base, output, indexed=head is None)
    if head is not None:
        write_whole(output / INDEX_FILE, head.index(spans))
    config = (base / "config.json").read_bytes()
    write_whole(output / "config.json", untied_config(config) if separated_head(merged, layout) is not None else config)


def _merge_file(source: Path, target: Path, places: Places, merged: Sum) -> None:
    with replacing(target) as partial:
        shutil.copyfile(source, partial)
        with partial.open("r+b") as new:
            for path, parameters in places.items():
                if any(place.file == source for place in parameters.values()):
                    for name, tensor in merged.onto(path, StoredModule(parameters)).items():
                        if parameters[name].file == source:
                            parameters[name].write(new, tensor)


def _check_effect(merged: Sum, output: Path, files: Sequence[str]) -> None:
    try:
        merged.check_effect()
    except GraftError:
        for name in (*files, RECORD_FILE):  # the next run must not go on from here
            (output / name).unlink()
        raise


def _record(base: Path, files: Sequence[str], adapters: Sequence[AdapterPath]) -> dict[str, Any]:
    """Return a record of what is merged: two runs with the same record write the same bytes."""
    return {
        "method": "linear",
        "base": {
            "name": base.name,
            "config": _sha256(base / "config.json"),
            "weights": {name: [(base / name).stat().st_size, (base / name).stat().st_mtime_ns] for name in files},
        },
        "adapters": [
            {
                "name": adapter.directory.name,
                "weight": adapter.weight,
                "config": _sha256(adapter.directory / CONFIG_FILE),
                "weights": _sha256(adapter.directory / WEIGHTS_FILE),
            }
            for adapter in adapters
        ],
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def _begin(output: Path, record: Mapping[str, Any], files: Sequence[str]) -> set[str]:
    """Make the output directory, or go on in it; return the files that are finished."""
    output.mkdir(parents=True, exist_ok=True)
    present = {path.name for path in output.iterdir()}
    if present and not _is_of(output / RECORD_FILE, record):
        raise GraftError(
            ErrorCode.INVALID_REQUEST,
            f"`{output}` is not empty, and does not hold this merge",
            hint="name another directory for the output, or remove that one",
        )
    if not present:
        write_whole(output / RECORD_FILE, json.dumps(record, indent=2).encode() + b"\n")
    for left in output.glob(f"*{PARTIAL_SUFFIX}"):
        left.unlink()
    return present.intersection(files)


def _is_of(path: Path, record: Mapping[str, Any]) -> bool:
    try:
        return bool(json.loads(path.read_bytes()) == record)
    except (OSError, ValueError):
        return False


def _copy_small_files(base: Path, output: Path, *, indexed: bool) -> None:
    """Copy all files but the weights and config.json; copy the index unless the output has its own."""
    patterns = [pattern for pattern in MODEL_FILE_PATTERNS if pattern not in ("config.json", "*.safetensors")]
    paths = (path.relative_to(base).as_posix() for each in ("*", "*/*") for path in base.glob(each))
    names = [path for path in paths if matches(path, patterns)]
    single = (output / SINGLE_FILE).exists()  # an index beside it is of something else
    for name in sorted(name for name in names if name != INDEX_FILE or (indexed and not single)):
        (output / name).parent.mkdir(exist_ok=True)
        write_whole(output / name, (base / name).read_bytes())
