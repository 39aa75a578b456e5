"""An adapter in an archive on a web server, `.tar.gz` or `.zip`, which is never unpacked as a whole.

Whatever an archive claims, no more than the caps is read of it, nothing but regular files below it counts, and no name
of it becomes a path on our disk.
"""

from __future__ import annotations

import contextlib
import gzip
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, NoReturn, Self, cast

from graft_runtime.contract.checkpoints import CheckpointFile, may_belong
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.store.download import Download
from graft_runtime.store.sources.directory import Access, Caps, Place, Spool
from graft_runtime.store.sources.token import read_token

ZIP_SUFFIX = ".zip"
_BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError)
_Files = dict[str, tuple[Callable[[], IO[bytes]], int]]
"""By path: what opens a file, and its bytes."""
_HEADER_BYTES = 1 << 20
"""The most that one header of a tar archive may take; pieces of files are read in pieces of at most this size."""
_DIRECTORY_BYTES = 4 << 20
"""The most that all headers of a tar archive together may take."""
_ENTRY_BYTES = 512
"""Of one entry of a zip's directory, with its name: it is read before its entries can be counted."""
_COMMENT_BYTES = 1 << 17
"""The end of a zip, where its directory is looked for."""


@contextlib.contextmanager
def open_source(place: Place, access: Access) -> Iterator[ArchiveDirectory]:
    """Open what lies in an archive; see OpenSource."""
    token = read_token(place)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with access.spool() as kept:
        shown = f"`{place.uri}`"
        with Download(access.client, place.uri, headers, pace=access.pace, shown=shown, expect=kept.expect) as download:
            spool_archive(download.read, kept, place.uri, access.caps)
        yield open_archive(place.uri, kept.file, access.caps)


class Member:
    """One file of an archive, read from its start to its end."""

    def __init__(self, file: IO[bytes], uri: str, name: str) -> None:
        self._file, self._uri, self._name = file, uri, name

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def read(self, size: int) -> bytes:
        """Read at most so many bytes of the file. Raises GraftError: Corrupt, UnsafeFile."""
        try:
            return self._file.read(min(size, _HEADER_BYTES))
        except _BROKEN as error:
            _corrupt(self._uri, f"{self._name}: {error}", error)


class ArchiveDirectory:
    """What lies at the top of an archive, or in its only folder."""

    revision: str | None = None
    identity: str | None = None

    def __init__(self, uri: str, files: _Files) -> None:
        self.uri = uri
        tops = {path.partition("/")[0] for path in files if "/" in path}
        inside = len(tops) == 1 and all("/" in path for path in files)
        self._files = {path.partition("/")[2] if inside else path: opened for path, opened in files.items()}

    def names(self) -> list[str]:
        """Return the files at the directory's top, and in its folders of modules, sorted."""
        return sorted(filter(may_belong, self._files))

    def folders_with(self, file: str) -> list[str]:
        """Return the directory's folders that hold `file`."""
        return sorted(path.partition("/")[0] for path in self._files if path.partition("/")[2] == file)

    def open_file(self, name: str) -> Member:
        """Open a file of the directory. Raises GraftError: Corrupt."""
        try:
            return Member(self._files[name][0](), self.uri, name)
        except _BROKEN as error:
            _corrupt(self.uri, f"{name}: {error}", error)

    def size(self, name: str) -> int | None:
        """Return the bytes of a file as the archive's directory has them."""
        return self._files[name][1]

    def check(self, record: CheckpointFile, copy: Path) -> None:
        """Do nothing: the archive's own checksums are compared while the archive is read."""


def spool_archive(read: Callable[[], bytes], spool: Spool, uri: str, caps: Caps) -> None:
    """Bring an archive into a file of the cache. Raises GraftError: UnsafeFile, NoCapacity."""
    size = 0
    while piece := read():
        size += len(piece)
        if size > caps.archive_bytes:
            _unsafe(uri, f"it is larger than {caps.archive_bytes} bytes")
        spool.write(piece)
    spool.file.flush()


def open_archive(uri: str, file: IO[bytes], caps: Caps) -> ArchiveDirectory:
    """Look at every entry of an archive.

    Raises:
        GraftError: UnsafeFile, Corrupt.
    """
    limit = caps.content_limit(file.seek(0, 2))
    file.seek(0)
    try:
        read_entries = _zip_files if uri.endswith(ZIP_SUFFIX) else _tar_files
        return ArchiveDirectory(uri, read_entries(uri, file, caps, limit))
    except _BROKEN as error:
        _corrupt(uri, str(error), error)


