"""Whether an adapter lies in vLLM's slots as it lies in its file, and whether it changes an answer. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from graft_runtime.errors import ErrorCode, GraftError, shown

Norms = tuple[float, float]
"""The squared norms of A and B."""
Told = Sequence[Mapping[int, float]]
"""Log-probabilities by token, of each place of an answer."""
TOLERANCE = 1e-4
"""Of sums of squares that are added up in another order."""


def check_slots(name: str, file: Mapping[str, Norms], ranks: Sequence[Mapping[str, Norms]]) -> None:
    """Check that what all ranks hold together is the file, each half whole or as many times as there are copies.

    Args:
        name: how errors call the adapter.
        file: by module.
        ranks: by module, what each of vLLM's workers has in the adapter's slot; modules that are all zeros left out.

    Raises:
        GraftError: UnsupportedMethod for modules that vLLM has no slot for, Internal for other contents.
    """
    found: dict[str, Norms] = {}
    for rank in ranks:
        for path, (a, b) in rank.items():
            before = found.get(path, (0.0, 0.0))
            found[path] = (before[0] + a, before[1] + b)
    if missing := sorted(path for path, norms in file.items() if any(norms) and path not in found):
        raise GraftError(
            ErrorCode.UNSUPPORTED_METHOD,
            f"adapter `{name}` changes {len(missing)} modules that vLLM takes no adapters on",
            details=shown(missing),
            hint="train it on other modules, or serve it from a pool with Graft's own engine",
        )
    for path, norms in found.items():
        expected = file.get(path, (0.0, 0.0))
        if not all(_copies(part, whole, len(ranks)) for part, whole in zip(norms, expected, strict=True)):
            raise GraftError(
                ErrorCode.INTERNAL,
                f"adapter `{name}` lies in vLLM's slots otherwise than in its file: {path} has A and B of squared "
                f"norms {norms[0]:.6g} and {norms[1]:.6g}, expected {expected[0]:.6g} and {expected[1]:.6g}",
                hint="this version of vLLM may be unknown to Graft; the engine's log may say more",
            )


def _copies(found: float, whole: float, ranks: int) -> bool:
    if whole == 0:
        return found == 0
    copies = found / whole
    nearest = round(copies) if math.isfinite(copies) else 0
    return 1 <= nearest <= ranks and abs(copies - nearest) <= TOLERANCE * nearest


def check_effect(name: str, base: Told, adapter: Told, noise: float) -> None:
    """Check that an adapter changes an answer, and that the answer has numbers in it.

    Args:
        name: how errors call the adapter.
        base: told of the trial prompt without it.
        adapter: told of it with it.
        noise: by how much the base itself differs from one time to the other.

    Raises:
        GraftError: NoEffect, Corrupt.
    """
    if not all(math.isfinite(value) for place in adapter for value in place.values()):
        raise GraftError(
            ErrorCode.CORRUPT,
            f"adapter `{name}` answers with what is no number",
            hint="its values are too large for the model's dtype; train it again",
        )
    if distance(base, adapter) <= noise:
        raise GraftError(
            ErrorCode.NO_EFFECT,
            f"adapter `{name}` changes nothing of vLLM's answer",
            hint="see whether it was trained at all, and for this base",
        )


def distance(one: Told, other: Told) -> float:
    """Return the most by which a log-probability differs; infinity where other tokens were the likeliest."""
    if [set(place) for place in one] != [set(place) for place in other]:
        return math.inf
    return max(
        (
            abs(value - theirs[token])
            for place, theirs in zip(one, other, strict=True)
            for token, value in place.items()
        ),
        default=0.0,
    )
