"""Adapters whose files mean harm, by what they do: each is made of a good one and put on the pod's shelf."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from tests.support.adapters import build_adapter

WEIGHTS, CONFIG, TOKENIZER = "adapter_model.safetensors", "adapter_config.json", "tokenizer.json"
TEMPLATES = {
    "power": "{{ 9**(9**9) }}",
    "memory": "{{ 'a' * 4000000000 }}",
    "printing": "{% for a in range(99999) %}{% for b in range(99999) %}12345678{% endfor %}{% endfor %}",
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{{ messages[0].content }}",
    "nearly": "{% for a in range(3000) %}{% for b in range(900) %}{% endfor %}{% endfor %}{{ messages[0].content }}",
}
"""The last takes about as long as a template may."""
LONG = 60_000


class Workshop:
    """Makes adapters for a base.

    Args:
        base: its checkpoint, with a tokenizer.
        directory: for what is made.
    """

    def __init__(self, base: Path, directory: Path) -> None:
        self._base, self._directory = base, directory
        self._plain = build_adapter(base, directory / "plain", 7)

    def good(self, name: str, seed: int) -> Path:
        return build_adapter(self._base, self._directory / name, seed)

    def speaking(self, name: str, seed: int) -> Path:
        """Make a good one with a tokenizer and a chat template of its own."""
        adapter = self.good(name, seed)
        return self._with_tokenizer(adapter, normalizer={"type": "Lowercase"}, template="{{ messages[0].content }}:")

    def tokenizers(self) -> list[Path]:
        """Stages that multiply, words without end, special tokens of a mebibyte; the last two are allowed."""
        level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        bert = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "lowercase": True}
        word = {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 1000, "vocab": {"[UNK]": 0} | {"a" * n: n for n in range(1, 200)},
        }  # fmt: skip
        growing = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 64}
        pieces = [["<unk>", 0.0], *(["a" * length, -1.0] for length in range(1, 128))]
        made: dict[str, dict[str, Any]] = {
            "levels": {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [level] * 40}},
            "normalizers": {"normalizer": {"type": "Sequence", "normalizers": [bert | {"strip_accents": True}] * 500}},
            "words": {"model": word},
            "special": {"added": "s" * (1 << 20)},
            "growing": {"normalizer": growing},
            "pieces": {"model": {"type": "Unigram", "unk_id": 0, "vocab": pieces, "byte_fallback": False}},
        }
        return [self._with_tokenizer(self._copy(name), **change) for name, change in made.items()]

    def templates(self) -> list[Path]:
        """Chat templates that take all time or memory."""
        made = []
        for name, template in TEMPLATES.items():
            adapter = self._copy(name)
            (adapter / "chat_template.jinja").write_text(template)
            made.append(adapter)
        return made

    def long_paths(self) -> list[Path]:
        """Module paths of 60,000 characters, in 121 KB."""
        made = []
        for number in range(6):
            path = f"base_model.model.{'a.' * (LONG // 2)}{number}"
            made.append(
                self._with_header(f"paths{number}", {f"{path}.lora_A.weight": [1, 1], f"{path}.lora_B.weight": [1, 1]})
            )
        return made

    def costly(self) -> list[Path]:
        """PiSSA on every module, which takes a decomposition of each; an invocation of 256 tokens."""
        made = [self._with_config(f"pissa{seed}", init_lora_weights="pissa") for seed in range(4)]
        return [*made, self._with_config("invoked", alora_invocation_tokens=[64] * 255 + [65])]

    def long_names(self) -> list[Path]:
        """Names of four mebibytes where errors would say them."""
        long = "n" * (4 << 20)
        return [
            self._with_header("header", {f"base_model.model.{long}.lora_A.weight": [1, 1]}),
            self._with_config("peft-type", peft_type=long),
            self._with_config("target", target_modules=[long]),
            self._with_config("rank-pattern", rank_pattern={long: 4}),
        ]

    def sparse(self) -> list[Path]:
        """A file of 1 TiB that takes no room."""
        adapter = self._copy("sparse")
        os.truncate(adapter / WEIGHTS, 1 << 40)
        return [adapter]

    def _copy(self, name: str) -> Path:
        return Path(shutil.copytree(self._plain, self._directory / name))

    def _with_config(self, name: str, **fields: Any) -> Path:
        adapter = self._copy(name)
        config = json.loads((adapter / CONFIG).read_text())
        (adapter / CONFIG).write_text(json.dumps(config | fields))
        if "init_lora_weights" in fields:  # other weights than the others'
            tensors = load_file(adapter / WEIGHTS)
            save_file({key: tensor * (2 + len(name)) for key, tensor in tensors.items()}, adapter / WEIGHTS)
        return adapter

    def _with_header(self, name: str, shapes: dict[str, list[int]]) -> Path:
        adapter, end, header = self._copy(name), 0, dict[str, Any]()
        for tensor, shape in shapes.items():
            header[tensor] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + 4]}
            end += 4
        head = json.dumps(header).encode()
        (adapter / WEIGHTS).write_bytes(struct.pack("<Q", len(head)) + head + bytes(end))
        return adapter

    def _with_tokenizer(self, adapter: Path, *, added: str = "", template: str = "", **stages: Any) -> Path:
        for file in ("tokenizer_config.json", "special_tokens_map.json"):
            if (self._base / file).exists():
                shutil.copy(self._base / file, adapter / file)
        content = json.loads((self._base / TOKENIZER).read_text()) | stages
        if added:
            token = {"content": added, "special": True, "single_word": False, "lstrip": False, "rstrip": False}
            content["added_tokens"].append(token | {"id": 300, "normalized": False})
        (adapter / TOKENIZER).write_text(json.dumps(content))
        if template:
            (adapter / "chat_template.jinja").write_text(template)
        return adapter


def archives() -> dict[str, bytes]:
    """A directory of a zip that is all there is, a sparse tar that expands, and a bomb; by file name."""
    many, bomb = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(many, "w") as archive:
        for number in range(30_000):
            archive.writestr(f"{number}", b"")
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(CONFIG, b"{}")
        archive.writestr(WEIGHTS, bytes(64 << 20))
    return {"many.zip": many.getvalue(), "bomb.zip": bomb.getvalue(), "holes.tar.gz": _sparse(20_000)}


def _sparse(blocks: int) -> bytes:
    import gzip

    info = tarfile.TarInfo(WEIGHTS)
    info.type = tarfile.GNUTYPE_SPARSE
    head = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    holes = b"00000000001\0" * 42
    head[386:482], head[482:483] = holes[:96], b"\1"
    head[148:156] = b"        "
    head[148:156] = b"%06o\0 " % sum(head[:512])
    return gzip.compress(bytes(head) + (holes + b"\1" + bytes(7)) * blocks)