def _zip_files(uri: str, file: IO[bytes], caps: Caps, limit: int) -> _Files:
    content = _ShortReads(file, uri, max(_COMMENT_BYTES, caps.entries * _ENTRY_BYTES))
    archive = zipfile.ZipFile(cast(IO[bytes], content))
    content.most = None
    files: _Files = {}
    infos = archive.infolist()
    _check_totals(uri, caps, limit, [info.file_size for info in infos])
    for info in infos:
        mode = info.external_attr >> 16
        if stat.S_IFMT(mode) not in {0, stat.S_IFREG, stat.S_IFDIR}:
            _unsafe(uri, f"{info.filename!r} is a link or a device")
        if info.flag_bits & 0x1:
            _unsafe(uri, f"{info.filename!r} is encrypted")
        path = _safe_path(uri, info.orig_filename, files)
        if not info.is_dir():
            files[path] = partial(archive.open, info), info.file_size
    return files


def _tar_files(uri: str, file: IO[bytes], caps: Caps, limit: int) -> _Files:
    content = _Capped(gzip.GzipFile(fileobj=file, mode="rb"), uri, limit)
    archive = tarfile.TarFile(fileobj=cast(IO[bytes], content), errorlevel=2)
    files: _Files = {}
    sizes: list[int] = []
    for info in archive:
        sizes.append(info.size)
        _check_totals(uri, caps, limit, sizes)
        if info.isdir():
            _safe_path(uri, info.name, files)
        elif info.type in {tarfile.REGTYPE, tarfile.AREGTYPE} and not info.issparse():
            files[_safe_path(uri, info.name, files)] = partial(_open_tar_member, archive, info), info.size
        else:
            _unsafe(uri, f"{info.name!r} is a link or a device")
    content.headers_left = None
    return files


def _open_tar_member(archive: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    file = archive.extractfile(info)
    assert file is not None, "it is a regular file"
    return file


def _check_totals(uri: str, caps: Caps, limit: int, sizes: Iterable[int]) -> None:
    sizes = list(sizes)
    if len(sizes) > caps.entries:
        _unsafe(uri, f"it has more than {caps.entries} entries")
    if sum(sizes) > limit:
        _unsafe(uri, f"it unpacks to more than {limit} bytes")


def _safe_path(uri: str, name: str, taken: Iterable[str]) -> str:
    parts = [part for part in name.split("/") if part not in {"", "."}]
    if name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
        _unsafe(uri, f"{name!r} leads out of it")
    path = "/".join(parts)
    if path in taken:
        _unsafe(uri, f"{name!r} is in it twice")
    return path


class _ShortReads:
    """The file of a zip archive, whose directory is read whole before anybody can look at it.

    Args:
        most: bytes that the directory may take; None once it is read.
    """

    def __init__(self, file: IO[bytes], uri: str, most: int | None) -> None:
        self._file, self._uri, self.most = file, uri, most
        self.seek, self.tell, self.seekable, self.close = file.seek, file.tell, file.seekable, file.close

    def read(self, size: int = -1) -> bytes:
        if self.most is None:
            return self._file.read(size)
        content = self._file.read(size if 0 <= size <= self.most else self.most + 1)
        if len(content) > self.most:
            _unsafe(self._uri, f"its directory takes more than {self.most} bytes")
        return content


class _Capped:
    """A decompressed stream that never goes past its limit."""

    def __init__(self, stream: gzip.GzipFile, uri: str, limit: int) -> None:
        self._stream, self._uri = stream, uri
        self._limit = limit + _HEADER_BYTES
        self.headers_left: int | None = _DIRECTORY_BYTES
        """What headers may still take; None: they are read."""
        self.name = None

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _HEADER_BYTES:
            _unsafe(self._uri, f"a header in it claims {size} bytes")
        if self.headers_left is not None:
            self.headers_left -= size
            if self.headers_left < 0:
                _unsafe(self._uri, f"its headers take more than {_DIRECTORY_BYTES} bytes")
        self._check(self._stream.tell() + size)
        return self._stream.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        self._check(offset)
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    @property
    def closed(self) -> bool:
        return self._stream.closed

    def _check(self, position: int) -> None:
        if position > self._limit + 2 * tarfile.RECORDSIZE:
            _unsafe(self._uri, f"it unpacks to more than {self._limit} bytes")


def _unsafe(uri: str, why: str) -> NoReturn:
    raise GraftError(
        ErrorCode.UNSAFE_FILE, f"the archive `{uri}` is refused: {why}", hint="pack the adapter's own files, no more"
    )


def _corrupt(uri: str, why: str, error: BaseException) -> NoReturn:
    raise GraftError(ErrorCode.CORRUPT, f"the archive `{uri}` can't be read: {why}", hint="pack it again") from error
