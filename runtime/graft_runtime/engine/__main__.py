"""`python -m graft_runtime.engine --socket-fd N`: the engine process."""

from graft_runtime.engine.process import main

if __name__ == "__main__":
    main()
