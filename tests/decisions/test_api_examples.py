"""Every AdapterDeployment that we show to people is one that we take."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from graft_operator.kinds import ADAPTER_DEPLOYMENT
from graft_operator.resource import parse_manifest

ROOT = Path(__file__).parents[2]


def shown() -> list[Any]:
    files = {str(path.relative_to(ROOT)): path.read_text() for path in ROOT.glob("examples/**/*.yaml")}
    for path in (ROOT / "README.md", *ROOT.glob("docs/**/*.md")):
        for number, block in enumerate(re.findall(r"```yaml\n(.*?)```", path.read_text(), re.DOTALL)):
            files[f"{path.relative_to(ROOT)}-{number}"] = block
    return [
        pytest.param(document, id=name)
        for name, text in sorted(files.items())
        for document in yaml.safe_load_all(text)
        if isinstance(document, dict) and document.get("kind") == ADAPTER_DEPLOYMENT.name
    ]


@pytest.mark.parametrize("manifest", shown())
def test_an_example_is_valid(manifest: dict[str, Any]) -> None:
    parse_manifest(manifest)


def test_there_are_examples() -> None:
    assert shown()
