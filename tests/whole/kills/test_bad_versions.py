"""A bad version under an old name: the one that served goes on, also on pods that are born later, until the files are
corrected where they are. Real pods, real files, clients who ask all the time.
"""

from __future__ import annotations

import shutil
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.whole.kills.judging import RIGHT, told
from tests.whole.kills.pool import NAMESPACE

if TYPE_CHECKING:
    from tests.support.load import Load
    from tests.whole.kills.pool import Pool

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

TOLD_SECONDS = 20.0
BORN_SECONDS = 100.0
CURED_SECONDS = 80.0
"""The longest back-off, and a margin."""


def test_a_bad_version_costs_no_answer_and_is_cured_where_it_is(pool: Pool, load: Load) -> None:
    shelf = Path(pool.cluster.claim_directory(NAMESPACE, "shelf"))
    served = pool.digests()["billing"]
    _copy_cut_off(shelf / "billing", shelf / "billing-2")

    began = time.monotonic()
    pool.point("billing", "pvc://shelf/billing-2")
    pool.eventually(lambda: _billing(pool).get("reason") == "Corrupt", "the fault is told", began + TOLD_SECONDS)
    shown = _billing(pool)
    assert (shown["digest"], shown["readyReplicas"]) == (served, 2)
    assert shown["wantedDigest"] != served
    assert f"{served} goes on answering" in shown["message"]

    for uid, name in pool.pods().items():
        pool.kubectl("delete", "pod", name, "--wait=false")
        pool.eventually(partial(_is_replaced, pool, uid), "another pod serves", time.monotonic() + BORN_SECONDS)
    assert told(load, began).keys() == {RIGHT}, "no pod is left that was there before the bad version"
    assert (_billing(pool)["digest"], _billing(pool)["reason"]) == (served, "Corrupt")

    shutil.copytree(shelf / "billing", shelf / "billing-2", dirs_exist_ok=True)
    pool.eventually(pool.is_ready, "the corrected files are taken", time.monotonic() + CURED_SECONDS)
    assert "wantedDigest" not in _billing(pool)
    pool.point("billing", "pvc://shelf/billing")
    pool.eventually(pool.is_ready, "all is as it was", time.monotonic() + TOLD_SECONDS)
    assert told(load, began).keys() == {RIGHT}


def _copy_cut_off(adapter: Path, bad: Path) -> None:
    shutil.copytree(adapter, bad)
    tensors = bad / "adapter_model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-64])


def _billing(pool: Pool) -> Any:
    return next(adapter for adapter in pool.get()["status"]["adapters"] if adapter["name"] == "billing")


def _is_replaced(pool: Pool, uid: str) -> bool:
    return uid not in pool.pods() and pool.ready_replicas() == (2, {2})
