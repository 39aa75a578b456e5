"""Random tokenizers of strangers, judged and run: `python -m tests.support.random_tokenizers BASE COUNT SEED`.

A process of its own: what passes the checks is run in it, and must neither end it nor keep it.
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from graft_runtime.errors import GraftError
from graft_runtime.tokenizing.checks import check_tokenizer
from graft_runtime.tokenizing.files import Pipeline, TokenizerFiles
from graft_runtime.tokenizing.stages import KINDS, MODELS
from graft_runtime.tokenizing.worker import limit_processor

SECONDS = 300
"""Of a processor, for all of them."""
TEXTS = ("a" * 600, " " * 600, "ab a▁ <s>\n\t" * 60, "Über 你好 😀 \ufdfa\u0345\x00" * 20, "")
INSIDE = dict(zip(KINDS, ("normalizers", "pretokenizers", "processors", "decoders"), strict=True))
LETTERS = ("", "a", "b", "ab", " ", "▁", "##", "Ġ", "x" * 40)
FLAGS = (
    *("add_prefix_space", "trim_offsets", "use_regex", "split", "invert", "individual_digits", "cleanup", "clean_text"),
    *("handle_chinese_chars", "lowercase", "strip_left", "strip_right"),
)
BEHAVIOURS = ("Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous")


def part(draw: random.Random, stage: str, depth: int = 0) -> Any:
    """One part of a stage: now and then of another stage, or none at all."""
    kind = draw.choice(sorted(KINDS[stage if draw.random() > 0.03 else draw.choice(sorted(KINDS))]))
    if kind == "Sequence":
        count = draw.choice((0, 1, 2, 3, 5, 17)) if depth < 3 else 0
        return {"type": kind, INSIDE[stage]: [part(draw, stage, depth + 1) for _ in range(count)]}
    flags: dict[str, Any] = {name: draw.random() < 0.5 for name in FLAGS}
    if kind == "Precompiled":
        flags["precompiled_charsmap"] = "AAAA"
    if kind in ("Split", "Replace"):
        known = {"String": draw.choice(LETTERS)} if draw.random() < 0.7 else {"Regex": r"\s+"}
        flags["pattern"] = known if draw.random() < 0.95 else {"Regex": "(a+)+$"}
    return {
        "type": kind,
        **flags,
        "strip_accents": draw.choice((None, True, False)),
        "replacement": draw.choice(("▁", "a", " ")),
        "prepend_scheme": draw.choice(("always", "never", "first")),
        "prepend": draw.choice(LETTERS),
        "prefix": draw.choice(LETTERS),
        "suffix": draw.choice(LETTERS),
        "content": draw.choice(LETTERS),
        "delimiter": draw.choice((" ", "a")),
        "behavior": draw.choice(BEHAVIOURS),
        "length": draw.choice((0, 1, 5)),
        "start": draw.choice((0, 1, 5)),
        "stop": draw.choice((0, 1, 5)),
        "pad_token": "<pad>",
        "word_delimiter_token": "|",
        "cls": ["<s>", 0],
        "sep": ["</s>", draw.choice((1, 10**9))],
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<s>", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    }


def model(draw: random.Random) -> dict[str, Any]:
    pieces = ["<unk>", *dict.fromkeys(draw.choices((*LETTERS[1:], "##a", "a" * 100, "<0x61>", "Ġa"), k=8))]
    if draw.random() < 0.05:
        pieces.append("a" * 129)
    kind = draw.choice((*sorted(MODELS), "BPE", "Unigram"))
    vocabulary: Any = {piece: number for number, piece in enumerate(pieces)}
    if kind == "Unigram":
        vocabulary = [[piece, draw.choice((0.0, -1.0, -1e9))] for piece in pieces]
    return {
        "type": kind,
        "vocab": vocabulary,
        "merges": [["a", "b"]] if {"a", "b", "ab"} <= {*pieces} and draw.random() < 0.8 else [],
        "unk_token": draw.choice(("<unk>", "nowhere")),
        "unk_id": draw.choice((0, None, 1000)),
        "byte_fallback": draw.random() < 0.5,
        "fuse_unk": draw.random() < 0.5,
        "ignore_merges": draw.random() < 0.5,
        "continuing_subword_prefix": draw.choice(("##", "")),
        "max_input_chars_per_word": draw.choice((0, 1, 100, 128) * 5 + (1000,)),
    }


def tokenizer(draw: random.Random) -> dict[str, Any]:
    stages = {stage: part(draw, stage) if draw.random() < 0.7 else None for stage in KINDS}
    texts = draw.choices((*LETTERS[1:], "<s>", "\n", "é"), k=draw.choice((0, 0, 2)))
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    added = [
        {"id": 9 + number, "content": text, **{flag: draw.random() < 0.5 for flag in flags}}
        for number, text in enumerate(dict.fromkeys(texts))
    ]
    return {"version": "1.0", "added_tokens": added, **stages, "model": model(draw)}


def ran(text: str, base: Pipeline) -> str:
    """Judge a tokenizer, and run it if it may be. Return how it went."""
    from tokenizers import Tokenizer

    try:
        pipeline = Pipeline(text.encode(), "it")
        check_tokenizer(TokenizerFiles(pipeline, {}, {}, (), ()), base, "it")
    except GraftError:
        return "refused"
    try:
        fast = Tokenizer.from_str(text)
        for asked in TEXTS:
            fast.decode(fast.encode_batch_fast([asked])[0].ids)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # a panic of its Rust is no Exception
        return "failed"
    return "ran"


def main() -> None:
    base, count, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    pipeline, draw = Pipeline((base / "tokenizer.json").read_bytes(), "the base"), random.Random(seed)
    limit_processor(SECONDS)
    counts = Counter(ran(json.dumps(tokenizer(draw)), pipeline) for _ in range(count))
    sys.stdout.write(json.dumps(counts))


if __name__ == "__main__":
    main()
