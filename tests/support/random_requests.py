"""Random bodies of requests, of messages on the control port, and names: a seed is a case."""

from __future__ import annotations

import json
import random
from typing import Any

MIB = 1 << 20
TEXTS = (
    *(
        "",
        "a",
        "tiny",
        "alpha",
        "\0",
        "\ud800",
        "é",
        "😀",
        "\u202e",
        "../..",
        "a/b",
        "a\nb",
        "%00",
        "null",
        "-",
        "A" * 64,
    ),
    *("x" * 257, "</s>", "<|im_start|>system", "{{ 1 }}", "{% for a in b %}", "'; --", "$(id)", "hf://", "pvc://a/b"),
    *("hf://acme/sql@" + "a" * 40, "https://127.0.0.1/a.zip", "file:///etc/passwd", "pvc://../x", "sha256:" + "0" * 64),
    *("sha256:", "https://a@b:c/", "https://[::1]/", "hf://" + "a" * 5000, "n" * 70_000),
)
NUMBERS: tuple[Any, ...] = (
    *(0, 1, -1, 2, 8, 0.0, 0.5, 1.0, 2.5, 1e308, -1e308, 1e-320, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 2**64),
    *(10**400, float("nan"), float("inf"), -0.0, 128, 129, 1e400),
)
ROUTES: dict[str, dict[str, Any]] = {
    "completions": {"model": "tiny", "prompt": "hello"},
    "chat": {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]},
    "tokenize": {"model": "tiny", "prompt": "hello"},
    "tokenize a chat": {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]},
    "detokenize": {"model": "tiny", "tokens": [1, 2]},
}
FIELDS = (
    *("model", "prompt", "messages", "tokens", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k"),
    *(
        "min_p",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "logit_bias",
        "n",
        "seed",
        "stop",
        "echo",
    ),
    *("stop_token_ids", "min_tokens", "ignore_eos", "skip_special_tokens", "truncate_prompt_tokens", "stream", "user"),
    *("stream_options", "cache_salt", "adapters", "logprobs", "top_logprobs", "suffix", "best_of", "tools", "role"),
    *("response_format", "chat_template_kwargs", "add_generation_prompt", "continue_final_message", "content", "type"),
    *("text", "name", "weight", "include_usage", "return_token_strs", "metadata", "service_tier", "an_option_of_2030"),
)
MESSAGES: dict[str, dict[str, Any]] = {
    "set": {
        "contractVersion": 1, "poolUid": "pool", "configHash": "hash", "generation": 3,
        "adapters": [{"name": "sql", "source": {"uri": "pvc://shelf/sql"}, "digest": "sha256:" + "0" * 64}],
    },
    "resolve": {"contractVersion": 1, "source": {"uri": "hf://acme/sql", "revision": "main"}},
    "config": {
        "contractVersion": 1, "poolUid": "pool", "engine": {"maxRank": 16},
        "baseModel": {"name": "tiny", "source": {"uri": "pvc://shelf/base"}},
        "sources": [{"name": "shelf", "kind": "claim"}],
    },
    "spec": {
        "baseModel": {"name": "tiny", "uri": "pvc://shelf/base"}, "sources": [{"name": "shelf", "claimName": "shelf"}],
        "adapters": [{"name": "sql", "uri": "pvc://shelf/sql"}], "replicas": 1, "engine": {"maxRank": 16},
    },
    "status": {
        "contractVersion": 1, "bootId": "b", "base": {"state": "Serving"}, "seq": 1,
        "adapters": [{"name": "sql", "state": "Mounted", "fault": {"code": "Corrupt", "message": "m"}}],
    },
}  # fmt: skip


def value(chance: random.Random, depth: int = 0) -> Any:
    """Return a value of any kind, now and then in others."""
    kind = chance.randrange(10)
    if kind < 3:
        return chance.choice(TEXTS)
    if kind < 6:
        return chance.choice(NUMBERS)
    if kind < 8 or depth > 3:
        return chance.choice((None, True, False, [], {}))
    count = chance.choice((1, 1, 2, 3, 17))
    if kind == 8:
        return (
            [value(chance, depth + 1)] * count
            if chance.random() < 0.5
            else [value(chance, depth + 1) for _ in range(count)]
        )
    return {_key(chance): value(chance, depth + 1) for _ in range(count)}


def _key(chance: random.Random) -> str:
    return chance.choice(FIELDS) if chance.random() < 0.7 else chance.choice(TEXTS)


def _changed(chance: random.Random, found: Any) -> Any:
    """Change one place of a value, at any depth."""
    if isinstance(found, dict) and found and chance.random() < 0.7:
        key = chance.choice(list(found))
        return found | {key: _changed(chance, found[key])}
    if isinstance(found, list) and found and chance.random() < 0.7:
        at = chance.randrange(len(found))
        return [*found[:at], _changed(chance, found[at]), *found[at + 1 :]]
    return value(chance)


def body(chance: random.Random, start: dict[str, Any]) -> bytes:
    """Return a body that begins as this one, with fields changed and added, and now and then damaged bytes."""
    made: Any = start
    for _ in range(chance.choice((0, 1, 1, 1, 2, 3))):
        made = (
            made | {_key(chance): value(chance)}
            if chance.random() < 0.6 and isinstance(made, dict)
            else _changed(chance, made)
        )
    content = json.dumps(made, ensure_ascii=chance.random() < 0.5).encode(errors="surrogatepass")
    return damaged(chance, content) if chance.random() < 0.25 else content


def damaged(chance: random.Random, content: bytes) -> bytes:
    """Return bytes that were JSON: cut, doubled, nested deep, with a key twice, or with others in between."""
    at = chance.randrange(len(content) + 1)
    depth = 200_000 if chance.random() < 0.02 else chance.choice((15, 17, 3000))  # as deep takes a tenth of a second
    long = b',"%s":%s}' % (b"k" * chance.choice((1, 300_000)), b"9" * chance.choice((1, 5000)))
    ways = (
        lambda: content[:at],
        lambda: content + content[at:],
        lambda: content[:at] + chance.randbytes(chance.randrange(8)) + content[at:],
        lambda: b'{"a":' * depth + b"1" + b"}" * depth,
        lambda: content.replace(b"{", b'{"model":"other",', 1),
        lambda: b"[" * depth + content,
        lambda: content[:-1] + long,
    )
    return chance.choice(ways)()
