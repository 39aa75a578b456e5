"""A new error code and a new limit are one declaration each: all else follows, on both sides and in the pages.

Each is added to a copy of the runtime's package, and a process of its own that runs on the copy looks at what follows.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import graft_runtime

ROOT = Path(__file__).parents[2]
PACKAGE = Path(graft_runtime.__file__).parent


def run_with(directory: Path, file: str, before: str, declaration: str, script: str) -> None:
    """Run a script on a copy of the runtime in which a declaration was put before a line of one file."""
    copy = directory / "graft_runtime"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    text = (copy / file).read_text()
    assert text.count(before) == 1
    (copy / file).write_text(text.replace(before, declaration + before))
    paths = os.pathsep.join([str(directory), str(ROOT), str(ROOT / "docs")])
    ended = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


CODES = '''\
    TOO_WARM = "TooWarm", Recovery.BY_ITSELF
    """The toy has to cool down first."""
    BATTERY_EMPTY = "BatteryEmpty", Recovery.OUTSIDE
    """Somebody must charge the toy."""
    NOT_A_TOY = "NotAToy"
    """It is no toy."""
'''
WHAT_FOLLOWS_FROM_CODES = """
from dataclasses import replace
from pathlib import Path

import tables
from graft_operator.decisions.plan import make_plan
from graft_runtime.contract.status import BaseState
from graft_runtime.contract.wire import Fault
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.http.faults import error_response, fault_response
from graft_runtime.messages import EngineFault
from graft_runtime.store.fetches import retry_seconds
from tests.support.pools import BILLING, NOW, SETTINGS, carried_out, fresh, resolved, spec_of, with_pods

EXPECTED = {
    ErrorCode.TOO_WARM: (503, "2", 1.0, "Reconciling", "passes by itself"),
    ErrorCode.BATTERY_EMPTY: (400, None, 4.0, "Stalled", "may change outside the pool"),
    ErrorCode.NOT_A_TOY: (400, None, None, "Stalled", "needs a person"),
}
WORDS = {
    ErrorCode.TOO_WARM: "The toy has to cool down first.",
    ErrorCode.BATTERY_EMPTY: "Somebody must charge the toy.",
    ErrorCode.NOT_A_TOY: "It is no toy.",
}
first = fresh(spec_of(BILLING), resolutions=resolved(BILLING))
made = carried_out(first, make_plan(first, SETTINGS, NOW))

def told(**report):
    "Return the conditions that are True, and the reason and message of each."
    observed = with_pods(made, **report)
    (status,) = make_plan(observed, SETTINGS, NOW).statuses.values()
    return {found.type: (found.reason, found.message) for found in status.conditions if found.status == "True"}

page = tables.inserted(Path("docs/reference.md").read_text())
for code, (http, after, seconds, condition, recovery) in EXPECTED.items():
    error = GraftError(code, "the toy does not play")
    # of pods: HTTP on both ports, another try, the way from the engine
    assert (error_response(error).status_code, fault_response(error).status_code) == (http, http), code
    assert error_response(error).headers.get("Retry-After") == after, code
    assert retry_seconds(code, 0) == seconds, code
    assert EngineFault.of(error).error().code is code
    # of the operator: what the status says of an adapter, and of a base, with this fault
    fault = Fault.model_validate_json(Fault.of(error).canonical_json())
    of_adapter = told(faults={"billing": fault})
    assert of_adapter.keys() == {"Available", condition}, (code, of_adapter)
    assert code.value in of_adapter[condition][1]
    of_base = told(base=BaseState.FAILED, base_fault=fault, ready=False)
    assert of_base[condition][0] == code.value, (code, of_base)
    assert condition == "Stalled" or "Stalled" not in of_base
    # of the reference
    assert f"| `{code}` | {WORDS[code]} | {recovery} | {http} |" in page
"""


def test_a_new_error_code_is_one_declaration(tmp_path: Path) -> None:
    run_with(tmp_path, "errors.py", '    INTERNAL = "Internal"', CODES, WHAT_FOLLOWS_FROM_CODES)


LIMIT = '''\
    max_toys: int = Field(default=7, ge=1, le=9)
    """Toys in one box."""
'''
WHAT_FOLLOWS_FROM_A_LIMIT = """
from graft_operator.objects import build_runtime_config
from graft_operator.objects.config_maps import build_config_map

from graft_operator.resource.crd import build_crd
from graft_runtime.contract.config import RUNTIME_CONFIG_FILE, EngineConfig, RuntimeConfig
from graft_runtime.errors import GraftError
from graft_runtime.messages import FRAME_HEADER_BYTES, Start, decode_command, encode_command
from tests.support.pools import SETTINGS, make_pool

(version,) = build_crd()["spec"]["versions"]
engine = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["engine"]
assert engine["properties"]["maxToys"] == {
    "description": "Toys in one box.", "type": "integer", "default": 7, "maximum": 9, "minimum": 1
}
assert engine["default"]["maxToys"] == 7

usual, other = make_pool(), make_pool(engine={"maxToys": 3})
config = build_runtime_config(other)
assert build_runtime_config(usual).engine.max_toys == 7
assert config.config_hash() != build_runtime_config(usual).config_hash(), "a change rolls the pods"

mounted = build_config_map(other, config)["data"][RUNTIME_CONFIG_FILE]
start = Start("/nowhere", "tiny", "auto", RuntimeConfig.read(mounted).engine)
arrived = decode_command(encode_command(start)[FRAME_HEADER_BYTES:])
assert arrived.limits.max_toys == 3

for wrong, why in ((10, "less than or equal to 9"), ("3", "valid integer"), (True, "valid integer")):
    try:
        make_pool(engine={"maxToys": wrong})
    except GraftError as error:
        assert "spec.engine.maxToys" in error.message and why in error.message, error.message
    else:
        raise AssertionError(wrong)
"""


def test_a_new_limit_is_one_declaration(tmp_path: Path) -> None:
    run_with(tmp_path, "contract/config.py", "    max_rank: int", LIMIT, WHAT_FOLLOWS_FROM_A_LIMIT)
