"""One format of log lines for every process of Graft."""

from __future__ import annotations

import ast
import json
import logging
import subprocess
import sys
from pathlib import Path

from graft_runtime.logs import EXTRA, LINES_A_MINUTE, JsonFormatter, Throttle, request_id

ROOT = Path(__file__).parents[2]


def test_a_record_is_one_line_of_json() -> None:
    record = logging.makeLogRecord(
        {"name": "graft", "levelno": 30, "levelname": "WARNING", "msg": "a\nb", EXTRA: {"n": 1}}
    )
    token = request_id.set("r-1")
    try:
        text = JsonFormatter().format(record)
    finally:
        request_id.reset(token)
    line = json.loads(text)
    assert "\n" not in text
    assert line.pop("time").endswith("Z")
    assert line == {"level": "warning", "logger": "graft", "message": "a\nb", "requestId": "r-1", "n": 1}


def test_levels_and_quiet_libraries_are_chosen_by_the_process() -> None:
    script = (
        "import logging\n"
        "from graft_runtime.logs import configure_logs\n"
        "configure_logs(logging.DEBUG, quiet=['kopf'])\n"
        "logging.getLogger('graft').debug('told')\n"
        "logging.getLogger('kopf').info('quiet')\n"
        "logging.getLogger('kopf').warning('loud')\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert [json.loads(line)["message"] for line in ended.stderr.splitlines()] == ["told", "loud"]


def test_no_process_sets_up_logs_in_another_way() -> None:
    found = {
        path.relative_to(ROOT).as_posix()
        for folder in ("operator", "runtime")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in {"basicConfig", "dictConfig", "setFormatter"}
    }
    assert found == {"runtime/graft_runtime/logs.py"}


def test_a_library_that_is_made_to_talk_is_heard_a_minute_at_a_time() -> None:
    throttle = Throttle(["uvicorn"])

    def passes(name: str, second: float) -> bool:
        record = logging.LogRecord(name, logging.WARNING, "", 0, "", None, None)
        record.created = second
        return bool(throttle.filter(record))

    assert sum(passes("uvicorn.error", 1.0) for _ in range(1000)) == LINES_A_MINUTE
    assert passes("graft_runtime.http", 1.0)
    assert passes("uvicorn.error", 61.0)
