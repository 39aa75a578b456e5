"""What `gpu.py` found, in Markdown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Result = dict[str, Any]


def number(measure: Result, unit: float = 1.0, digits: int = 1) -> str:
    """Write a measure with its tenth and ninetieth percentile."""
    value, low, high = (f"{measure[key] / unit:.{digits}f}" for key in ("value", "low", "high"))
    return f"{value} ({low} … {high})"


def table(heads: list[str], rows: list[list[str]]) -> str:
    """Write a table in Markdown."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [heads, ["---"] * len(heads), *rows]) + "\n"


def report(result: Result) -> str:
    """Write all that was measured."""
    parts = [", ".join(f"{what} {value}" for what, value in result["machine"].items()) + "\n"]
    parts += [write(result[part]) for part, write in _WRITERS.items() if part in result]
    return "\n".join(parts)


def _ceilings(found: Result) -> str:
    copy = number(found["copy_bytes_per_second"], 1e12, 3)
    product = number(found["matmul_bfloat16_per_second"], 1e12, 1)
    return f"copy {copy} TB/s, bfloat16 product {product} TFLOP/s\n"


def _correct(found: list[Result]) -> str:
    heads = ["family", "dtype", "runner", "error of logits", "stock bfloat16", "gap", "equal answers", "right"]
    rows = [
        [
            one["family"],
            one["dtype"],
            one["runner"],
            f"{one['logits_error']:.1e}",
            f"{one['logits_error_of_stock_bfloat16']:.1e}",
            f"{one['largest_gap']:.1e}",
            f"{one['equal_answers']} of {one['answers']}",
            "yes" if one["right"] else "**no**",
        ]
        for one in found
    ]
    return table(heads, rows)


def _decode(found: list[Result]) -> str:
    heads = ["rows", "adapters", "steps", "step, ms", "tokens a second", "share of bandwidth", "mixed / base"]
    rows = [
        [
            str(one["rows"]),
            str(one["adapters"]),
            one["step"],
            number(one["step_seconds"], 1e-3, 2),
            number(one["tokens_per_second"], 1, 0),
            number(one["share_of_bandwidth"], 1, 3),
            number(one["mixed_over_base"], 1, 2) if "mixed_over_base" in one else "",
        ]
        for one in found
    ]
    return table(heads, rows)


def _first_token(found: list[Result]) -> str:
    rows = [
        [
            str(one["tokens"]),
            number(one["base_seconds"], 1e-3),
            number(one["adapter_seconds"], 1e-3),
            number(one["adapter_over_base"], 1, 2),
        ]
        for one in found
    ]
    return table(["prompt", "base, ms", "adapter, ms", "adapter / base"], rows)


def _prefill(found: Result) -> str:
    base, mixed = (number(found[f"{kind}_tokens_per_second"], 1, 0) for kind in ("base", "mixed"))
    return f"{found['requests']} prompts of {found['tokens']}: base {base}, mixed {mixed} tokens a second\n"


def _mounting(found: Result) -> str:
    files, host = (number(found[f"from_{tier}_seconds"], 1e-3) for tier in ("files", "host"))
    return (
        f"a mount of {found['bytes'] / 1e6:.1f} MB: from files {files} ms, from host memory {host} ms; longest step "
        f"meanwhile over the median {number(found['longest_step_over_median'], 1, 2)}\n"
    )


def _kernels(found: list[Result]) -> str:
    parts = []
    for one in found:
        parts.append(
            f"{one['rows']} rows, {one['step']}, {'mixed' if one['mixed'] else 'base'}: {one['kernels']} kernels, "
            f"{one['copies']} copies, {one['device_seconds'] * 1e3:.2f} ms on the device, "
            f"{one['host_syncs']} waits of the host {one['host_sync_lines']}\n"
        )
        rows = [[f"{kernel['seconds'] * 1e3:.3f}", str(kernel["count"]), kernel["name"]] for kernel in one["longest"]]
        parts.append(table(["ms", "count", "kernel"], rows))
    return "\n".join(parts)


_WRITERS: dict[str, Callable[[Any], str]] = {
    "ceilings": _ceilings,
    "correct": _correct,
    "decode": _decode,
    "first_token": _first_token,
    "prefill": _prefill,
    "mounting": _mounting,
    "kernels": _kernels,
    "speed": lambda found: f"{found}\n",
}
