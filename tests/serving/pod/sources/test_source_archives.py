"""Archives by https: what is taken, what is refused, and that no more than the caps is ever read."""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from graft_runtime.backoff import Backoff
from graft_runtime.contract.config import SourceMount
from graft_runtime.errors import GraftError
from graft_runtime.store.cache import Cache
from graft_runtime.store.network import Pace, parse_network
from graft_runtime.store.sources import Sources
from graft_runtime.store.sources.archive import open_archive
from graft_runtime.store.sources.directory import Caps

from tests.support.shelf import embedder

CONFIG, WEIGHTS = b'{"peft_type": "LORA"}', bytes(range(256)) * 1024
FILES = {"adapter_config.json": CONFIG, "adapter_model.safetensors": WEIGHTS}
SMALL = Caps(archive_bytes=1 << 20, content_bytes=1 << 21, entries=20, ratio=10, free_bytes=1 << 20)


def tar(*entries: tuple[str, bytes | tarfile.TarInfo]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in entries:
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.name = name
            if isinstance(content, bytes):
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                archive.addfile(info)
    return packed.getvalue()


def zipped(*entries: tuple[str | zipfile.ZipInfo, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return packed.getvalue()


def special(kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, target
    return info


def zip_link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


def claiming(size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A tar archive whose only header promises more than follows."""
    info = tarfile.TarInfo("adapter_model.safetensors")
    info.size, info.type = size, kind
    return gzip.compress(info.tobuf() + bytes(tarfile.RECORDSIZE))


@pytest.fixture
def archives(
    web: Any, secret: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Sources]]:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    (secret / "hosts").write_text(web.url.removeprefix("https://"))
    mounts = (SourceMount(name="web", kind="remote", uri_prefixes=(f"{web.url}/private/",)),)
    pace = Pace(silent_seconds=2.0, tries=2, pauses=Backoff(0.01, 8.0))
    made: list[Sources] = []

    def make(**limits: Any) -> Sources:
        made.append(Sources(mounts, {"web": secret}, (parse_network("127.0.0.0/8"),), pace, **limits))
        return made[-1]

    yield make
    for sources in made:
        sources.close()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("flat.zip", zipped(*FILES.items())),
        ("folder.zip", zipped(("sql/", b""), *((f"sql/{name}", content) for name, content in FILES.items()))),
        ("flat.tar.gz", tar(*FILES.items())),
        ("dots.tar.gz", tar(("./", special(tarfile.DIRTYPE)), *((f"./{n}", c) for n, c in FILES.items()))),
        ("folder.tar.gz", tar(*((f"sql-1.0/{name}", content) for name, content in FILES.items()))),
        ("more.zip", zipped(*FILES.items(), ("README.md", b"words"), ("checkpoint-10/optimizer.pt", b"pickle"))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_adapter_in_an_archive(
    web: Any, archives: Callable[[], Sources], cache: Cache, name: str, content: bytes, *, unfinished: Any
) -> None:
    web.files[f"/{name}"] = content
    cached = cache.copy(archives(), f"{web.url}/{name}", "adapter")
    assert {path.name: path.read_bytes() for path in cached.directory.iterdir()} == FILES
    assert cached.revision is None
    assert unfinished() == []


@pytest.mark.parametrize("folder", ["", "base/"])
def test_folders_of_modules_come_with_a_base(
    web: Any, archives: Callable[[], Sources], cache: Cache, folder: str
) -> None:
    files = embedder() | {"onnx/config.json": b"{}", "1_Pooling/deep/config.json": b"{}"}
    web.files["/base.zip"] = zipped(*((folder + name, content) for name, content in files.items()))
    copied = cache.copy(archives(), f"{web.url}/base.zip", "model").directory
    assert {path.relative_to(copied).as_posix() for path in copied.rglob("*") if path.is_file()} == {*embedder()}


def test_the_token_goes_below_its_prefix_alone(web: Any, archives: Callable[[], Sources], cache: Cache) -> None:
    for path in ("/private/a.zip", "/public/a.zip"):
        web.files[path] = zipped(*FILES.items())
        cache.copy(archives(), web.url + path, "adapter")
    assert [asked.headers.get("authorization") for asked in web.asked] == ["Bearer hf_very_secret", None]


def test_the_certificate_is_that_of_the_name(web: Any, archives: Callable[[], Sources], cache: Cache) -> None:
    """The connection goes to an address; it is `localhost` that has to be proven, and 127.0.0.1 is another name."""
    web.files["/a.zip"] = zipped(*FILES.items())
    with pytest.raises(GraftError) as caught:
        cache.copy(archives(), web.url.replace("localhost", "127.0.0.1") + "/a.zip", "adapter")
    assert caught.value.code == "SourceUnavailable"
    assert web.asked == []


@pytest.mark.parametrize(
    "content",
    [bytes(5000), zipped(("adapter_config.json", CONFIG), ("adapter_model.safetensors", bytes(5000)))],
    ids=["packed", "unpacked"],
)
def test_more_than_an_adapter_may_have(
    web: Any, archives: Callable[[], Sources], tmp_path: Path, content: bytes, unfinished: Any
) -> None:
    web.files["/a.zip"] = content
    cache = Cache(tmp_path / "small", None, tuple, adapter_bytes=1000)
    with pytest.raises(GraftError) as caught:
        cache.copy(archives(), f"{web.url}/a.zip", "adapter")
    assert caught.value.code == "TooLarge"
    assert unfinished() == []


def test_more_than_the_cache_holds(web: Any, archives: Callable[[], Sources], tmp_path: Path, unfinished: Any) -> None:
    web.files["/a.tar.gz"] = tar(*FILES.items())
    cache = Cache(tmp_path / "small", 1000, tuple)
    with pytest.raises(GraftError) as caught:
        cache.copy(archives(), f"{web.url}/a.tar.gz", "adapter")
    assert caught.value.code == "NoCapacity"
    assert unfinished() == []


REFUSED: dict[str, tuple[bytes, str]] = {
    "dots.tar.gz": (tar(("../adapter_config.json", CONFIG)), "UnsafeFile"),
    "root.tar.gz": (tar(("/etc/passwd", b"x")), "UnsafeFile"),
    "link.tar.gz": (tar(("adapter_config.json", special(tarfile.SYMTYPE, "/etc/passwd"))), "UnsafeFile"),
    "hardlink.tar.gz": (tar(("adapter_config.json", special(tarfile.LNKTYPE, "/etc/passwd"))), "UnsafeFile"),
    "device.tar.gz": (tar(("adapter_config.json", special(tarfile.CHRTYPE))), "UnsafeFile"),
    "pipe.tar.gz": (tar(("adapter_config.json", special(tarfile.FIFOTYPE))), "UnsafeFile"),
    "sparse.tar.gz": (claiming(1 << 10, tarfile.GNUTYPE_SPARSE), "Corrupt or UnsafeFile"),
    "twice.tar.gz": (tar(("a", b"1"), ("./a", b"2")), "UnsafeFile"),
    "many.tar.gz": (tar(*((str(number), b"") for number in range(30))), "UnsafeFile"),
    "bomb.tar.gz": (tar(("adapter_model.safetensors", bytes(1 << 23))), "UnsafeFile"),
    "claim.tar.gz": (claiming(1 << 40), "UnsafeFile"),
    "long-name.tar.gz": (claiming(1 << 30, tarfile.GNUTYPE_LONGNAME), "Corrupt or UnsafeFile"),
    "pax.tar.gz": (claiming(1 << 30, tarfile.XHDTYPE), "Corrupt or UnsafeFile"),
    "short.tar.gz": (tar(*FILES.items())[:-500], "Corrupt"),
    "nothing.tar.gz": (b"", "Corrupt"),
    "plain.tar.gz": (b"not an archive" * 100, "Corrupt"),
    "dots.zip": (zipped(("../adapter_config.json", CONFIG)), "UnsafeFile"),
    "root.zip": (zipped(("/etc/passwd", b"x")), "UnsafeFile"),
    "backslash.zip": (zipped(("..\\adapter_config.json", CONFIG)), "UnsafeFile"),
    "link.zip": (zipped((zip_link("adapter_config.json"), b"/etc/passwd")), "UnsafeFile"),
    "many.zip": (zipped(*((str(number), b"") for number in range(30))), "UnsafeFile"),
    "bomb.zip": (zipped(("adapter_model.safetensors", bytes(1 << 23))), "UnsafeFile"),
    "short.zip": (zipped(*FILES.items())[:-30], "Corrupt"),
    "plain.zip": (b"not an archive" * 100, "Corrupt"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_hostile_archive_is_refused(name: str) -> None:
    content, codes = REFUSED[name]
    uri = f"https://models.example/{name}"
    with pytest.raises(GraftError) as caught:
        open_archive(uri, io.BytesIO(content), SMALL)
    assert caught.value.code in codes.split(" or ")
    assert uri in caught.value.message


def sparse(blocks: int) -> bytes:
    """A tar archive with one file whose map of holes goes on through so many blocks."""
    head = bytearray(special(tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    holes = b"00000000001\0" * 42
    head[386:482], head[482:483] = holes[:96], b"\1"
    head[148:156] = b"        "
    head[148:156] = b"%06o\0 " % sum(head[:512])
    return gzip.compress(bytes(head) + (holes + b"\1" + bytes(7)) * blocks)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("holes.tar.gz", sparse(20_000)),
        ("names.tar.gz", tar(*((f"{number}" + "n" * 100_000, b"") for number in range(60)))),
        ("names.zip", zipped(*((f"{number}" + "n" * 60_000, b"") for number in range(100)))),
        ("many.zip", zipped(*((f"{number}", b"") for number in range(12_000)))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_comes_before_the_files_of_an_archive_is_bounded(name: str, content: bytes) -> None:
    with pytest.raises(GraftError, match=r"takes? more than (4194304|512000) bytes") as caught:
        open_archive(f"https://models.example/{name}", io.BytesIO(content), Caps(entries=1000))
    assert caught.value.code == "UnsafeFile"


def test_a_zip_that_lies_about_a_size_gives_no_more_than_it_told() -> None:
    size = 500_001
    honest = zipped(("adapter_model.safetensors", bytes(size)))
    content = honest.replace(size.to_bytes(4, "little"), (100).to_bytes(4, "little"))
    directory = open_archive("https://models.example/a.zip", io.BytesIO(content), SMALL)
    with directory.open_file("adapter_model.safetensors") as member, pytest.raises(GraftError) as caught:
        member.read(1 << 20)
    assert caught.value.code == "Corrupt"


def test_an_archive_larger_than_its_cap_is_not_read_on(
    web: Any, archives: Callable[..., Sources], cache: Cache, unfinished: Any
) -> None:
    web.files["/a.zip"] = zipped(("noise", bytes(1 << 22)), *FILES.items()) + bytes(1 << 22)
    with pytest.raises(GraftError) as caught:
        cache.copy(archives(caps=Caps(archive_bytes=1000)), f"{web.url}/a.zip", "adapter")
    assert (caught.value.code, "larger than 1000 bytes" in caught.value.message) == ("UnsafeFile", True)
    assert unfinished() == []
