"""Strangers' regular expressions: what `re` says, in time that no pattern can blow up."""

from __future__ import annotations

import re

import pytest
from graft_runtime.adapters.automaton import Automaton
from graft_runtime.adapters.patterns import UnsafePatternError, compile_pattern, layer_of
from hypothesis import example, given, settings, strategies

PATHS = (
    "model.layers.0.self_attn.q_proj",
    "model.layers.11.mlp.experts.3.down_proj",
    "model.language_model.layers.1.self_attn.v_proj",
    "model.visual.blocks.4.attn.qkv",
    "lm_head",
    "encoder.block.0.layer.1.DenseReluDense.wi",
)

_ATOMS = strategies.sampled_from(
    [*"aab.", r"\.", r"\d", r"\w", "[ab]", "[^a]", "[a-b0]", "^", "$", r"\b", r"\B", r"\A", r"\Z", "(?i:B)"]
)


def _larger(inner: strategies.SearchStrategy[str]) -> strategies.SearchStrategy[str]:
    grouped = inner.map(lambda text: f"(?:{text})")
    return strategies.one_of(
        strategies.lists(inner, min_size=1, max_size=4).map("".join),
        strategies.lists(inner, min_size=2, max_size=3).map(lambda parts: f"({'|'.join(parts)})"),
        strategies.tuples(grouped, strategies.sampled_from(["*", "+", "?", "*?", "{2}", "{1,3}", "{0,2}?"])).map(
            "".join
        ),
    )


_PATTERNS = strategies.recursive(_ATOMS, _larger, max_leaves=8)
_LOOKS = strategies.tuples(
    _PATTERNS,
    strategies.sampled_from(["(?=", "(?!", "(?<=", "(?<!"]),
    strategies.sampled_from(["a", "b.", ".b", "[^a]"]),
    _PATTERNS,
).map(lambda parts: f"{parts[0]}{parts[1]}{parts[2]}){parts[3]}")
_TEXTS = strategies.text("abB.01_", max_size=8)


@settings(max_examples=1500, deadline=None)
@given(_PATTERNS | _LOOKS, strategies.lists(_TEXTS, min_size=4, max_size=4))
@example("(?:a|ab)(?:c|bcd)*(?!b)", ["abcd", "ac", "abcb", ""])
def test_an_automaton_agrees_with_re(pattern: str, texts: list[str]) -> None:
    automaton = Automaton(re._parser.parse(pattern))  # type: ignore[attr-defined]
    for text in texts:
        assert automaton.fullmatch(text) == (re.fullmatch(pattern, text) is not None), text


@pytest.mark.parametrize(
    "pattern",
    [
        r".*\.layers\.(0|11)\..*\.(q|v|down)_proj",
        r"^(?!.*visual).*(?:proj|qkv)$",
        r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:q_proj|v_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\..*proj\b)",
        r".*(?<!q)_proj",
        r"(?i)MODEL.*_PROJ",
        ".*encoder.*block.0.*(SelfAttention|EncDecAttention|DenseReluDense).(k|q|v|wo|wi)$",
    ],
)
def test_patterns_that_trainers_write(pattern: str) -> None:
    compiled = compile_pattern(pattern)
    assert [compiled.matches(path) for path in PATHS] == [re.fullmatch(pattern, path) is not None for path in PATHS]
    assert any(compiled.matches(path) for path in PATHS)


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+!",
        "(.*a){30}b",
        "(a|b*)*!",
        ".*a" * 30 + "!",
        "(.|.)" * 100 + "!",
        ".?" * 400 + "." * 50 + "!",
        "(?:.*|.*){4}" * 20 + "!",
        ".{0,16}" * 60 + "!",
        "(?!(.|.)*(.|.)*(.|.)*!).*!",
        "(?:a|a)*" * 40 + "!",
        "((((.*)*)*)*)*!",
    ],
)
def test_patterns_that_take_re_for_ever(pattern: str) -> None:
    compiled = compile_pattern(pattern)
    assert not compiled.cheap
    assert not any(compiled.matches(path) for path in ("a" * 200, *PATHS))


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("a" * 2000, "2000 characters"),
        ("(", "no regular expression"),
        ("a)(b", "no regular expression"),
        (r"(.)\1", "groupref"),
        (r"(a)?(?(1)b|c)", "groupref"),
        ("(?>a*)b*c*", "atomic"),
        ("a*+b*c*", "possessive"),
        ("(?:a{1,99}){1,99}", "repeats too much"),
        ("(?:){999999999}", "repeats too much"),
        ("(?:(?:(?:){999}){999}){999}", "repeats too much"),
        (".{9999999}.*.*", "repeats too much"),
        ("(?!(?!a))a", "looks around"),
        ("(?!a)" * 50, "looks around"),
        ("(?i)" + "[\\x00-\\U0010ffff]" * 40, "beyond ASCII"),
        ("é", "beyond ASCII"),
        ("(" * 500 + "a*" + ")" * 500, "no regular expression"),
    ],
)
def test_patterns_that_are_refused(pattern: str, why: str) -> None:
    with pytest.raises(UnsafePatternError, match=re.escape(why)):
        compile_pattern(pattern)


@pytest.mark.parametrize(
    ("path", "patterns", "layer"),
    [
        ("model.layers.3.mlp.experts.1.up_proj", [], 3),
        ("layers.3.mlp.up_proj", [], None),  # PEFT wants a name before it
        ("layers.3.mlp.up_proj", ["layers"], 3),
        ("model.layers.3.mlp.up_proj", ["h", "layers"], 3),
        ("model.layers.3.mlp.experts.1.up_proj", ["experts"], 1),
        ("model.layers.3.layers.1.up_proj", ["layers"], 3),
        ("model.layers.3.layers.1.up_proj", [r"\d+\.layers"], 1),
        ("model.layers.3", ["layers"], None),
        ("model.layers.99999999999999999999999.up_proj", ["layers"], None),
    ],
)
def test_the_layer_of_a_path(path: str, patterns: list[str], layer: int | None) -> None:
    assert layer_of(path, [compile_pattern(pattern) for pattern in patterns]) == layer
