"""Write the tables of docs/reference.md that follow from the code: conditions, reasons, error codes, methods.

`python docs/tables.py docs/reference.md` rewrites what stands between the marks of each table, and `make generate` runs
it. What a condition, a reason or a code means is the sentence below its declaration.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from itertools import pairwise
from pathlib import Path

from graft_operator.decisions.conditions import ConditionType, Reason
from graft_runtime.adapters.methods.registry import METHODS
from graft_runtime.adapters.methods.unserved import UNSERVED
from graft_runtime.errors import ErrorCode


@dataclass(frozen=True)
class Support:
    """What can be done with an adapter of a method, or with one that uses an option of LoRA.

    Attributes:
        served: beside others on one base.
        mixed: with other adapters and the base in one batch.
        merged: into the base's weights.
        scaled: with a weight other than 1.
        composed: with others on one request.
        plain: exactly plain LoRA, which `graft-runtime convert` makes of it.
    """

    served: bool = True
    mixed: bool = True
    merged: bool = True
    scaled: bool = True
    composed: bool = True
    plain: bool = True


_TOKENS = Support(scaled=False, composed=False)
_REPLACES = Support(scaled=False, composed=False, plain=False)
_NOT = Support(*[False] * len(fields(Support)))
SUPPORT: Mapping[str, Support] = {
    **dict.fromkeys(METHODS, Support()),
    **dict.fromkeys(("IA3", "LN_TUNING"), _REPLACES),
    "TRAINABLE_TOKENS": _TOKENS,
    "BEFT": Support(plain=False),
    **dict.fromkeys(
        ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING"),
        Support(merged=False, scaled=False, composed=False, plain=False),
    ),
}
"""By `peft_type`, of the methods that are served."""
LORA_OPTIONS: Mapping[str, Support] = {
    "`use_rslora`, `rank_pattern`, `alpha_pattern`, `exclude_modules`, `layers_to_transform`": Support(),
    "`use_dora` (DoRA)": _REPLACES,
    "`init_lora_weights`: `pissa`, `olora`": Support(),
    "`lora_bias`": Support(plain=False),
    "`bias`: `all`, `lora_only`": Support(composed=False, plain=False),
    "`target_modules` with embeddings or heads": Support(),
    "`modules_to_save`": Support(composed=False, plain=False),
    "`trainable_token_indices`": Support(composed=False),
    "a vocabulary of another size than the base's": Support(merged=False, composed=False, plain=False),
    "`alora_invocation_tokens` (aLoRA)": Support(merged=False, plain=False),
    "`target_parameters` of experts, and files with an adapter for each expert": Support(merged=False, plain=False),
    "`init_lora_weights`: `pissa_niter_*`, `corda`, `loftq`, `lora_ga`; `use_qalora`, `use_bdlora`, `arrow_config`, "
    "`kasa_config`, `velora_config`, `monteclora_config`, `layer_replication`, `megatron_config`": _NOT,
}
"""By the option, in words."""


def inserted(text: str) -> str:
    """Return the text of the page with each table between its marks. Raises ValueError where the page lacks a mark."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name}: written by docs/tables.py -->", f"<!-- end of {name} -->"
        before, rest = text.split(begin, 1)
        text = f"{before}{begin}\n\n{table()}\n\n{end}{rest.split(end, 1)[1]}"
    return text


def meanings(enumeration: type[Enum]) -> dict[str, str]:
    """Return the sentence below the declaration of each member, by the member's name."""
    (declared,) = ast.parse(inspect.getsource(enumeration)).body
    assert isinstance(declared, ast.ClassDef)
    return {
        target.id: " ".join(inspect.cleandoc(str(ast.literal_eval(sentence.value))).split())
        for member, sentence in pairwise(declared.body)
        if isinstance(member, ast.Assign) and isinstance(sentence, ast.Expr)
        for target in member.targets
        if isinstance(target, ast.Name)
    }


def _conditions() -> str:
    return _table(["condition", "meaning"], _described(ConditionType))


def _reasons() -> str:
    return _table(["reason", "meaning"], _described(Reason))


def _codes() -> str:
    rows = [
        (*described, code.recovery.value, str(code.http_status))
        for described, code in zip(_described(ErrorCode), ErrorCode, strict=True)
    ]
    return _table(["code", "meaning", "what ends it", "HTTP"], rows)


def _methods() -> str:
    rows = []
    for method, support in SUPPORT.items():
        rows.append(_support(f"`{method}`", support))
        if method == "LORA":
            rows += [_support(f"`LORA` with {option}", part) for option, part in LORA_OPTIONS.items()]
    served = _table(["method", *(field.name for field in fields(Support))], rows)
    refused = [(f"`{method}`", instead) for method, instead in sorted(UNSERVED.items())]
    return served + "\n\n" + _table(["not served", "what to do instead"], refused)


TABLES: Mapping[str, Callable[[], str]] = {
    "conditions": _conditions,
    "reasons": _reasons,
    "codes": _codes,
    "methods": _methods,
}


def _described(enumeration: type[Enum]) -> list[tuple[str, str]]:
    found = meanings(enumeration)
    return [(f"`{member.value}`", found[member.name]) for member in enumeration]


def _support(name: str, support: Support) -> tuple[str, ...]:
    return (name, *("yes" if getattr(support, field.name) else "no" for field in fields(Support)))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(inserted(page.read_text(encoding="utf-8")), encoding="utf-8")
