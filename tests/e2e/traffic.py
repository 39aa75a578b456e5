"""Constant traffic from a pod, and what became of its requests while something was done."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e.cluster import Pool

_ASKER = Path(__file__).parent / "asker.py"
_POD = "asker"


@dataclass
class Disturbance:
    """A row of the report."""

    name: str
    seconds: float = 0.0
    requests: int = 0
    failed_kept: int = 0
    failed_new: int = 0
    slowest_seconds: float = 0.0
    failing_seconds: float = 0.0
    """From the first request that failed to the last."""
    faults: dict[str, int] = field(default_factory=dict)

    @property
    def failed(self) -> int:
        return self.failed_kept + self.failed_new

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds if self.seconds else 0.0


class Traffic:
    """Runs in the pool's namespace until the namespace goes.

    Args:
        report: the directory for `report.md`, which is written after each disturbance.
        seconds: how long each step of the installation took.
    """

    def __init__(
        self, pool: Pool, image: str, models: tuple[str, ...], report: Path, seconds: dict[str, float]
    ) -> None:
        self._pool, self._report, self._seconds = pool, report, seconds
        began = time.monotonic()
        self.rows: list[Disturbance] = []
        self._expected: dict[str, str] = {}
        script = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": _POD}}
        pool.cluster.apply(
            script | {"data": {"asker.py": _ASKER.read_text()}},
            _pod(image, ["python3", "/asker/asker.py", f"{pool.name}.{pool.namespace}.svc:8000", ",".join(models)]),
            namespace=pool.namespace,
        )
        pool.cluster.eventually(lambda: {line["model"] for line in self._lines()} == set(models), "all models answer")
        self._expected = {line["model"]: line["text"] for line in self._lines() if line["text"] is not None}
        assert len(set(self._expected.values())) == len(models), "the answers must tell the models apart"
        seconds["base and adapters answered"] = seconds["two pods Ready"] + time.monotonic() - began

    @contextmanager
    def disturbed(self, name: str) -> Iterator[Disturbance]:
        """What is asked within the block, and for three seconds after it, becomes a row of the report."""
        row = Disturbance(name)
        self.rows.append(row)
        before, began = len(self._lines()), time.monotonic()
        yield row
        time.sleep(3)  # what was begun in the block ends
        lines = self._lines()[before:]
        row.seconds = round(time.monotonic() - began, 1)
        row.requests = len(lines)
        row.slowest_seconds = max(line["seconds"] for line in lines)
        failed = [line for line in lines if line["text"] != self._expected[line["model"]]]
        row.failed_kept = sum(line["kept"] for line in failed)
        row.failed_new = len(failed) - row.failed_kept
        begun = [line["began"] for line in failed]
        row.failing_seconds = round(max(begun) - min(begun), 1) if begun else 0.0
        row.faults = dict(Counter(line["fault"] or f"answered {line['text']!r}" for line in failed))
        write_report(self._report, self.rows, self._seconds)

    def _lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._pool.kubectl("logs", _POD, "--tail=-1").splitlines()]


def _pod(image: str, command: list[str]) -> dict[str, Any]:
    container = {
        "name": _POD,
        "image": image,
        "command": command,
        "volumeMounts": [{"name": "script", "mountPath": "/asker"}],
        # Without, it gets what the pods leave of the processors, which is nothing while one starts.
        "resources": {"requests": {"cpu": "500m", "memory": "64Mi"}},
    }
    volume = {"name": "script", "configMap": {"name": _POD}}
    spec = {"containers": [container], "volumes": [volume], "terminationGracePeriodSeconds": 0}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": _POD}, "spec": spec}


def write_report(directory: Path, rows: list[Disturbance], seconds: dict[str, float]) -> None:
    """`report.json`, and `report.md` with tables of the same."""
    directory.mkdir(parents=True, exist_ok=True)
    told = {"seconds": seconds, "disturbances": [asdict(row) for row in rows]}
    (directory / "report.json").write_text(json.dumps(told, indent=2) + "\n")
    lines = ["| from `helm install` on | s |", "|---|---|", *(f"| {what} | {s:.1f} |" for what, s in seconds.items())]
    lines += [
        "",
        "| what is done | s | requests | a second | failed, kept-alive | failed, new | failing for, s | slowest, s |",
    ]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for row in rows:
        counts = f"{row.requests} | {row.rate:.0f} | {row.failed_kept} | {row.failed_new} | {row.failing_seconds:.1f}"
        lines.append(f"| {row.name} | {row.seconds:.0f} | {counts} | {row.slowest_seconds:.2f} |")
    (directory / "report.md").write_text("\n".join(lines) + "\n")
