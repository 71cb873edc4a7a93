"""Decoding one token at a time without ever showing half a character."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmcore.tokenizer.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"


class StreamDecoder:
    """Turns ids into text increments that add up to `decode` of all the ids.

    A token's text can depend on the one before it (its space, a "##", the bytes of a character),
    so each id is decoded together with the ids of the last increment, and only the difference is
    given out, once it does not end within a character.

    Example:
        >>> from llmcore import Tokenizer
        >>> tokenizer = Tokenizer.train(["é"], kind="bpe", vocab_size=257)
        >>> stream = tokenizer.stream()
        >>> [stream.push(token) for token in tokenizer.encode("aé")]
        ['a', '', 'é']
        >>> stream.finish()
        ''
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        """Start an empty text; see `Tokenizer.stream`."""
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._context: list[int] = []  # the ids of the last increment
        self._context_text = ""
        self._waiting: list[int] = []  # ids not yet shown

    def push(self, token: int) -> str:
        """Return the text that `token` completes, often that of the token itself, maybe "".

        Raises:
            TokenIndexError: The id is negative.
        """
        self._waiting.append(token)
        text = self._decode(self._context + self._waiting)
        if len(text) <= len(self._context_text) or text.endswith(_REPLACEMENT):
            return ""
        return self._give_out(text)

    def finish(self) -> str:
        """Return what is left: the replacement characters of an incomplete one, usually ""."""
        return self._give_out(self._decode(self._context + self._waiting))

    def _give_out(self, text: str) -> str:
        increment = text[len(self._context_text) :]
        self._context, self._waiting = self._waiting, []
        self._context_text = self._decode(self._context)
        return increment

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip)
