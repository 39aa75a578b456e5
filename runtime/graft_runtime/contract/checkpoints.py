"""Checkpoints: where one comes from, which of its files count, what its digest and a name look like."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Annotated

from pydantic import Field

from graft_runtime.contract.wire import Wire

ADAPTER_NAME_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$"
DIGEST_PATTERN = r"^sha256:[0-9a-f]{64}$"
Digest = Annotated[str, Field(pattern=DIGEST_PATTERN, max_length=71)]
Revision = Annotated[str, Field(max_length=256)]
AdapterName = Annotated[str, Field(pattern=ADAPTER_NAME_PATTERN, min_length=1, max_length=63)]
_PART = ADAPTER_NAME_PATTERN.strip("^$")
MODEL_NAME_MAX = 127
ModelName = Annotated[str, Field(pattern=rf"^{_PART}(/{_PART})?$", min_length=1, max_length=MODEL_NAME_MAX)]
"""A base model's: one that the Hub knows as `OWNER/NAME` keeps its name."""

# The digest of a checkpoint covers the files that match these patterns, at the top of its directory, or in a folder of
# it where the pattern names one. A change of either list gives the same directory another digest.
ADAPTER_FILE_PATTERNS = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
MODEL_FILE_PATTERNS = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer.model",
    "tekken.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "spm.model",
    "chat_template.jinja",
    "chat_template.json",
    # what sentence-transformers makes of hidden states and logits
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "[0-9]_Pooling/config.json",
    "[0-9]_Dense/config.json",
    "[0-9]_Dense/model.safetensors",
)
_MODULE_FOLDER = "[0-9]_[A-Za-z]+"
"""Sentence-transformers' number and class of a module: the only folders whose files belong to a checkpoint."""


def is_module_folder(name: str) -> bool:
    """Tell whether files in a folder of this name may belong to a checkpoint."""
    return re.fullmatch(_MODULE_FOLDER, name) is not None


def may_belong(path: str) -> bool:
    """Tell whether a file may belong to a checkpoint: at the top of its directory, or in the folder of a module."""
    folder, inside, name = path.rpartition("/")
    return name not in {"", ".", ".."} and "\0" not in name and (not inside or is_module_folder(folder))


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Tell whether a path matches one of the patterns, in which `*` stands for no slash."""
    folders = path.count("/")
    return any(pattern.count("/") == folders and fnmatchcase(path, pattern) for pattern in patterns)


class Source(Wire):
    """Where a checkpoint comes from."""

    uri: str = Field(max_length=1024)
    revision: Revision | None = None


class CheckpointFile(Wire):
    """One file of a checkpoint."""

    path: str = Field(pattern=rf"^({_MODULE_FOLDER}/)?[^/\x00]+$", max_length=255)
    size: int = Field(ge=0)
    """Bytes."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Hex digits."""
