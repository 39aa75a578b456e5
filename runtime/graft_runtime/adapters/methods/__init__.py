"""One module a PEFT method: its config → the tensors it must hold → what they add to the base."""
