"""docs/reference.md names everything that a user can meet: codes, reasons, conditions, metrics, endpoints, options."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import tables
import yaml
from graft_operator.decisions.conditions import ConditionType, Reason
from graft_operator.metrics import REGISTRY as OPERATOR_METRICS
from graft_runtime.errors import ErrorCode
from graft_runtime.pod.metrics import Metrics

ROOT = Path(__file__).parents[2]
REFERENCE = (ROOT / "docs/reference.md").read_text(encoding="utf-8")


def _chart_values(values: dict[str, Any], prefix: str = "") -> list[str]:
    names = []
    for name, value in values.items():
        nested = isinstance(value, dict) and value and name not in {"resources", "podDefaults"}
        names += _chart_values(value, f"{prefix}{name}.") if nested else [f"{prefix}{name}"]
    return names


def _metrics() -> list[str]:
    return [family.name for registry in (OPERATOR_METRICS, Metrics("base").registry) for family in registry.collect()]


@pytest.mark.parametrize(
    "name",
    [
        *[code.value for code in ErrorCode],
        *[reason.value for reason in Reason],
        *[kind.value for kind in ConditionType],
        *_metrics(),
        *_chart_values(yaml.safe_load((ROOT / "charts/graft/values.yaml").read_text(encoding="utf-8"))),
    ],
)
def test_the_reference_names_it(name: str) -> None:
    assert f"`{name}`" in REFERENCE


def test_the_tables_are_those_of_the_code() -> None:
    assert tables.inserted(REFERENCE) == REFERENCE, "run `make generate`"


def test_the_table_of_codes_is_that_of_the_code() -> None:
    table = REFERENCE.partition("## Error codes")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| .+ \| (.+) \| (\d+) \|$", table, re.MULTILINE)
    assert rows == [(code.value, code.recovery.value, str(code.http_status)) for code in ErrorCode]
