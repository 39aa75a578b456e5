"""How a base model that embeds makes one vector of a text's hidden states, by the files of sentence-transformers.

Holds no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graft_runtime.adapters.strict_json import parse_object
from graft_runtime.base.files import CONFIG_FILE, not_a_model, read_object, read_text
from graft_runtime.errors import ErrorCode

MODULES_FILE = "modules.json"
TRANSFORMER_FILE = "sentence_bert_config.json"
TOKENIZER_FILE = "tokenizer_config.json"
NO_LIMIT = 10**9
"""Transformers writes a larger number where a tokenizer has no limit."""
_HINT = (
    "serve a model whose modules are Transformer, Pooling, Dense and Normalize, in that order; or leave modules.json "
    "out of its checkpoint, which then has the pooling of its kind"
)
_OLD_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
MODES = frozenset(_OLD_MODES.values())
ACTIVATIONS = frozenset({"Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid"})
"""Of torch.nn, as they are made without arguments."""
_VECTOR = "sentence_embedding"


@dataclass(frozen=True)
class Dense:
    """A linear layer after the pooling, and what follows it."""

    folder: Path
    """With its weights."""
    activation: str


@dataclass(frozen=True)
class Pooling:
    """What comes after the hidden states of a text."""

    modes: Sequence[str] = ()
    """Sentence-transformers' names of what is taken of the states, side by side; none: by the kind of the base."""
    dense: Sequence[Dense] = ()
    """In order."""
    scales: bool = True
    """Vectors get the length 1 in the end."""
    max_tokens: int | None = None
    """Of a text; None: as many as the base takes."""

    def cut(self, vector: Sequence[float], dimensions: int | None) -> list[float]:
        """Return the first numbers of a vector, or all (None), scaled to the length 1 where vectors have it."""
        kept = [*vector[:dimensions]]
        length = math.hypot(*kept) if self.scales else 1.0
        return [value / length for value in kept] if length else kept


def read_pooling(directory: Path, name: str) -> Pooling:
    """Read how a base model's checkpoint has vectors made.

    Args:
        directory: of the checkpoint.
        name: how errors call the base model.

    Raises:
        GraftError: NotAModel, where its modules are none that are known.
    """
    if not (directory / MODULES_FILE).exists():
        return Pooling()
    modules = _modules(directory, name)
    kinds = [kind for kind, _ in modules]
    scales = kinds[-1:] == ["Normalize"]
    rest = kinds[2:-1] if scales else kinds[2:]
    if kinds[:2] != ["Transformer", "Pooling"] or set(rest) - {"Dense"} or modules[0][1] != directory:
        raise not_a_model(name, f"its modules.json has the modules {', '.join(kinds) or 'of none'}", _HINT)
    dense = [_dense(folder, name) for kind, folder in modules if kind == "Dense"]
    return Pooling(_modes(modules[1][1], name), dense, scales, _max_tokens(directory, name))


def _modules(directory: Path, name: str) -> list[tuple[str, Path]]:
    """Return the class and the folder of each module, but for those that do nothing to what is not trained."""
    content = b'{"modules": %b}' % read_text(directory / MODULES_FILE, name)
    entries = parse_object(content, f"modules.json of base model `{name}`", ErrorCode.NOT_A_MODEL)["modules"]
    if not isinstance(entries, list) or not all(_is_module(entry) for entry in entries):
        raise not_a_model(name, "its modules.json is no list of modules with `type` and `path`", _HINT)
    modules = [(entry["type"].rpartition(".")[2], directory / entry["path"]) for entry in entries]
    return [module for module in modules if module[0] != "Dropout"]


def _is_module(entry: Any) -> bool:
    """Tell whether an entry names a class, and a folder at the top: what the store copies."""
    if not isinstance(entry, dict) or not isinstance(entry.get("type"), str):
        return False
    path = entry.get("path")
    return isinstance(path, str) and "/" not in path and path not in {".", ".."} and "\0" not in path


def _modes(folder: Path, name: str) -> list[str]:
    config = read_object(folder / CONFIG_FILE, name)
    told = config.get("pooling_mode")
    if told is None:
        told = [mode for key, mode in _OLD_MODES.items() if config.get(key) is True] or "mean"
    modes = [told] if isinstance(told, str) else told
    if not isinstance(modes, list) or not modes or not MODES.issuperset(map(str, modes)):
        raise not_a_model(name, f"its pooling is {told!r}, expected some of {', '.join(sorted(MODES))}", _HINT)
    return modes


def _dense(folder: Path, name: str) -> Dense:
    config = read_object(folder / CONFIG_FILE, name)
    activation = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    kind = str(activation).rpartition(".")[2]
    of_vectors = {config.get(key) or _VECTOR for key in ("module_input_name", "module_output_name")} == {_VECTOR}
    if not str(activation).startswith("torch.nn.") or kind not in ACTIVATIONS:
        expected = ", ".join(sorted(ACTIVATIONS))
        raise not_a_model(name, f"its {folder.name} has the activation {activation!r}, expected {expected}", _HINT)
    if config.get("use_residual") or not of_vectors:
        raise not_a_model(name, f"its {folder.name} does more than a linear layer on vectors", _HINT)
    return Dense(folder, kind)


def _max_tokens(directory: Path, name: str) -> int | None:
    """Return the tokens that a text may have, from where the versions of sentence-transformers write it."""
    config = read_object(directory / TRANSFORMER_FILE, name) if (directory / TRANSFORMER_FILE).exists() else {}
    if config.get("do_lower_case") is True:
        what = f"its {TRANSFORMER_FILE} asks for `do_lower_case`"
        raise not_a_model(name, what, "have its tokenizer do so, and save it again")
    if "message" in (config.get("modality_config") or {}):
        what = f"its {TRANSFORMER_FILE} has texts go through a chat template (`message` in `modality_config`)"
        raise not_a_model(name, what, "save it again without a chat template")
    tokenizer = directory / TOKENIZER_FILE
    most = config.get("max_seq_length")
    if most is None and tokenizer.exists():
        most = read_object(tokenizer, name).get("model_max_length")
    return most if isinstance(most, int) and 0 < most < NO_LIMIT else None
