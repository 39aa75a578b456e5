"""Which stages a stranger's tokenizer may be made of, and how many of each. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from graft_runtime.errors import cut

MAX_PARTS = 16
"""Of one stage."""
MODELS = frozenset({"BPE", "WordPiece", "WordLevel", "Unigram"})
_SEQUENCE = "Sequence"
_INSIDE = ("normalizers", "pretokenizers", "processors", "decoders")
"""Where a sequence has its parts."""
KINDS: Mapping[str, frozenset[str]] = {
    "normalizer": frozenset(
        {"BertNormalizer", "ByteLevel", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled", "Prepend"}
        | {"Replace", "Strip", "StripAccents", _SEQUENCE}
    ),
    "pre_tokenizer": frozenset(
        {"BertPreTokenizer", "ByteLevel", "CharDelimiterSplit", "Digits", "FixedLength", "Metaspace", "Punctuation"}
        | {"Split", "UnicodeScripts", "Whitespace", "WhitespaceSplit", _SEQUENCE}
    ),
    "post_processor": frozenset({"BertProcessing", "ByteLevel", "RobertaProcessing", "TemplateProcessing", _SEQUENCE}),
    "decoder": frozenset(
        {"BPEDecoder", "ByteFallback", "ByteLevel", "CTC", "Fuse", "Metaspace", "Replace", "Strip", "WordPiece"}
        | {_SEQUENCE}
    ),
}
"""The parts that each stage may have: each takes time that is linear in the text."""
_SEVERAL = frozenset({"Replace", "Split", "Strip", _SEQUENCE})
"""Parts that honest files have more than one of. Any other twice makes text of text of text."""


def stage_faults(stages: Mapping[str, Any], base: Mapping[str, Any]) -> Iterator[str]:
    """Return what is wrong with the stages of a tokenizer.json, but for what its base's has as well.

    Args:
        stages: normalizer, pre_tokenizer, post_processor and decoder.
        base: its base's.
    """
    for name, stage in stages.items():
        if stage is None or stage == base[name]:
            continue
        parts = list(_parts(stage))
        if len(parts) > MAX_PARTS:
            yield f"{name} has more than {MAX_PARTS} parts"
            continue
        kinds = Counter(str(part.get("type")) if isinstance(part, dict) else repr(part) for part in parts)
        for kind, count in kinds.items():
            if kind not in KINDS[name]:
                yield f"{name} has a part {cut(kind, 40)!r}, expected {', '.join(sorted(KINDS[name]))}"
            elif count > 1 and kind not in _SEVERAL:
                yield f"{name} has {count} parts {kind!r}, expected at most one"


def _parts(stage: Any) -> Iterator[Any]:
    """Iterate over a stage's parts, of sequences inside of sequences as well: at most one more than MAX_PARTS."""
    waiting = [stage]
    for _ in range(MAX_PARTS + 1):
        if not waiting:
            return
        part = waiting.pop()
        yield part
        if isinstance(part, dict) and part.get("type") == _SEQUENCE:
            inside: list[Any] = next((part[key] for key in _INSIDE if isinstance(part.get(key), list)), [])
            waiting.extend(inside[: MAX_PARTS + 1])
