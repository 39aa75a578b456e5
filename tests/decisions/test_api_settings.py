"""The operator's command line."""

from __future__ import annotations

import pytest
from graft_operator.settings import Settings, parse_settings

REQUIRED = ["--namespace", "graft-system", "--runtime-image", "runtime:1", "--signing-key-secret", "key"]


def test_what_is_not_said_has_the_documented_default() -> None:
    settings = parse_settings(REQUIRED)
    assert settings == Settings("graft-system", "runtime:1", signing_key_secret="key")
    assert settings.allowed_schemes == ("hf", "pvc")
    assert settings.allowed_networks == ()
    assert settings.watch_namespaces == ()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "the following arguments are required: --namespace, --runtime-image, --signing-key-secret"),
        ([*REQUIRED, "--bind-address", "some"], "argument --bind-address: invalid choice: 'some'"),
        ([*REQUIRED, "--health-port", "0"], "argument --health-port: 0 is no port: expected 1 to 65535"),
        ([*REQUIRED, "--health-port", "web"], "argument --health-port: invalid port value: 'web'"),
        ([*REQUIRED, "--allowed-scheme", "s3"], "argument --allowed-scheme: invalid choice: 's3'"),
        ([*REQUIRED, "--allowed-network", "10.0.0.1/8"], "10.0.0.1/8 has host bits set: expected a network such as"),
        (
            [*REQUIRED, "--pod-defaults", "{"],
            "argument --pod-defaults: Expecting property name enclosed in double quotes",
        ),
        ([*REQUIRED, "--pod-defaults", '{"containers": []}'], "expected JSON with metadata and spec of a pod template"),
        ([*REQUIRED, "--pod-defaults", "[]"], "expected JSON with metadata and spec of a pod template"),
        ([*REQUIRED, "--watch-name", "a"], "unrecognized arguments: --watch-name a"),
    ],
)
def test_a_bad_command_line_ends_the_process(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_settings(arguments)
    assert ended.value.code == 2
    assert told in capsys.readouterr().err
