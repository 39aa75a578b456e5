"""Random chat templates: a seed is a case."""

from __future__ import annotations

import random

VALUES = (
    *("messages", "messages[0]", "messages[0].content", "messages[9]", "bos_token", "x", "loop", "loop.index", "self"),
    *("'a'", "'a' * 9", "9", "-1", "1.5", "none", "true", "[]", "[1, 2]", "{}", "{'a': 1}", "'%s' % 'a'", "range(3)"),
    *(
        "''.__class__",
        "messages.__class__.__mro__",
        "cycler",
        "lipsum(1)",
        "dict(a=1)",
        "namespace(a=1)",
        "joiner(',')",
    ),
    *(
        "'{0.__class__}'.format(1)",
        "strftime_now('%Y')",
        "raise_exception('no')",
        "messages | map('attr', '__class__')",
    ),
)
FILTERS = (
    *(
        "trim",
        "upper",
        "length",
        "list",
        "join(',')",
        "tojson",
        "sort",
        "first",
        "last",
        "string",
        "int",
        "default('a')",
    ),
    *(
        "replace('a', 'b')",
        "batch(2)",
        "map(attribute='content')",
        "selectattr('role')",
        "truncate(3)",
        "indent(9)",
        "xx",
    ),
    *("center(99)", "format(1)", "attr('__class__')", "wordwrap(1)", "slice(2)", "round", "abs", "unique", "dictsort"),
)
GREEDY = (
    "{{ 9**(9**9) }}",
    "{{ 'a' * 4000000000 }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
)
"""A thousandth of all: each takes a second of a processor."""


def template(chance: random.Random) -> str:
    """Return a template of a few parts, now and then a broken one, and rarely a greedy one."""
    if chance.random() < 0.003:
        return chance.choice(GREEDY)
    text = "".join(_part(chance) for _ in range(chance.choice((1, 1, 2, 3, 6))))
    if chance.random() < 0.15:
        at = chance.randrange(len(text) + 1)
        text = text[:at] + chance.choice(("{%", "%}", "{{", "}}", "{#", "\0", "'", "")) + text[at + 1 :]
    return text


def _value(chance: random.Random) -> str:
    text = chance.choice(VALUES)
    for _ in range(chance.choice((0, 0, 1, 2))):
        text += f" | {chance.choice(FILTERS)}"
    if chance.random() < 0.2:
        text = f"{text} {chance.choice(('+', '*', '~', 'in', '==', '//', '%', 'and', 'is'))} {chance.choice(VALUES)}"
    return text


def _part(chance: random.Random, depth: int = 0) -> str:
    inner = "".join(_part(chance, depth + 1) for _ in range(chance.randrange(3))) if depth < 3 else "."
    value = _value(chance)
    parts = (
        "text <s> ",
        f"{{{{ {value} }}}}",
        f"{{% for x in {value} %}}{inner}{{% endfor %}}",
        f"{{% if {value} %}}{inner}{{% else %}}-{{% endif %}}",
        f"{{% set x = {value} %}}",
        f"{{% macro m(a) %}}{inner}{{% endmacro %}}{{{{ m({value}) }}}}",
        f"{{% generation %}}{inner}{{% endgeneration %}}",
        f"{{% filter {chance.choice(FILTERS)} %}}{inner}{{% endfilter %}}",
        "{% include 'a' %}" if chance.random() < 0.1 else "{# a #}",
        "{% for x in messages %}{% break %}{% endfor %}",
    )
    return chance.choice(parts)
