"""Which files of a base's checkpoint are read for what: the table of docs/checkpoints.md, held against Transformers."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from graft_runtime.contract.checkpoints import MODEL_FILE_PATTERNS
from graft_runtime.errors import GraftError
from graft_runtime.tokenizing.conversion import convert, converted
from graft_runtime.tokenizing.text_formats import TextFormat, load_base_format

PAGE = Path("docs/checkpoints.md")
TEXTS = ("hello world", " two  spaces\n", "Grüße 😀 你好", "</s>", "a<tool>b", "")
CORPUS = [
    "hello world, this is a text of words",
    "select * from users where id = 7",
    "Grüße aus München, 你好世界",
] * 20


def sentencepiece(kind: str, mark: str, **more: Any) -> bytes:
    import sentencepiece as library

    made = io.BytesIO()
    options: dict[str, Any] = {
        "vocab_size": 300,
        "hard_vocab_limit": False,
        "minloglevel": 2,
        "user_defined_symbols": mark,
    }
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=made, model_type=kind, **(options | more)
    )
    return made.getvalue()


def byte_level(*more: str) -> dict[str, int]:
    from tokenizers import pre_tokenizers

    return {token: index for index, token in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), *more])}


def tokenizer_json() -> bytes:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    made = Tokenizer(models.BPE(vocab=byte_level(), merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True) for token in ("<s>", "</s>", "<of tokenizer.json>")])
    return made.to_str().encode()


def tekken() -> bytes:
    pieces = [bytes([byte]) for byte in range(256)] + [b"he", b"ll", b"hell"]
    special = ["<unk>", "<s>", "</s>", "<of tekken.json>"]
    return json.dumps(
        {
            "config": {
                "pattern": r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s+",
                "default_vocab_size": len(pieces) + len(special),
                "default_num_special_tokens": len(special),
            },
            "vocab": [
                {"rank": rank, "token_bytes": base64.b64encode(piece).decode()} for rank, piece in enumerate(pieces)
            ],
            "special_tokens": [{"rank": rank, "token_str": token} for rank, token in enumerate(special)],
        }
    ).encode()


def template(file: str) -> str:
    return "{{ messages[0]['content'] }} by " + file


FILES: dict[str, Callable[[], bytes]] = {
    "tokenizer.json": tokenizer_json,
    "tokenizer.model": lambda: sentencepiece("bpe", "<of tokenizer.model>", byte_fallback=True),
    "spiece.model": lambda: sentencepiece("unigram", "<of spiece.model>", pad_id=0, eos_id=1, unk_id=2, bos_id=-1),
    "sentencepiece.bpe.model": lambda: sentencepiece("unigram", "<of sentencepiece.bpe.model>"),
    "spm.model": lambda: sentencepiece("unigram", "<of spm.model>"),
    "tekken.json": tekken,
    "vocab.json": lambda: json.dumps(byte_level("he", "<|endoftext|>", "<of vocab.json>")).encode(),
    "merges.txt": lambda: b"#version: 0.2\nh e\n",
    "vocab.txt": lambda: "\n".join(
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world", "##s", ",", "<of vocab.txt>"]
    ).encode(),
    "tokenizer_config.json": lambda: json.dumps(
        {"eos_token": "</s>", "bos_token": "<s>", "chat_template": template("tokenizer_config.json")}
    ).encode(),
    "special_tokens_map.json": lambda: json.dumps({"eos_token": "</s>"}).encode(),
    "added_tokens.json": lambda: json.dumps({"<tool>": 400}).encode(),
    "chat_template.jinja": lambda: template("chat_template.jinja").encode(),
    "chat_template.json": lambda: json.dumps({"chat_template": template("chat_template.json")}).encode(),
    "additional_chat_templates/tool_use.jinja": lambda: template("a named one").encode(),
    "generation_config.json": lambda: json.dumps({"eos_token_id": [3, 5], "temperature": 0.25, "top_k": 7}).encode(),
}
MODEL_TYPES = {
    "tokenizer.json": "llama",
    "tokenizer.model": "llama",
    "spiece.model": "t5",
    "sentencepiece.bpe.model": "xlm-roberta",
    "spm.model": "deberta-v2",
    "tekken.json": "mistral",
    "vocab.json": "gpt2",
    "vocab.txt": "bert",
}


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


ROWS = [
    cells(line) for line in PAGE.read_text().partition("| beside `config.json` |")[2].splitlines()[2:] if line.strip()
]


def named(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def made(directory: Path, files: list[str]) -> Path:
    """A checkpoint with these files, each of which says something of its own."""
    vocabulary = next((file for file in files if file in MODEL_TYPES), "tokenizer.json")
    config = {"model_type": MODEL_TYPES[vocabulary], "eos_token_id": 4, "temperature": 0.75}
    (directory / "config.json").write_text(json.dumps(config))
    for file in files:
        (directory / file).parent.mkdir(exist_ok=True)
        (directory / file).write_bytes(FILES[file]())
    return directory


def served(directory: Path, target: Path) -> TextFormat:
    """What a pod makes of a checkpoint, of which it has the files that are copied."""
    assert not {path.name for path in directory.iterdir() if path.is_file()} - set(MODEL_FILE_PATTERNS)
    if (directory / "tokenizer.json").exists():
        return load_base_format(directory, directory).text_format
    assert converted(directory, target).fault is None
    return load_base_format(target, directory).text_format


def check_tokenizer(mine: TextFormat, theirs: Any) -> None:
    for text in TEXTS:
        ids = theirs.encode(text)
        assert mine.tokenizer.encode(text) == ids, text
        assert mine.tokenizer.decode(ids) == theirs.backend_tokenizer.decode(ids, skip_special_tokens=True), text
    known = {name: token for name, token in theirs.special_tokens_map.items() if isinstance(token, str)}
    assert mine.tokenizer.named.items() >= known.items()


def check_defaults(mine: TextFormat, theirs: Any, directory: Path) -> None:
    from transformers import AutoConfig, GenerationConfig, ProcessorMixin

    own = (directory / "generation_config.json").exists()
    config = AutoConfig.from_pretrained(directory)
    made = GenerationConfig.from_pretrained(directory) if own else GenerationConfig.from_model_config(config)
    ends = made.eos_token_id if isinstance(made.eos_token_id, list) else [made.eos_token_id]
    assert set(mine.defaults.stop_tokens) >= set(ends)
    if theirs.eos_token_id is not None:
        assert theirs.eos_token_id in mine.defaults.stop_tokens
    assert mine.defaults.sampling.get("temperature") == made.temperature
    expected = theirs.chat_template
    if not (directory / "chat_template.jinja").exists():  # tokenizers know no other file, processors prefer the older
        processor, _ = ProcessorMixin.get_processor_dict(directory)
        expected = processor.get("chat_template") or expected
    assert mine.defaults.chat_template == (expected["default"] if isinstance(expected, dict) else expected)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].replace("`", ""))
async def test_a_layout(row: list[str], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    (tmp_path / "base").mkdir()
    directory = made(tmp_path / "base", named(row[0]))
    if row[1].startswith("refused: "):
        with pytest.raises(GraftError, match=row[1].removeprefix("refused: ")):
            await convert(directory, tmp_path / "converted")
        return
    mine, theirs = served(directory, tmp_path / "converted"), AutoTokenizer.from_pretrained(directory)
    (vocabulary,) = named(row[1])
    assert [file for file in MODEL_TYPES if mine.tokenizer.token_id(f"<of {file}>") is not None] == [vocabulary]
    check_tokenizer(mine, theirs)
    assert mine.defaults.chat_template == (template(*named(row[2])) if row[2] != "none" else None)
    said = {"config.json": {4}, "generation_config.json": {3, 5}}
    eos = mine.tokenizer.token_id(mine.tokenizer.named.get("eos_token", ""))
    ends = set().union(*(said.get(file, {eos}) for file in named(row[3])))
    assert set(mine.defaults.stop_tokens) == ends
    assert mine.defaults.sampling.get("temperature") == (0.25 if named(row[4]) else None)
    check_defaults(mine, theirs, directory)


def test_there_are_at_least_twenty_layouts() -> None:
    assert len(ROWS) >= 20
