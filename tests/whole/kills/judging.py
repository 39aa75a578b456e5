"""What became of the load's requests since a moment, and that every name answers by now."""

from __future__ import annotations

import logging
import time
from collections import Counter

from tests.support.load import Load, Result
from tests.support.waiting import wait_until

logger = logging.getLogger(__name__)

ROUND_SECONDS = 20.0
"""In which the clients have asked for every name."""
RIGHT = "right"


def told(load: Load, since: float) -> Counter[str]:
    """How many requests ended in which way since then; none was wrong, and by now each name answers."""
    now = time.monotonic()

    def every_name_answers() -> bool:
        return {result.asked.name for result in load.results(now) if right_and_begun(result, now)} == load.names

    wait_until(every_name_answers, "every name answers", ROUND_SECONDS)
    results = load.results(since)
    wrong = [describe(result, since) for result in results if result.outcome == "wrong"]
    assert not wrong, "\n".join(wrong)
    counts = Counter(str(result.outcome.value) for result in results)
    for line in (str(dict(counts)), *(describe(result, since) for result in results if result.outcome != RIGHT)):
        logger.info(line)
    return counts


def right_and_begun(result: Result, since: float) -> bool:
    return result.outcome == RIGHT and result.began >= since


def describe(result: Result, since: float) -> str:
    asked = result.asked
    what = f"{asked.name}, {asked.tokens} tokens{' streamed' if asked.streamed else ''}"
    return f"{result.began - since:+.2f} to {result.ended - since:+.2f} s: {what}: {result.outcome}: {result.why!r}"
