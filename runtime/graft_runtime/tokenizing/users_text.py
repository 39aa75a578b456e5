"""Control tokens in a conversation: those that the chat template writes act, those in the messages' text are text."""

from __future__ import annotations

import re
import secrets
from typing import Any

from graft_runtime.tokenizing.template_content import Messages

STAGES = ("normalizer", "pre_tokenizer")


class UsersText:
    """Encodes conversations whose messages hold special tokens of a tokenizer in their text.

    While the template is rendered, a name that nobody can guess stands for each of them. What the prompt holds of
    special tokens then is the template's, and gets such names in turn. A second tokenizer over the same model knows
    the names, and no special token by its text. So it splits the prompt where the first would, and the names of the
    messages can be text again.

    Args:
        fast: the tokenizer, of the tokenizers library.
    """

    def __init__(self, fast: Any) -> None:
        added = fast.get_added_tokens_decoder()
        self._special: dict[int, str] = {number: token.content for number, token in added.items() if token.special}
        nonce = secrets.token_hex(8)
        self._name, self._fence, self._split = f"user{nonce}x{{}}x", f"template{nonce}x{{}}x", f"split{nonce}x"
        self._named = re.compile(self._name.format("([0-9]+)"))
        self._finder = _finder(self._special)
        self._plain, self._ids = self._with_fences(fast, added)

    def named(self, messages: Messages) -> list[dict[str, Any]]:
        """Return the messages with names in place of the special tokens in their text."""
        return [
            {key: self._replaced(value, self._name) if isinstance(value, str) else value for key, value in one.items()}
            for one in messages
        ]

    def encode(self, prompt: str) -> list[int]:
        """Return the token ids of a prompt that was rendered from named messages."""
        fenced = self._replaced(prompt, self._fence)
        ids = self._encoded(self._named.sub(self._text, fenced))
        if any(token in self._special and token not in self._ids for token in ids):  # the model has its text as a piece
            ids = self._encoded(self._named.sub(lambda name: self._split.join(_halves(self._text(name))), fenced))
        return [own for token in ids if (own := self._ids.get(token, token)) is not None]

    def _encoded(self, text: str) -> list[int]:
        (encoding,) = self._plain.encode_batch_fast([text], add_special_tokens=False)
        ids: list[int] = encoding.ids
        return ids

    def _text(self, name: re.Match[str]) -> str:
        return self._special[int(name[1])]

    def _replaced(self, text: str, name: str) -> str:
        """Return the text with names in place of its special tokens."""
        (encoding,) = self._finder.encode_batch([text], add_special_tokens=False)
        numbers = list(self._special)
        parts, end = [], 0
        for token, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
            if token:  # 0: what lies between them
                parts += [text[end:start], name.format(numbers[token - 1])]
                end = stop
        return "".join([*parts, text[end:]])

    def _with_fences(self, fast: Any, added: dict[int, Any]) -> tuple[Any, dict[int, int | None]]:
        """Return the second tokenizer, and what its own ids are in the first."""
        from tokenizers import AddedToken, Tokenizer  # noqa: PLC0415 - not at start

        plain: Any = Tokenizer(fast.model)
        for name in STAGES:
            if (stage := getattr(fast, name)) is not None:
                setattr(plain, name, stage)
        tokens = {
            self._fence.format(number) if token.special else token.content: (number, token)
            for number, token in sorted(added.items())
        }
        plain.add_tokens(
            [
                AddedToken(
                    text,
                    single_word=token.single_word,
                    lstrip=token.lstrip,
                    rstrip=token.rstrip,
                    normalized=token.normalized,
                )
                for text, (_, token) in tokens.items()
            ]
        )
        plain.add_tokens([AddedToken(self._split, normalized=False)])
        ids: dict[int, int | None] = {plain.token_to_id(text): number for text, (number, _) in tokens.items()}
        ids[plain.token_to_id(self._split)] = None
        return plain, ids


def _finder(special: dict[int, str]) -> Any:
    """Return a tokenizer that knows these alone, by their place from 1 on; anything else is 0."""
    from tokenizers import AddedToken, Tokenizer, models  # noqa: PLC0415 - not at start

    finder = Tokenizer(models.WordLevel({"": 0}, unk_token=""))
    finder.add_tokens([AddedToken(text, normalized=False) for text in special.values()])
    return finder


def _halves(text: str) -> tuple[str, str]:
    return text[:1], text[1:]
