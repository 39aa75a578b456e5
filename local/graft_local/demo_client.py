"""What the demo asks and shows: completions over HTTP, and a table of answers side by side."""

from __future__ import annotations

import contextlib
import json
import textwrap
import time
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from graft_local.errors import LocalClusterError
from graft_local.http_client import FAULTS, request

_SECONDS = 120.0


@dataclass(frozen=True)
class Answer:
    """An HTTP answer; `body` is the JSON in it."""

    status: int
    body: Mapping[str, Any]

    @property
    def text(self) -> str:
        """The completion's text.

        Raises:
            LocalClusterError: this is no completion.
        """
        if self.status != 200:
            raise LocalClusterError(f"expected a completion, got HTTP {self.status}: {json.dumps(self.body)}")
        return str(self.body["choices"][0]["text"]).strip()

    @property
    def error(self) -> str:
        """The message of an error in OpenAI's shape, or all of the body."""
        message = (self.body.get("error") or {}).get("message")
        return str(message if message is not None else dict(self.body))


def complete(address: str, model: str, prompt: str, *, max_tokens: int = 40, stop: str | None = None) -> Answer:
    """Ask `model` at `address` (HOST:PORT) to go on with `prompt`, greedily.

    Raises:
        LocalClusterError: there was no HTTP answer with JSON within two minutes.
    """
    asked = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}
    if stop is not None:
        asked["stop"] = stop
    url = f"http://{address}/v1/completions"
    try:
        status, content = request(url, body=json.dumps(asked), timeout=_SECONDS)
        return Answer(status, json.loads(content))
    except (*FAULTS, ValueError) as error:
        raise LocalClusterError(f"no answer from {url} for `{model}`: {error!r}") from error


def wait_until_routed(address: str, seconds: float = 30.0) -> None:
    """Wait until the Service at `address` (HOST:PORT) leads to a ready pod: it hears of one a moment after us.

    Raises:
        LocalClusterError: it did not in that time.
    """
    deadline = time.monotonic() + seconds
    while not _answers(address):
        if time.monotonic() > deadline:
            raise LocalClusterError(f"after {seconds:.0f} s http://{address}/v1/models still does not answer")
        time.sleep(0.1)


def _answers(address: str) -> bool:
    with contextlib.suppress(*FAULTS):
        return request(f"http://{address}/v1/models", timeout=10.0)[0] == 200
    return False


def side_by_side(answers: Mapping[str, str], width: int = 118) -> str:
    """A table with a column for each name in `answers`, at most `width` characters wide; line feeds are kept."""
    column = (width - 1) // len(answers) - 3
    cells = {name: _wrapped(text, column) for name, text in answers.items()}
    height = max(map(len, cells.values()))
    rule = "+" + "+".join("-" * (column + 2) for _ in cells) + "+"
    rows = [list(cells), *([lines[at] if at < len(lines) else "" for lines in cells.values()] for at in range(height))]
    drawn = ["|" + "|".join(f" {_padded(cell, column)} " for cell in row) + "|" for row in rows]
    return "\n".join([rule, drawn[0], rule, *drawn[1:], rule])


def _wrapped(text: str, width: int) -> list[str]:
    return [part for line in text.splitlines() for part in textwrap.wrap(line, width) or [""]]


def _padded(text: str, width: int) -> str:
    # East Asian wide characters and emoji take two places on a terminal, joiners and variation selectors none.
    return text + " " * (width - sum(map(_places, text)))


def _places(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Cf", "Mn"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
