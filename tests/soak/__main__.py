"""`make soak`: good clients on three adapters of a real pod, attacked in turn in every way that is known.

It prints a table, writes JSON, and ends with 1 where the good clients noticed more than they may.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from pathlib import Path

from tests.soak.soak import run


def main() -> int:
    """Soak as the command line says; the exit status."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="of attacks and quiet times together")
    parser.add_argument("--rounds", type=int, default=2, help="of all attacks, in that time")
    parser.add_argument("--out", type=Path, metavar="FILE", help="for the figures, as JSON")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended before it was over"))
    with tempfile.TemporaryDirectory(prefix="graft-soak-") as directory:
        found = run(Path(directory), options.seconds, options.rounds, lambda line: print(line, flush=True))
    print(found.table())
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(found.as_json(), indent=1) + "\n")
    return 1 if found.faults() else 0


if __name__ == "__main__":
    sys.exit(main())
