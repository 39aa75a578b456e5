"""`python -m graft_runtime.engine --socket-fd N`: the engine process."""

import os

# Before torch is imported. Threads that wait for work must not spin on cores that the API process or neighbours need.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Keys and values grow and shrink in many sizes: segments that grow keep what one size gave back usable for the next.
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

from graft_runtime.engine.process import main

if __name__ == "__main__":
    main()
