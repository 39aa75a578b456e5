"""`python -m graft_runtime.engine --socket-fd N`: the engine process."""

import os

# Before torch is imported: threads that wait for work must not spin on cores that the API process or neighbours need.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from graft_runtime.engine.process import main

if __name__ == "__main__":
    main()
