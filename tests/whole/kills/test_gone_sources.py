"""Sources that are gone or hold other bytes by now: pods that start later get what is served from those that serve it.
Real pods, real files, clients who ask all the time.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.whole.kills.judging import RIGHT, told
from tests.whole.kills.pool import NAMESPACE, POOL

if TYPE_CHECKING:
    from tests.support.load import Load
    from tests.whole.kills.pool import Pool

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(500)]

BORN_SECONDS = 150.0


def test_pods_that_start_later_need_no_source(pool: Pool, load: Load) -> None:
    before, began = pool.pods().keys(), time.monotonic()
    with sources_gone(Path(pool.cluster.claim_directory(NAMESPACE, "shelf"))):
        pool.kubectl("scale", f"ad/{POOL}", "--replicas=3")
        pool.eventually(lambda: pool.ready_replicas() == (3, {3}), "a third pod serves", began + BORN_SECONDS)

        rolled = time.monotonic()
        template = {"spec": {"podTemplate": {"metadata": {"annotations": {"rolled": "once"}}}}}
        pool.kubectl("patch", f"ad/{POOL}", "--type=merge", "-p", json.dumps(template))
        pool.eventually(
            lambda: not before & pool.pods().keys() and pool.is_ready() and pool.ready_replicas() == (3, {3}),
            "no pod is left that had its bytes from a source",
            rolled + 2 * BORN_SECONDS,
        )
        pool.kubectl("scale", f"ad/{POOL}", "--replicas=2")
        pool.eventually(
            lambda: len(pool.pods()) == 2 and pool.ready_replicas() == (2, {2}),
            "one pod less, which is gone",
            time.monotonic() + BORN_SECONDS,
        )
    assert told(load, began).keys() == {RIGHT}


@contextlib.contextmanager
def sources_gone(shelf: Path) -> Iterator[None]:
    """Take everything off the shelf, put other bytes in place of `billing`; have all as it was after the block."""
    away = shelf.with_name("away")
    away.mkdir()
    for checkpoint in shelf.iterdir():
        checkpoint.rename(away / checkpoint.name)
    shutil.copytree(away / "sql", shelf / "billing")
    try:
        yield
    finally:
        shutil.rmtree(shelf / "billing")
        for checkpoint in away.iterdir():
            checkpoint.rename(shelf / checkpoint.name)
        away.rmdir()
