"""The API process: HTTP, tokenising, the control port, and the engine process at arm's length. Holds no torch."""
