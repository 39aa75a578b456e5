"""`graft-operator run …`: the operator as the chart starts it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence

from graft_runtime.logs import configure_logs

from graft_operator.settings import Settings, parse_settings

USAGE = "usage: graft-operator run --namespace NAMESPACE --runtime-image IMAGE --signing-key-secret NAME [options]"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 after a signal, 1 without the lease, 2 for arguments that can't be understood."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] != "run":
        sys.stderr.write(f"{USAGE}\n")
        return 2
    _end_on_sigterm()
    settings = parse_settings(arguments[1:])
    configure_logs(getattr(logging, settings.log_level.upper()), quiet=["kopf", "asyncio", "aiohttp"])
    return asyncio.run(_run(settings))


def _end_on_sigterm() -> None:
    """End the process on SIGTERM while it still imports: the kernel spares process 1 from signals without a handler."""
    signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))


async def _run(settings: Settings) -> int:
    # They take seconds: the handler comes first.
    from graft_operator.application import Operator  # noqa: PLC0415
    from graft_operator.clients.elector import LeaseLostError  # noqa: PLC0415

    try:
        await Operator(settings).run()
    except LeaseLostError as error:
        logging.getLogger(__name__).error("ends, for another operator may lead: %s", error)  # noqa: TRY400
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
