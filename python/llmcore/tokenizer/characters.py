"""Encoding by characters: a table look-up in place of the library's search, and clear errors."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmcore.errors import DataError

#: The pre-tokenizer of a character tokenizer: every character, line breaks too, on its own.
CHARACTER_PATTERN = r"[\s\S]"

_ABSENT = -1


class CharacterEncoder:
    """Gives the ids that the library gives for a character vocabulary, much faster."""

    def __init__(self, vocab: dict[str, int], special: list[str], unknown: str) -> None:
        """Prepare to encode.

        Args:
            vocab: Ids of the characters and special tokens.
            special: Tokens recognised in the text as a whole.
            unknown: What unknown characters become, if the vocabulary has it.
        """
        self._vocab = vocab
        self._unknown = vocab.get(unknown)
        characters = {ord(token): index for token, index in vocab.items() if len(token) == 1}
        self._table = np.full(max(characters, default=0) + 2, _ABSENT, np.int64)
        self._table[list(characters)] = list(characters.values())
        # Longest first, as the library matches them.
        names = sorted(special, key=lambda token: (-len(token), token))
        self._special = re.compile("(" + "|".join(map(re.escape, names)) + ")") if names else None

    @classmethod
    def of(cls, serialized: dict[str, Any]) -> CharacterEncoder | None:
        """Return the encoder of a parsed `tokenizer.json`, or None if it is of another kind."""
        model, split = serialized["model"], serialized["pre_tokenizer"] or {}
        added = serialized["added_tokens"]
        if (
            model["type"] != "WordLevel"
            or split.get("type") != "Split"
            or split["pattern"] != {"Regex": CHARACTER_PATTERN}
            or serialized["normalizer"] is not None
            or serialized["post_processor"] is not None
            or any(token["lstrip"] or token["rstrip"] or token["single_word"] for token in added)
        ):
            return None
        vocab = {**model["vocab"], **{token["content"]: token["id"] for token in added}}
        return cls(vocab, [token["content"] for token in added], model["unk_token"])

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`.

        Raises:
            DataError: A character is not in the vocabulary, and nothing stands for unknown ones.
        """
        if self._special is None:
            return self._encode_plain(text, 0)
        ids: list[int] = []
        place = 0
        for number, part in enumerate(self._special.split(text)):
            ids += [self._vocab[part]] if number % 2 else self._encode_plain(part, place)
            place += len(part)
        return ids

    def _encode_plain(self, text: str, place: int) -> list[int]:
        """Encode a stretch without special tokens that begins at character `place`."""
        codes: NDArray[np.uint32] = np.frombuffer(
            text.encode("utf-32-le", "surrogatepass"), np.dtype("<u4")
        )
        # The last entry of the table is for all code points beyond it.
        ids = self._table[np.minimum(codes, len(self._table) - 1)]
        absent = ids == _ABSENT
        if absent.any():
            if self._unknown is None:
                first = int(np.argmax(absent))
                raise DataError(
                    f"character {_name(text[first])} at position {place + first} is not among the "
                    f"{len(self._vocab)} of the vocabulary; train the tokenizer on this text too, "
                    "or with special_tokens=['<unk>']"
                )
            ids[absent] = self._unknown
        result: list[int] = ids.tolist()
        return result


def _name(character: str) -> str:
    """Return for example "'é' (U+00E9, LATIN SMALL LETTER E WITH ACUTE)"."""
    name = unicodedata.name(character, "")
    return f"{character!r} (U+{ord(character):04X}{', ' if name else ''}{name})"
