"""The commands and values in the pages for those who run Graft: each is taken by what it is meant for."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from graft_local import helm
from graft_operator import objects
from graft_operator.decisions.checks import pod_template_fault
from graft_operator.resource import parse_spec
from graft_operator.settings import PodDefaults, Settings

from tests.support.pools import make_pool

ROOT = Path(__file__).parents[2]
PAGES = ("docs/install.md", "docs/operations.md", "docs/security.md")
MAKEFILE = (ROOT / "Makefile").read_text()
KUBECTL = {"get", "describe", "rollout", "apply", "wait", "drain", "annotate"}


def blocks(language: str) -> list[str]:
    pages = ((ROOT / page).read_text() for page in PAGES)
    return [
        block for page in pages for block in re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    ]


COMMANDS = [line for block in blocks("sh") for line in block.splitlines() if line]
EXAMPLES = [yaml.safe_load(block) for block in blocks("yaml")]
VALUES = [example for example in EXAMPLES if "spec" not in example]
SPECS = [
    example["spec"]
    for example in EXAMPLES
    if "spec" in example and example.get("kind", "AdapterDeployment") == "AdapterDeployment"
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_one_that_there_is(command: str) -> None:
    program, verb, *arguments = shlex.split(command)
    match program:
        case "make":
            assert re.search(rf"^{verb}:", MAKEFILE, re.MULTILINE)
            assert {argument.partition("=")[0] for argument in arguments} <= {"IMAGE_PREFIX", "IMAGE_ARGS"}
        case "helm" if verb == "install":
            name, chart, *options = arguments
            values = values_of(options)
            assert helm.template(ROOT / chart, name=name, values=values)
        case "helm":
            assert verb == "test"
        case "kubectl":
            assert verb in KUBECTL or arguments[1] in KUBECTL
        case _:
            assert program == "kind"


def values_of(options: list[str]) -> dict[str, Any]:
    """What `--set` says, as Helm reads it."""
    values: dict[str, Any] = {}
    for option, text in itertools.pairwise(options):
        if option == "--set":
            path, _, value = text.partition("=")
            *parents, last = path.split(".")
            inner = values
            for parent in parents:
                inner = inner.setdefault(parent, {})
            inner[last] = value.strip("{}").split(",") if value.startswith("{") else value
    return values


@pytest.mark.parametrize("values", VALUES, ids=",".join)
def test_values_are_taken_by_the_chart_and_by_the_pods(values: dict[str, Any]) -> None:
    assert helm.template(ROOT / "charts/graft", values=values)
    defaults = PodDefaults(spec=without_nulls(values.get("podDefaults", {}).get("spec", {})))
    assert objects.build_deployment(make_pool(), "hash", Settings("graft-system", "i", pod_defaults=defaults))


@pytest.mark.parametrize("spec", SPECS)
def test_a_pool_is_taken_with_the_fields_that_its_page_has_the_administrator_allow(spec: dict[str, Any]) -> None:
    parsed = parse_spec(spec)
    assert pod_template_fault(parsed, Settings("graft-system", "i")) is not None
    fields = tuple(field for values in VALUES for field in values.get("allowedPodTemplateFields", ()))
    assert pod_template_fault(parsed, Settings("graft-system", "i", allowed_pod_template_fields=fields)) is None
    pod = objects.build_deployment(make_pool(**spec), "hash", Settings("graft-system", "i"))["spec"]["template"]["spec"]
    (volume,) = [volume for volume in pod["volumes"] if "image" in volume]
    (container,) = pod["containers"]
    assert volume["name"] in {mount["name"] for mount in container["volumeMounts"]}
    (source,) = parsed.sources
    told = container["args"].index("--source-mount")
    assert container["args"][told : told + 3] == ["--source-mount", source.name, source.mount_path]


def without_nulls(value: Any) -> Any:
    """As Helm hands values on: null takes one away."""
    if isinstance(value, dict):
        return {name: without_nulls(part) for name, part in value.items() if part is not None}
    return value


@pytest.mark.parametrize("page", PAGES)
def test_the_pages_and_headings_that_a_page_links_to_exist(page: str) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([\w-]+))?\)", (ROOT / page).read_text()):
        linked = (ROOT / page).parent / target if target else ROOT / page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_the_tests_that_hold_a_threat_back_exist() -> None:
    named = set(re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (ROOT / "docs/security.md").read_text()))
    assert len(named) > 20
    missing = [(file, test) for file, test in named if not test or f"def {test}(" not in (ROOT / file).read_text()]
    assert [(file, test) for file, test in missing if test or not (ROOT / file).exists()] == []


def test_each_threat_has_a_test_or_says_why_there_is_none() -> None:
    table = (ROOT / "docs/security.md").read_text().partition("## Threats")[2]
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")][2:]
    assert [row[0] for row in rows if "`tests/" not in " ".join(row) and "no test: " not in " ".join(row)] == []
