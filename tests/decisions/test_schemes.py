"""The table of schemes: what lies below a prefix, who reads a scheme, and that nobody else spells one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from graft_operator.resource import parse_spec
from graft_operator.settings import DEFAULT_SCHEMES
from graft_runtime.contract.schemes import SCHEMES, deepest_prefix, listed, path_below, refused_character, scheme_of
from graft_runtime.store.sources.declared import READERS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("uri", "prefix", "path"),
    [
        ("pvc://shelf/sql", "pvc://shelf/", ("sql",)),
        ("pvc://shelf/eu/sql", "pvc://shelf/eu/", ("sql",)),
        ("pvc://shelf/eu", "pvc://shelf/eu/", ()),
        ("pvc://shelf/eu/", "pvc://shelf/eu/", ()),
        ("pvc://shelf/europe/sql", "pvc://shelf/", ("europe", "sql")),
        ("pvc://shelf", "pvc://shelf/", ()),
        ("pvc://shelves/sql", None, None),
        ("hf://acme/sql", "hf://acme", ("sql",)),
        ("hf://acme2/sql", None, None),
    ],
)
def test_a_uri_lies_below_the_deepest_prefix_by_whole_segments(
    uri: str, prefix: str | None, path: tuple[str, ...] | None
) -> None:
    found = deepest_prefix(["pvc://shelf/", "pvc://shelf/eu/", "hf://acme"], uri)
    assert found == prefix
    assert found is None or path_below(found, uri) == path


@pytest.mark.parametrize("character", list("?#%\\\t\r\n\0"))
def test_a_path_has_one_spelling(character: str) -> None:
    assert refused_character(f"pvc://shelf/a{character}b") == character
    assert refused_character("pvc://shelf/a-b_c.d") is None


@pytest.mark.parametrize(("uri", "name"), [("hf://a/b", "hf"), ("s3://a/b", None), ("hf", None), ("", None)])
def test_a_scheme_is_the_table_s_or_none(uri: str, name: str | None) -> None:
    found = scheme_of(uri)
    assert (found and found.name) == name


def test_words_are_listed_as_in_a_sentence() -> None:
    assert [listed("a"), listed("ab"), listed("abc")] == ["a", "a or b", "a, b or c"]


def test_every_scheme_has_a_reader() -> None:
    assert READERS.keys() == SCHEMES.keys()


def test_the_chart_knows_the_schemes_and_their_default() -> None:
    schema = json.loads((ROOT / "charts/graft/values.schema.json").read_text())
    values = yaml.safe_load((ROOT / "charts/graft/values.yaml").read_text())
    assert schema["properties"]["allowedSchemes"]["items"]["enum"] == list(SCHEMES)
    assert tuple(values["allowedSchemes"]) == DEFAULT_SCHEMES == ("hf", "pvc")


def test_a_scheme_is_spelled_in_one_module() -> None:
    spelled = re.compile("|".join(f"{name}://" for name in SCHEMES if name != "https") + r"|[\"'](hf|pvc)[\"']")
    found = {
        str(path.relative_to(ROOT))
        for root in ("operator", "runtime")
        for path in (ROOT / root).rglob("*.py")
        if spelled.search(path.read_text())
    }
    assert found == {"runtime/graft_runtime/contract/schemes.py"}


def test_a_base_may_be_the_whole_of_a_source() -> None:
    """One rule for prefixes: what is a source's own directory lies in it, for pods and for the operator."""
    spec = {"baseModel": {"uri": "file:///mnt/model"}, "sources": [{"name": "model", "mountPath": "/mnt/model"}]}
    assert parse_spec(spec).base_model.served_name == "model"


# In a process of its own: the models of the operator are made when they are imported, from the table as it is then.
TOY = """
import contextlib, sys
from pathlib import Path
from graft_runtime.contract.schemes import SCHEMES, Scheme
from graft_runtime.store.sources.declared import READERS
from graft_runtime.store.sources.mounted import MountedDirectory

toy = Scheme(
    name="toy", mount="remote", shapes=("BUCKET/PATH",), pattern="[a-z]+(/[a-z]+)+", meaning="a folder of a bucket",
    prefix="BUCKET/", prefix_pattern="[a-z]+", models=False,
)

@contextlib.contextmanager
def open_toy(place, access):
    import os
    assert place.mount.name == "bucket" and place.prefix == "toy://shelf/"
    descriptor = os.open(Path(sys.argv[1], *place.path), os.O_RDONLY)
    try:
        yield MountedDirectory(descriptor, place.uri, access.settled_seconds)
    finally:
        os.close(descriptor)

SCHEMES[toy.name], READERS[toy.name] = toy, open_toy

# From here on nothing knows of it but the two tables.
import json
from graft_operator.decisions.checks import adapter_fault
from graft_operator.decisions.wanted_adapters import inline_adapters
from graft_operator.objects.config_maps import build_runtime_config
from graft_operator.objects.pool import Pool
from graft_operator.resource import parse_spec
from graft_operator.resource.crd import build_crd
from graft_operator.settings import parse_settings
from graft_runtime.store.cache import Cache
from graft_runtime.store.sources import Sources

settings = parse_settings(
    ["--namespace=n", "--runtime-image=i", "--signing-key-secret=s", "--allowed-scheme=toy", "--allowed-scheme=pvc"]
)
spec = parse_spec({
    "baseModel": {"uri": "pvc://models/base"},
    "sources": [
        {"name": "models", "claimName": "c"},
        {"name": "bucket", "uriPrefixes": ["toy://shelf/"], "secretName": "keys"},
    ],
    "adapters": [{"name": "sql", "uri": "toy://shelf/sql"}],
})
assert "self.startsWith('toy://')" in json.dumps(build_crd())
assert "toy://BUCKET/PATH is a folder of a bucket" in json.dumps(build_crd())
pool = Pool("team", "support", "uid", 1, spec)
(wanted,) = inline_adapters(pool)
assert adapter_fault(spec, wanted, settings) is None
config = build_runtime_config(pool)
cached = Cache(Path(sys.argv[2]), None, tuple).copy(Sources(config.sources, {}), wanted.source.uri, "adapter")
print(*sorted(path.name for path in cached.directory.iterdir()))
"""


def test_a_new_source_is_a_row_and_a_reader(tmp_path: Path) -> None:
    adapter = tmp_path / "shelf" / "sql"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    arguments = [sys.executable, "-c", TOY, str(tmp_path / "shelf"), str(tmp_path / "cache")]
    ended = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == ["adapter_config.json", "adapter_model.safetensors"]
