"""A wheel of torch for a CPU, made of the installed one: NVIDIA's libraries are stubs, and it requires none of them.

For where PyTorch's own index of such wheels can't be reached: 5.5 GB become 1.1 GB. torch.cuda.is_available() is False.
"""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

_LEFT_OUT = re.compile(r"torch/(include|share|test)/|__pycache__/|\.\./|\.dist-info/(RECORD|METADATA)$")
_OTHERS = re.compile(r"^Requires-Dist: (cuda|nvidia|triton).*\n", re.MULTILINE)
_KEPT = "libcudart"
"""Of NVIDIA's libraries; the real one says that there is no device."""


def ensure_wheel(directory: Path) -> Path:
    """The wheel in `directory`, made if it is not there."""
    torch = metadata.distribution("torch")
    (tag,) = re.findall(r"^Tag: (\S+)$", torch.read_text("WHEEL") or "", re.MULTILINE)
    wheel = directory / f"torch-{torch.version}-{tag}.whl"
    if not wheel.exists():
        directory.mkdir(parents=True, exist_ok=True)
        partial = wheel.with_suffix(".part")
        _write(partial, torch)
        partial.replace(wheel)
    return wheel


def _write(wheel: Path, torch: metadata.Distribution) -> None:
    site = Path(str(torch.locate_file("")))
    information = f"torch-{torch.version}.dist-info"
    records: list[str] = []
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_STORED) as archive, tempfile.TemporaryDirectory() as scratch:

        def add(name: str, content: bytes) -> None:
            archive.writestr(name, content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            records.append(f"{name},sha256={digest},{len(content)}")

        for file in torch.files or ():
            if not _LEFT_OUT.search(str(file)):
                add(str(file), (site / file).read_bytes())
        for name, library in _libraries(site, Path(scratch)):
            add(name, library.read_bytes())
        add(f"{information}/METADATA", _OTHERS.sub("", torch.read_text("METADATA") or "").encode())
        archive.writestr(f"{information}/RECORD", "\n".join([*records, f"{information}/RECORD,,", ""]))


def _libraries(site: Path, scratch: Path) -> Iterator[tuple[str, Path]]:
    """What torch links to of NVIDIA's libraries: the place in the wheel, and a file for it."""
    linked: set[str] = set()
    undefined: set[str] = set()
    for library in (site / "torch" / "lib").glob("*.so"):
        linked |= set(re.findall(r"NEEDED.*\[(.*)\]", _output("readelf", "-d", str(library))))
        undefined |= {symbol.partition("@")[0] for symbol in _symbols(library, "--undefined-only")}
    for library in sorted((site / "nvidia").glob("*/lib/*.so*")):
        if library.name in linked:
            real = library.name.startswith(_KEPT)
            yield str(library.relative_to(site)), library if real else _stub(library, undefined, scratch)


def _stub(library: Path, undefined: set[str], scratch: Path) -> Path:
    """A library named as `library`, with those of its symbols that are wanted; each function returns 1."""
    by_version: dict[str, set[str]] = defaultdict(set)
    for symbol in _symbols(library, "--defined-only"):
        name, _, version = symbol.partition("@")
        if name in undefined:
            by_version[version.lstrip("@")].add(name)
    assembly, versions, stub = scratch / "stub.s", scratch / "stub.map", scratch / library.name
    names = sorted(set().union(*by_version.values()))
    functions = "".join(f".globl {name}\n.type {name},@function\n{name}:\n" for name in names)
    assembly.write_text(f'.text\n{functions} mov $1,%eax\n ret\n.section .note.GNU-stack,"",@progbits\n')
    versions.write_text("".join(f"{v} {{ global: {'; '.join(sorted(of))}; }};\n" for v, of in by_version.items() if v))
    script = [f"-Wl,--version-script={versions}"] if versions.stat().st_size else []
    _output("gcc", "-shared", "-nostdlib", "-o", str(stub), f"-Wl,-soname,{library.name}", str(assembly), *script)
    return stub


def _symbols(library: Path, which: str) -> list[str]:
    lines = _output("nm", "-D", which, "--with-symbol-versions", str(library)).splitlines()
    return [line.split()[-1] for line in lines if line.split()]


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
