"""Adapters as PEFT saves them: read, checked, and compiled to deltas beside a base model. Nothing is ever unpickled."""
