"""The chart, rendered without a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from graft_local import helm
from graft_operator.settings import Settings, parse_settings

CHART = Path(__file__).parents[2] / "charts/graft"


def rendered(**values: Any) -> list[dict[str, Any]]:
    files = helm.template(CHART, name="graft", namespace="graft-system", values=values)
    texts = [text for path, text in files.items() if path.endswith(".yaml")]
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


def only(documents: list[dict[str, Any]], kind: str, name: str | None = None) -> dict[str, Any]:
    (found,) = [
        document for document in documents if document["kind"] == kind and name in {None, document["metadata"]["name"]}
    ]
    return found


def operator_pod(**values: Any) -> dict[str, Any]:
    template: dict[str, Any] = only(rendered(**values), "Deployment")["spec"]["template"]
    return template


def settings_of(**values: Any) -> Settings:
    """The settings that the operator would read from the command line that the chart writes."""
    (container,) = operator_pod(**values)["spec"]["containers"]
    assert container["command"] == ["graft-operator"]
    subcommand, *arguments = container["args"]
    assert subcommand == "run"
    fields = {"$(POD_NAMESPACE)": "graft-system", "$(POD_IP)": "10.0.0.7", "$(POD_NAME)": "graft-operator-x"}
    assert {entry["name"] for entry in container["env"]} == {"POD_NAMESPACE", "POD_NAME", "POD_IP"}
    return parse_settings([fields.get(argument, argument.replace("$$(", "$(")) for argument in arguments])
