"""What is in the images that a node of our own runs: read from the archives that it took them from."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.quick

MEGABYTE = 10**6
ARCHIVES = "GRAFT_E2E_ARCHIVES"
"""The variable of a node of our own with their directory."""
BILL = "opt/graft/sbom.cdx.json"


class Image:
    """An archive in OCI's layout."""

    def __init__(self, path: Path) -> None:
        self.sizes: list[int] = []
        """Bytes of the files of each layer."""
        self.bill: Any = None
        with tarfile.open(path) as archive:
            (described,) = json.load(_part(archive, "index.json"))["manifests"]
            manifest = json.load(_blob(archive, described))
            self.config: dict[str, Any] = json.load(_blob(archive, manifest["config"]))["config"]
            for layer in manifest["layers"]:
                with tarfile.open(fileobj=_blob(archive, layer), mode="r|*") as files:
                    self.sizes.append(sum(self._look_at(files, file) for file in files))

    def _look_at(self, files: tarfile.TarFile, file: tarfile.TarInfo) -> int:
        if file.name == BILL:
            self.bill = json.load(_part(files, file))
        return file.size


def _blob(archive: tarfile.TarFile, described: dict[str, Any]) -> Any:
    return _part(archive, "blobs/" + described["digest"].replace(":", "/"))


def _part(archive: tarfile.TarFile, member: str | tarfile.TarInfo) -> Any:
    file = archive.extractfile(member)
    assert file is not None
    return file


@pytest.fixture(scope="module", params=["operator", "runtime"])
def built(request: pytest.FixtureRequest) -> tuple[str, Image]:
    if ARCHIVES not in os.environ:
        pytest.skip("the images of another cluster are not at hand")
    return request.param, Image(Path(os.environ[ARCHIVES]) / f"graft-{request.param}.tar")


def test_an_image_says_what_it_is_and_what_is_in_it(built: tuple[str, Image]) -> None:
    program, image = built
    assert image.config["User"] == "65532:65532"
    labels = {name.rpartition(".")[2]: value for name, value in image.config["Labels"].items()}
    assert labels["title"] == f"graft-{program}"
    assert (labels["version"], labels["licenses"]) == ("0.1.0", "Apache-2.0")
    assert len(labels["revision"]) == 40
    parts = {part["name"] for part in image.bill["components"]}
    assert {"operator": "kopf", "runtime": "torch"}[program] in parts


def test_an_image_is_small_and_the_code_a_small_part_of_it(built: tuple[str, Image]) -> None:
    """The last layers are the code and the licence: those below change with uv.lock alone."""
    program, image = built
    assert sum(image.sizes) < {"operator": 200, "runtime": 2500}[program] * MEGABYTE
    assert sum(image.sizes[-2:]) < 10 * MEGABYTE
