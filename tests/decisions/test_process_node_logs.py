"""Writing and reading containers' logs."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from graft_process_node.log_reading import LogRequest, LogRequestError, existing_lines, follow_lines
from graft_process_node.log_writer import LogWriter

NOW = datetime(2026, 1, 1, 12, 0, 10, tzinfo=UTC)
RECORDS = (
    b"2026-01-01T12:00:00.000000001Z stdout F one\n"
    b"2026-01-01T12:00:05.000000001Z stderr F two words\n"
    b"2026-01-01T12:00:09.000000001Z stdout P thr\n"
    b"2026-01-01T12:00:09.500000001Z stdout F ee\n"
)


def shown(log: Path, **query: str) -> str:
    return b"".join(existing_lines(log, LogRequest.of(query, NOW))).decode()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "0.log"
    path.write_bytes(RECORDS)
    return path


def test_lines_are_shown_without_their_frame(log: Path) -> None:
    assert shown(log) == "one\ntwo words\nthree\n"


def test_times_are_shown_on_demand(log: Path) -> None:
    assert shown(log, timestamps="true").splitlines()[0] == "2026-01-01T12:00:00.000000001Z one"


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"tailLines": "1"}, "ee\n"),
        ({"tailLines": "0"}, ""),
        ({"tailLines": "99"}, "one\ntwo words\nthree\n"),
        ({"sinceSeconds": "6"}, "two words\nthree\n"),
        ({"sinceTime": "2026-01-01T12:00:09Z"}, "three\n"),
    ],
)
def test_a_part_can_be_asked_for(log: Path, query: dict[str, str], expected: str) -> None:
    assert shown(log, **query) == expected


@pytest.mark.parametrize("query", [{"tailLines": "x"}, {"sinceTime": "yesterday"}, {"limitBytes": "1k"}])
def test_a_query_without_meaning_is_refused(query: dict[str, str]) -> None:
    with pytest.raises(LogRequestError, match="invalid log request"):
        LogRequest.of(query, NOW)


def test_what_was_rotated_away_comes_first(log: Path) -> None:
    Path(f"{log}.1").write_bytes(b"2026-01-01T11:00:00.000000001Z stdout F zero\n")

    assert shown(log) == "zero\none\ntwo words\nthree\n"


def test_no_log_yet_is_an_empty_one(tmp_path: Path) -> None:
    assert shown(tmp_path / "0.log") == ""


def append(log: Path, line: str) -> None:
    with log.open("a") as file:
        file.write(f"2026-01-01T12:00:10.000000001Z stdout F {line}\n")


async def test_following_shows_new_lines_and_those_of_a_rotated_file(log: Path) -> None:
    found: list[bytes] = []
    asked = LogRequest.of({"tailLines": "1", "follow": "true"}, NOW)
    async for line in follow_lines(log, asked, lambda: len(found) > 1):
        found.append(line)
        if len(found) == 1:
            append(log, "four")
        elif len(found) == 2:
            append(log, "five")
            os.rename(log, f"{log}.1")
            append(log, "six")

    assert found == [b"ee\n", b"four\n", b"five\n", b"six\n"]


def test_a_writer_writes_whole_lines_of_both_streams(tmp_path: Path) -> None:
    writer = LogWriter(str(tmp_path / "log"), 10_000)
    writer.write("stdout", b"he")
    writer.write("stderr", b"oops\n")
    writer.write("stdout", b"llo\nrest")
    writer.close()

    records = [line.split(" ", 1)[1] for line in (tmp_path / "log").read_text().splitlines()]
    assert records == ["stderr F oops", "stdout F hello", "stdout P rest"]
    assert writer.tail() == "heoops\nllo\nrest"


def test_a_log_is_bounded_by_two_files(tmp_path: Path) -> None:
    log = tmp_path / "log"
    writer = LogWriter(str(log), 1000)
    for number in range(200):
        writer.write("stdout", f"line {number}\n".encode())
    writer.close()

    assert log.stat().st_size <= 1000
    assert Path(f"{log}.1").stat().st_size <= 1000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1"]
    assert shown(log).splitlines()[-1] == "line 199"


def test_a_line_without_end_does_not_stay_in_memory(tmp_path: Path) -> None:
    writer = LogWriter(str(tmp_path / "log"), 10**6)
    for _ in range(10):
        writer.write("stdout", b"x" * 10_000)
    writer.write("stdout", b"\n")
    writer.close()

    assert shown(tmp_path / "log") == "x" * 100_000 + "\n"
