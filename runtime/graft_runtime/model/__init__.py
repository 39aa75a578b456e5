"""The base model: loaded once, its layout, and the adapters' deltas beside its modules."""

import logging

# torchao, which Transformers imports where it is installed, makes torch warn of what torchao itself does.
logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
