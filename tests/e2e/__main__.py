"""`make e2e`: Graft's images and chart on a real kubelet, with traffic that must not notice what is done to them.

With KUBECONFIG=FILE on that cluster, whose nodes must have or reach the images (IMAGE_PREFIX). Else on a node of its
own, which ends with this process.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from graft_local.cache import cache_directory, exclusively
from graft_local.errors import LocalClusterError
from graft_local.progress import Progress

from tests.e2e.lab import node
from tests.e2e.lab.images import ImageBuilds
from tests.e2e.lab.programs import ensure_packages, ensure_programs, missing

_NAMESPACES = (
    *("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child"),
    *("--propagation", "private", "--mount-proc"),
)
"""With the command in them ends all that it has started and mounted, however it or this process ends."""
_OF_A_NODE = ("--net", "--uts", "--ipc")


def main() -> int:
    """Run the tests; their exit status."""
    parser = argparse.ArgumentParser(prog="make e2e", description=__doc__)
    for stage in ("--images", "--node"):  # in namespaces
        parser.add_argument(stage, type=Path, metavar="DIRECTORY", help=argparse.SUPPRESS)
    parser.add_argument("--kubeconfig", type=Path, metavar="FILE", help="of a cluster that is there")
    parser.add_argument("--report", type=Path, default=Path(".cache/e2e"), metavar="DIRECTORY")
    parser.add_argument("--quick", action="store_true", help="what takes few minutes, as CI does")
    parser.add_argument("--if-possible", action="store_true", help="end well, and say why, where no node can run")
    parser.add_argument("pytest", nargs="*", help="further arguments of pytest")
    options = parser.parse_args()
    quick = ["-m", "quick"] if options.quick else []
    tests = [sys.executable, "-m", "pytest", "tests/e2e", *quick, *options.pytest]
    os.environ["GRAFT_E2E_REPORT"] = str(options.report.absolute())
    try:
        if options.images is not None:
            ImageBuilds(cache_directory() / "e2e", Progress()).archives(
                ensure_programs(Progress())["pause"], options.images
            )
            return 0
        if options.node is not None:
            return node.run(options.node, ensure_programs(Progress()), sorted(options.node.glob("*.tar")), tests)
        if options.kubeconfig is not None:
            environment = os.environ | {"KUBECONFIG": str(options.kubeconfig.absolute())}
            return subprocess.run(tests, check=False, env=environment).returncode
        if options.if_possible and (why := missing() or _no_namespaces() or _no_packages()):
            print(f"e2e: left out: {why}")
            return 0
        return _on_a_node_of_its_own(sys.argv[1:])
    except LocalClusterError as error:
        print(f"e2e: {error}", file=sys.stderr)
        return 1


def _no_namespaces() -> str | None:
    """Return why this process may make no namespaces and mount nothing in them; None where it may."""
    mounted = [*_NAMESPACES, *_OF_A_NODE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    done = subprocess.run(mounted, check=False, capture_output=True, text=True)
    return None if done.returncode == 0 else f"no namespaces can be made here: {done.stderr.strip()}"


def _no_packages() -> str | None:
    """Return why a package of Debian's that a node needs can't be installed; None where all are there."""
    try:
        ensure_packages(Progress())
    except LocalClusterError as error:
        return str(error)
    return None


def _on_a_node_of_its_own(arguments: Sequence[str]) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    ensure_programs(Progress())
    with exclusively(cache_directory() / "e2e.lock"):  # the cgroups of a node have one name on this machine
        state = Path(tempfile.mkdtemp(prefix="graft-e2e-"))
        try:
            return _run_stages(state, arguments)
        finally:
            node.forget(state)


def _run_stages(state: Path, arguments: Sequence[str]) -> int:
    for stage, namespaces in (("--images", ()), ("--node", _OF_A_NODE)):
        again = [sys.executable, "-m", "tests.e2e", stage, str(state), *arguments]
        if status := subprocess.run([*_NAMESPACES, *namespaces, *again], check=False).returncode:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
