"""Control tokens in a conversation: those that the chat template writes act, those in the messages' text are text."""

from __future__ import annotations

import re
import secrets
from typing import Any

from graft_runtime.tokenizing.encoding import ForeignTokenizer
from graft_runtime.tokenizing.files import ENCODING
from graft_runtime.tokenizing.template_content import with_texts


class SpecialTokens:
    """The special tokens of a tokenizer, and where a text holds them as they are written.

    Args:
        fast: the tokenizer, of the tokenizers library.
    """

    def __init__(self, fast: Any) -> None:
        special = {number: token for number, token in fast.get_added_tokens_decoder().items() if token.special}
        self.texts: dict[int, str] = {number: token.content for number, token in special.items()}
        self.only_as_written = not any(
            token.normalized or fast.model.token_to_id(token.content) is not None for token in special.values()
        )
        """Whether a text that holds none as it is written makes none: the model does not know them, whatever its
        stages make of the text."""
        self._finder = _finder(self.texts)

    def found(self, text: str) -> list[tuple[int, int, int]]:
        """Return the special tokens that a text holds: where each begins and ends, and its number."""
        (encoding,) = self._finder.encode_batch([text], add_special_tokens=False)
        numbers = list(self.texts)
        spans = zip(encoding.offsets, encoding.ids, strict=True)
        return [(start, stop, numbers[place - 1]) for (start, stop), place in spans if place]  # 0: what lies between

    def replaced(self, text: str, name: str) -> str:
        """Return the text with names in place of its special tokens."""
        parts, end = [], 0
        for start, stop, number in self.found(text):
            parts += [text[end:start], name.format(number)]
            end = stop
        return "".join([*parts, text[end:]])


class UsersText:
    """Encodes conversations whose messages hold special tokens of a tokenizer in their text.

    While the template is rendered, a name that nobody can guess stands for each of them. What the prompt holds of
    special tokens then is the template's, and gets such names in turn. A second tokenizer over the same model knows
    the names, and no special token by its text. So it splits the prompt where the first would, and the names of the
    messages can be text again.

    Args:
        fast: the tokenizer, of the tokenizers library.
        special: its special tokens.
    """

    def __init__(self, fast: Any, special: SpecialTokens) -> None:
        added = fast.get_added_tokens_decoder()
        self._special = special
        nonce = secrets.token_hex(8)
        self._name, self._fence, self._split = f"user{nonce}x{{}}x", f"template{nonce}x{{}}x", f"split{nonce}x"
        self._named = re.compile(self._name.format("([0-9]+)"))
        self._plain, self._ids = self._with_fences(fast, added)

    def named(self, value: Any) -> Any:
        """Return messages, or another value of JSON, with names in place of the special tokens in its text."""
        return with_texts(value, lambda text: self._special.replaced(text, self._name))

    def encode(self, prompt: str) -> list[int]:
        """Return the token ids of a prompt that was rendered from named messages."""
        fenced = self._special.replaced(prompt, self._fence)
        ids = self._encoded(self._named.sub(self._text, fenced))
        known = self._special.texts.keys() - self._ids.keys()
        if not known.isdisjoint(ids):  # the model has its text as a piece
            ids = self._encoded(self._named.sub(lambda name: self._split.join(_halves(self._text(name))), fenced))
        return [own for token in ids if (own := self._ids.get(token, token)) is not None]

    def _encoded(self, text: str) -> list[int]:
        (encoding,) = self._plain.encode_batch_fast([text], add_special_tokens=False)
        ids: list[int] = encoding.ids
        return ids

    def _text(self, name: re.Match[str]) -> str:
        return self._special.texts[int(name[1])]

    def _with_fences(self, fast: Any, added: dict[int, Any]) -> tuple[Any, dict[int, int | None]]:
        """Return the second tokenizer, and what its own ids are in the first."""
        from tokenizers import AddedToken, Tokenizer  # noqa: PLC0415 - not at start

        plain: Any = Tokenizer(fast.model)
        for name in ENCODING:
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
        return fast.beside(plain) if isinstance(fast, ForeignTokenizer) else plain, ids


def _finder(special: dict[int, str]) -> Any:
    """Return a tokenizer that knows these alone, by their place from 1 on; anything else is 0."""
    from tokenizers import AddedToken, Tokenizer, models  # noqa: PLC0415 - not at start

    finder = Tokenizer(models.WordLevel({"": 0}, unk_token=""))
    finder.add_tokens([AddedToken(text, normalized=False) for text in special.values()])
    return finder


def _halves(text: str) -> tuple[str, str]:
    return text[:1], text[1:]
