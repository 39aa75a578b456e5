"""Files of adapters that are damaged by chance: a seed is a case."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from graft_runtime.adapters.files import AdapterFiles, read_adapter_files
from graft_runtime.adapters.fit import fitted
from graft_runtime.adapters.layout import BaseLayout, EmbeddingShape, LinearShape
from graft_runtime.adapters.methods.registry import METHODS
from graft_runtime.errors import GraftError
from graft_runtime.messages import Generate, Sampling, ServedAdapter
from hypothesis import HealthCheck, Phase, settings, strategies

from tests.support import cases

CASES, METHOD_CASES = cases.PLANNED["files of adapters"], cases.PLANNED["files of other methods"]
COMPILED, MOUNTED = cases.PLANNED["compiled adapters"] // 2, cases.PLANNED["mounted adapters"] // 2
"""From plain adapters; as many from other methods."""
MAX_RANK = 16

PREFIX = "base_model.model."
PATHS = [f"model.layers.{layer}.self_attn.{name}" for layer in (0, 1) for name in ("q_proj", "v_proj")]
LAYOUT = BaseLayout(
    "acme/base",
    {path: LinearShape(8, 8 if "q_proj" in path else 6) for path in PATHS} | {"lm_head": LinearShape(8, 12)},
    {"": "Model", "model": "Inner"},
    {"model.embed_tokens": EmbeddingShape(12, 8)},
    {"model.norm": {"weight": 8}},
    input_embedding="model.embed_tokens",
    resizable=frozenset({"model.embed_tokens", "lm_head"}),
    former={"embed_out": "lm_head"},
    wrapper="model",
)
CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj", "v_proj"],
    "rank_pattern": {"v_proj": 2},
    "alpha_pattern": {},
    "bias": "none",
    "use_dora": False,
    "use_rslora": False,
    "modules_to_save": None,
    "layers_to_transform": None,
    "base_model_name_or_path": "/root/models/llama",
}
SHAPES = {
    f"{PREFIX}{path}.lora_{side}.weight": shape
    for path in PATHS
    for side, shape in (("A", [4 if "q_proj" in path else 2, 8]), ("B", [8, 4] if "q_proj" in path else [6, 2]))
}

FIELDS = [
    *CONFIG, "exclude_modules", "layers_pattern", "lora_bias", "init_lora_weights", "fan_in_fan_out", "r",
    "target_parameters",
    "trainable_token_indices", "alora_invocation_tokens", "layer_replication", "ensure_weight_tying", "task_type",
    "auto_mapping", "megatron_config", "eva_config", "inference_mode", "revision", "an_option_of_next_year",
]  # fmt: skip
TEXTS = [
    "q_proj", "all-linear", "ALL-LINEAR", "pissa", "olora", "loftq", "gaussian", "all", "lora_only", "LORA", "IA3", "",
    "\0",
    "(", "[[a]", "(?i)q", ".*q_proj", "a{1,9999}", "(?=.*q).*", r"model\.layers\.\d+\..*", r"(a)\1", "*", "\\",
    "\ud800", "é",
    "(.|.)" * 60 + "!", ".*" * 40, "(?:" * 60, "x" * 3000,
]  # fmt: skip
TEXTS += sorted(METHODS)
SCALARS: list[Any] = [None, True, False, 0, -1, 1, 2, 4, 8, 17, 0.5, 1e308, -1e308, 1 << 70, *TEXTS]
LISTS: list[Any] = [
    ["q_proj", "v_proj"],
    ["model"],
    ["lm_head"],
    [""],
    ["."],
    [0],
    [0, 1],
    [-1],
    [1 << 40],
    [[0, 4], [2, 5]],
]
OBJECTS: list[Any] = [{"q_proj": 4}, {"v_proj": 2}, {"v_proj": 0}, {"": [1, 2]}, {"embed_tokens": [1, 2, 3]}]
OBJECTS += [{"(.|.)" * 60: 4}, {"(": 4}, {".*": 4}, {f"{index}.*.*": 2 for index in range(70)}]
ENDINGS = ["lora_B.bias", "lora_magnitude_vector", "bias", "lora_embedding_A", "lora_A", ""]
NAMES = [
    *(f"{PREFIX}{name}.weight" for name in ("lm_head", "model.norm", "model.embed_tokens", "embed_out")),
    *(f"{PREFIX}{PATHS[0]}.{ending}" for ending in ENDINGS),
    *(f"{PREFIX}model.embed_tokens.{role}" for role in ("lora_embedding_A", "lora_embedding_B")),
    f"{PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta",
    f"{PREFIX}model.layers.{'9' * 5000}.q_proj.lora_A.weight",
    f"{PREFIX}{'a.' * 3000}lora_A.weight",
    f"{PATHS[0]}.lora_A.default.weight",
    *("", ".", "..", PREFIX, "__metadata__", "lora_A.weight", ".lora_A.weight", "prompt_embeddings", "\0"),
]
ENTRY_CHANGES = ["dtype", "shape", "offsets", "drop", "swap", "extra", "name", "json"]
DTYPES = ["F32", "F16", "BF16", "F64", "I32", "BOOL", "F8_E4M3", "F4", "C64", "", 3, None]
NUMBERS = [0, 1, 2, 4, 6, 8, 12, 17, -1, 1 << 31, 1 << 61, 1 << 64, 2.0, "4", None]
EXTRA_SHAPES = [[8], [6], [12, 8], [13, 8], [2, 8], [4, 12], [8, 4], [], [0], [1, 1, 1]]
NUMERALS = [float("nan"), float("inf"), 3.4e38, 1e30, 1e20, -1e20, 0.0, 1e-45]
OPTIONS: dict[str, Any] = {
    "use_dora": True,
    "lora_bias": True,
    "bias": "all",
    "modules_to_save": ["lm_head", "norm"],
    "init_lora_weights": "pissa",
    "trainable_token_indices": [1, 3],
    "alora_invocation_tokens": [1],
    "ensure_weight_tying": True,
    "use_rslora": True,
}
RENAMES: list[Callable[[str], str]] = [
    lambda name: name.removeprefix(PREFIX),
    lambda name: name.replace(".weight", ".default.weight"),
    lambda name: "_orig_mod." + name,
    lambda name: "module." + name,
    lambda name: name.replace("model.model.layers", "model.layers"),
    lambda name: name.replace("model.layers", "language_model.layers"),
    lambda name: name.replace("layers.1", "layers.7"),
    lambda name: name.replace("_A", "_B"),
    str.upper,
]


def some_json(chance: random.Random, depth: int = 0) -> Any:
    kind = chance.randrange(12)
    if kind < 6 or depth > 2:
        return chance.choice(SCALARS)
    if kind < 8:
        return chance.choice(LISTS)
    if kind < 10:
        return chance.choice(OBJECTS)
    inner = [some_json(chance, depth + 1) for _ in range(chance.randrange(3))]
    return inner if kind == 10 else {str(chance.choice(TEXTS)): value for value in inner}


_GENERATOR = random.Random(7)
_COUNT = sum(rows * columns for rows, columns in SHAPES.values())
NUMBERS_IN_IT = struct.pack(f"<{_COUNT}f", *(_GENERATOR.uniform(-1, 1) for _ in range(_COUNT)))


class Case:
    """An adapter in memory: its config, the header of its weights, and their bytes."""

    def __init__(self) -> None:
        self.config: dict[str, Any] = json.loads(json.dumps(CONFIG))
        self.header: dict[str, Any] = {}
        self.end = 0
        for name, shape in SHAPES.items():
            self.add(name, shape)
        self.data = NUMBERS_IN_IT

    def add(self, name: str, shape: list[int]) -> None:
        size = 4
        for dimension in shape:
            size *= dimension
        self.header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [self.end, self.end + size]}
        self.end += size

    def files(self) -> tuple[bytes, bytes]:
        header = json.dumps(self.header).encode()
        return json.dumps(self.config).encode(), struct.pack("<Q", len(header)) + header + self.data


def fields(case: Case, chance: random.Random) -> None:
    case.config[chance.choice(FIELDS)] = some_json(chance)


def options(case: Case, chance: random.Random) -> None:
    """Options that mean something, together with tensors that they may or may not speak of."""
    for field in chance.sample(sorted(OPTIONS), chance.randrange(3)):
        case.config[field] = OPTIONS[field]
    for _ in range(chance.randrange(3)):
        case.add(chance.choice(NAMES), chance.choice(EXTRA_SHAPES))
    case.data = case.data.ljust(case.end, b"\x01")[: case.end]


def entries(case: Case, chance: random.Random) -> None:
    names = [name for name, entry in case.header.items() if isinstance(entry, dict)]
    if not names:
        return
    name, other = chance.choice(names), chance.choice(names)
    entry = case.header[name]
    match chance.choice(ENTRY_CHANGES):
        case "dtype":
            entry["dtype"] = chance.choice(DTYPES)
        case "shape":
            entry["shape"] = [chance.choice(NUMBERS) for _ in range(chance.randrange(10))]
        case "offsets":
            entry["data_offsets"] = [chance.choice(NUMBERS) for _ in range(chance.randrange(4))]
        case "drop":
            del case.header[name]
        case "swap":
            case.header[name], case.header[other] = case.header[other], case.header[name]
        case "extra":
            case.header[chance.choice(NAMES)] = entry
        case "name":
            case.header[chance.choice(NAMES)] = case.header.pop(name)
        case "json":
            case.header[name] = some_json(chance)


def renames(case: Case, chance: random.Random) -> None:
    rename, every = chance.choice(RENAMES), chance.choice([1, 1, 1, 2])
    names = [rename(name) if not index % every else name for index, name in enumerate(case.header)]
    case.header = dict(zip(names, case.header.values(), strict=True))


def values(case: Case, chance: random.Random) -> None:
    if len(case.data) < 4:
        return
    at = 4 * chance.randrange(len(case.data) // 4)
    put = (struct.pack("<f", chance.choice(NUMERALS)) * chance.choice([1, 8, len(case.data)]))[: len(case.data) - at]
    case.data = case.data[:at] + put + case.data[at + len(put) :]


CHANGES = [fields, options, entries, renames, values]


def bytes_changed(content: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(content) + 1)
    kind = chance.choice(["flip", "flip", "cut", "splice", "double"])
    if kind == "cut":
        return content[:start]
    if kind == "double":
        return content + content[start:]
    end = start + 1 if kind == "flip" else min(len(content), start + chance.randrange(40))
    return content[:start] + chance.randbytes(1 if kind == "flip" else chance.randrange(12)) + content[end:]


def write(directory: Path, case: Case, chance: random.Random) -> None:
    """One case on the disk."""
    for change in chance.choices(CHANGES, k=chance.choice([0, 1, 1, 2, 2, 3])):
        change(case, chance)
    config, weights = case.files()
    damaged = chance.randrange(6)
    (directory / "adapter_config.json").write_bytes(bytes_changed(config, chance) if damaged == 0 else config)
    (directory / "adapter_model.safetensors").write_bytes(bytes_changed(weights, chance) if damaged == 1 else weights)


def survivor(directory: Path, layout: BaseLayout = LAYOUT, max_rank: int = MAX_RANK) -> AdapterFiles | None:
    """What is read from the disk and fits the layout; None for a typed error."""
    try:
        files, _ = fitted(read_adapter_files(directory, name="x", max_rank=max_rank), layout)
    except GraftError:
        return None
    assert 0 <= files.facts.rank <= max_rank
    assert all(layout.kind(part.path) for part in files.parts)
    named = {tensor.name for part in files.parts for tensor in part.tensors.values()}
    assert named == set(files.tensors), "no tensor is left over"
    return files


SEEDS = strategies.integers(0, (1 << 64) - 1)
"""Of one case each: a failure is told by its seed."""
thorough = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],  # a seed has nothing to shrink to, and tracing makes each case slow
)


PROMPT = [256, 5, 9, 33, 7]


def answers(engine: Any) -> dict[str, list[int]]:
    greedy = Sampling(temperature=0.0)
    return engine.answers(  # type: ignore[no-any-return]
        [Generate("base", PROMPT, 6, (), greedy), Generate("good", PROMPT, 6, (ServedAdapter("good", 1.0),), greedy)]
    )


def case_of(adapter: Path) -> Case:
    """A real adapter, to be changed as the small one is."""
    case = Case()
    weights = (adapter / "adapter_model.safetensors").read_bytes()
    length = 8 + int.from_bytes(weights[:8], "little")
    case.header, case.data = json.loads(weights[8:length]), weights[length:]
    case.header.pop("__metadata__", None)
    case.config, case.end = json.loads((adapter / "adapter_config.json").read_text()), len(case.data)
    return case


def generated(engine: Any, names: tuple[str, ...]) -> dict[str, list[int]]:
    """The tokens of these requests, once all have ended; another one may fail by itself."""
    found: dict[str, list[int]] = {name: [] for name in names}
    while engine.engine.busy:
        for event in engine.step():
            if getattr(event, "request", None) in found:
                assert event.fault is None, event.fault
                found[event.request] += event.tokens
    return found
