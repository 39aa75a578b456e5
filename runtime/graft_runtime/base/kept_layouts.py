"""The layouts of base models, kept on disk: making one takes torch and seconds, reading one takes neither.

A layout follows from config.json, the task, the versions of Transformers and torch, and the code that looks at the
model. All of that is in the name of its file, so that a layout is never out of date; what can't be read as it was
written, or could have been written by somebody else, is made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from graft_runtime.adapters.layout import BaseLayout
from graft_runtime.base.files import check_weights, read_config
from graft_runtime.contract.tasks import Task
from graft_runtime.durable import write_whole

MAX_KEPT = 64
"""Files; the oldest go first."""
MAX_BYTES = 64 << 20
_CODE = (
    "adapters/layout.py",
    "model/module_tree.py",
    "model/modules.py",
    "base/files.py",
    "model/load.py",
    "model/tasks.py",
    "model/whole.py",
)
"""What decides how a layout looks, below this package."""


class _Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sha256: str
    """Of the text of the layout, in hex."""
    layout: msgspec.Raw


def layout_of_checkpoint(directory: Path, task: Task | None, make: Callable[[], BaseLayout]) -> BaseLayout:
    """Return what a base model offers to adapters: the layout that is kept, or else a new one, which is kept then.

    Args:
        directory: of the checkpoint; its name is how errors call the base model.
        task: what the model is made for; None: what its config.json says.
        make: makes the layout, once config.json can be read.

    Raises:
        GraftError: NotAModel, UnsafeFile, and what `make` raises.
    """
    kept_in = _kept_in()
    path = kept_in / f"{_key(read_config(directory, directory.name), task)}.json" if kept_in is not None else None
    kept = _read(path) if path is not None else None
    if kept is not None:
        check_weights(directory, directory.name)
        return replace(kept, name=directory.name)
    layout = make()
    if path is not None:
        with contextlib.suppress(OSError):  # whoever can't write there waits again next time
            _write(path, layout)
    return layout


def _kept_in() -> Path | None:
    """Return the directory of kept layouts by the XDG Base Directory Specification; None where there is no home."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    try:
        cache = Path(named) if os.path.isabs(named) else Path.home() / ".cache"
    except RuntimeError:
        return None
    return cache / "graft" / "layouts"


def _key(config: bytes, task: Task | None) -> str:
    package = Path(__file__).parents[1]
    said = [config, (task or "").encode()]
    said += [_version(name).encode() for name in ("graft-runtime", "transformers", "torch")]
    said += [(package / file).read_bytes() for file in _CODE]
    return hashlib.sha256(b"".join(len(part).to_bytes(8, "big") + part for part in said)).hexdigest()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _read(path: Path) -> BaseLayout | None:
    """Read the layout that is kept at `path`; None for what is not exactly what `_write` wrote, as this user."""
    try:
        with open(path, "rb", opener=_through_no_link) as file:
            status = os.fstat(file.fileno())
            ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022
            text = file.read(MAX_BYTES + 1) if ours else b""
    except OSError:
        return None
    try:
        kept = msgspec.json.decode(text, type=_Kept)
        if len(text) > MAX_BYTES or hashlib.sha256(kept.layout).hexdigest() != kept.sha256:
            return None
        return msgspec.json.decode(kept.layout, type=BaseLayout)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _through_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)


def _write(path: Path, layout: BaseLayout) -> None:
    """Write the layout at once or not at all, for this user alone. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    text = msgspec.json.encode(replace(layout, name=""))
    kept = msgspec.json.encode(_Kept(hashlib.sha256(text).hexdigest(), msgspec.Raw(text)))
    write_whole(path, kept, mode=0o600)
    for old in sorted(path.parent.iterdir(), key=lambda file: file.stat().st_mtime_ns)[:-MAX_KEPT]:
        old.unlink(missing_ok=True)
