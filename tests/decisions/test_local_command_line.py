"""The command line of the local cluster, and how it tells of progress."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from graft_local import cluster
from graft_local.__main__ import main
from graft_local.errors import LocalClusterError
from graft_local.progress import Progress


def test_a_fault_is_told_with_its_hint_and_exits_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise LocalClusterError("the disk is full", hint="make room")

    monkeypatch.setattr(cluster, "stop", fail)
    assert main(["down", "--state", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "graft-local: the disk is full\n\nhint: make room\n"


def test_down_where_nothing_runs_is_no_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["down", "--state", str(tmp_path / "none")]) == 0
    assert "no local cluster runs there" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()


def test_status_tells_that_nothing_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--state", str(tmp_path)]) == 1
    assert f"no local cluster runs in {tmp_path}" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["fly"], ["up", "--state"], ["node", "--state", "x"]])
def test_a_wrong_command_line_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(arguments)
    assert refused.value.code == 2
    assert "usage: graft-local" in capsys.readouterr().err


def test_a_step_tells_how_long_it_took_and_whether_it_failed() -> None:
    out = io.StringIO()
    with Progress(out).step("loading") as step:
        step.update("1 of 2")  # too soon after the start for a log
    with pytest.raises(ValueError, match="broken"), Progress(out).step("mending"):
        raise ValueError("broken")
    first, second = out.getvalue().splitlines()
    assert first.startswith("loading: 0.")
    assert second.startswith("mending: failed after 0.")
