"""The engine process: the model, the step loop and the loader thread. Knows token ids and digests, not HTTP."""
