"""The base model: loaded once, its layout, and the adapters' deltas beside its modules."""
