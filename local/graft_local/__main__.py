"""`graft-local`: a real Kubernetes API on one machine, whose pods are processes."""

# Each command imports what it needs, no more: the node agent must not wait for the demo's imports.
# ruff: noqa: PLC0415

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from graft_local.cache import cache_directory
from graft_local.errors import LocalClusterError

Command = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status. A fault is told on standard error."""
    options = _parser().parse_args(arguments)
    command: Command = options.command
    try:
        return command(options)
    except LocalClusterError as error:
        print(f"graft-local: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="graft-local", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Command, summary: str, *, state: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=summary)
        sub.set_defaults(command=command)
        if state:
            help_text = "the cluster's directory (default: %(default)s)"
            sub.add_argument("--state", type=_path, default=cache_directory() / "local", metavar="DIR", help=help_text)
        return sub

    add("build", _build, "find the control plane's programs, or build them", state=False)
    up = add("up", _up, "start the cluster in the background, with Graft and the examples' model and adapters in it")
    up.add_argument("--bare", action="store_true", help="Kubernetes alone")
    up.add_argument("--timeout", type=float, default=120.0, metavar="SECONDS")
    add("down", _down, "stop the cluster; its state stays")
    add("status", _status, "say whether the cluster runs, and which of its parts")
    supervise = add("supervise", _supervise, "run the cluster in the foreground")
    supervise.add_argument("--without-node", action="store_true", help="no node, so no pods run")
    supervise.add_argument("--without-services", action="store_true", help="ClusterIPs lead nowhere")
    supervise.add_argument("--detached", action="store_true", help="go to the background once the directory is ours")
    supervise.add_argument("--lifeline", type=int, metavar="FD", help="end when nobody writes to this pipe any more")
    node = add("node", _node, "run the node agent (the cluster starts it by itself)")
    node.add_argument("--kubeconfig", type=_path, required=True, metavar="FILE")
    node.add_argument("--name", required=True)
    services = add("services", _services, "run the proxy for ClusterIPs (the cluster starts it by itself)", state=False)
    services.add_argument("--kubeconfig", type=_path, required=True, metavar="FILE")
    demo = add("demo", _demo, "the whole tour in a cluster of its own, which ends with it")
    demo.set_defaults(state=cache_directory() / "demo")
    return parser


def _path(text: str) -> Path:
    return Path(text).expanduser().absolute()


def _build(_: argparse.Namespace) -> int:
    from graft_local.binaries import ensure_binaries
    from graft_local.progress import Progress

    for name, path in ensure_binaries(Progress()).paths.items():
        print(f"{name}\t{path}")
    return 0


def _up(options: argparse.Namespace) -> int:
    from graft_local.cluster import LocalCluster

    cluster = LocalCluster.start(options.state, detached=True, timeout=options.timeout)
    print(f"the local cluster runs; its state is in {cluster.state}")
    print(f"use it:  export KUBECONFIG={cluster.kubeconfig} PATH={cluster.kubectl_binary.parent}:$PATH")
    if not options.bare:
        from graft_local import demo

        demo.set_up(cluster)
        print(f"try it:  kubectl apply -n {demo.NAMESPACE} -f {demo.EXAMPLES}")
    print(f"stop it: graft-local down --state {cluster.state}")
    return 0


def _down(options: argparse.Namespace) -> int:
    from graft_local.cluster import stop

    print("the local cluster has stopped" if stop(options.state) else "no local cluster runs there")
    return 0


def _status(options: argparse.Namespace) -> int:
    from graft_local.supervisor import SupervisorLock

    if not SupervisorLock(options.state).is_held():
        print(f"no local cluster runs in {options.state}")
        return 1
    for file in sorted((options.state / "run").glob("*.pid")):
        print(f"{file.stem}\tprocess {file.read_text().strip()}")
    return 0


def _supervise(options: argparse.Namespace) -> int:
    from graft_local.cluster import supervise

    return supervise(
        options.state,
        node=not options.without_node,
        services=not options.without_services,
        detached=options.detached,
        lifeline=options.lifeline,
    )


def _node(options: argparse.Namespace) -> int:
    from graft_process_node import agent
    from graft_process_node.node_setting import NodeSetting

    from graft_local.network import NODE_PORT, ClusterNetwork

    network = ClusterNetwork.read(options.state)
    setting = NodeSetting(options.name, options.state, str(network.node_address), NODE_PORT, network.pod_network)
    return _until_stopped(agent.run(options.kubeconfig, setting))


def _services(options: argparse.Namespace) -> int:
    from graft_local import services

    return _until_stopped(services.run(options.kubeconfig))


def _demo(options: argparse.Namespace) -> int:
    from graft_local import demo

    return demo.run(options.state)


def _until_stopped(work: Coroutine[Any, Any, None]) -> int:
    """Run `work` until it ends or SIGTERM or SIGINT comes, which cancels it."""

    async def run() -> None:
        task = asyncio.ensure_future(work)
        loop = asyncio.get_running_loop()
        for which in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(which, task.cancel)
        try:
            await task
        except asyncio.CancelledError:
            return

    asyncio.run(run())
    return 0


if __name__ == "__main__":
    sys.exit(main())
