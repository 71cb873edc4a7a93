"""What the uses of a model share: texts or ids in, padded batches out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from llmcore.errors import ConfigError, DataError, DTypeError, TokenIndexError
from llmcore.inputs import vocabulary_of
from llmcore.objectives import as_ids

if TYPE_CHECKING:
    from llmcore.model import Transformer

Int32Array = NDArray[np.int32]
Item = TypeVar("Item")

#: Texts in one pass where a whole list is gone through.
TEXTS_AT_ONCE = 32


def encode_texts(model: Transformer, texts: Any, caller: str, what: str) -> list[Int32Array]:
    """One or several texts, or lists of ids, as rows of ids.

    Args:
        model: whose tokenizer and vocabulary count.
        texts: a text, a list of texts, a list of ids, or a list of such lists.
        caller: named in errors.
        what: the argument, named in errors.

    Raises:
        ConfigError: a text, but the model has no tokenizer.
        DataError: no text, or one without tokens.
        TokenIndexError: an id outside the vocabulary.
        DTypeError: neither texts nor ids.
    """
    rows = []
    for index, text in enumerate(as_list(texts, what)):
        place = f"{caller}: {what}[{index}]"
        if isinstance(text, str):
            if model.tokenizer is None:
                raise ConfigError(
                    f"{place} is text, but the model has no tokenizer; give token ids"
                )
            text = _encode(model, text)
        ids = np.zeros(0, np.int32)
        if len(text):
            ids = as_ids(text, place, ndim=1, table=vocabulary_of(model.config))
        if ids.size == 0:
            raise DataError(f"{place} has no tokens; give at least one")
        check_vocabulary(model, ids, place)
        rows.append(ids)
    if not rows:
        raise DataError(f"{caller}: expected at least one of {what}, got none")
    return rows


def _encode(model: Transformer, text: str) -> Sequence[int]:
    tokenizer = model.tokenizer
    assert tokenizer is not None  # the caller has looked
    if model.config.kind != "encoder-decoder":
        return tokenizer.encode(text)
    from llmcore.data.example_tokenizing import encode_source

    return encode_source(tokenizer, [text])[0]  # as training has framed it


def check_vocabulary(model: Transformer, ids: Int32Array, place: str) -> None:
    """Raise `TokenIndexError` for an id that the model does not have."""
    outside = np.flatnonzero((ids < 0) | (ids >= model.config.vocab_size))
    if outside.size:
        raise TokenIndexError(
            f"{place}: id {ids[outside[0]]} at position {outside[0]} is outside "
            f"{vocabulary_of(model.config)}"
        )


def check_length(model: Transformer, row: Int32Array, place: str) -> None:
    """Raise `DataError` for a text longer than the model's positions."""
    limit = model.config.max_positions
    if model.config.positions not in ("none", "relative") and len(row) > limit:
        raise DataError(
            f"{place} has {len(row)} tokens, the model has positions for {limit}; shorten it"
        )


def as_list(texts: Any, what: str) -> list[Any]:
    """The items of one or several texts or lists of ids."""
    if isinstance(texts, str):
        return [texts]
    if hasattr(texts, "__array__"):
        array = np.asarray(texts)
        return list(array) if array.ndim > 1 else [array]
    if not isinstance(texts, Iterable):
        raise DTypeError(
            f"{what} must be texts or lists of ids, one or several, got a {type(texts).__name__}"
        )
    items = list(texts)
    single = bool(items) and not isinstance(items[0], str) and not hasattr(items[0], "__len__")
    return [items] if single else items


def is_single(texts: Any, what: str) -> bool:
    """Whether `texts` is one text or one list of ids."""
    items = as_list(texts, what)
    return isinstance(texts, str) or (
        len(items) == 1 and not (isinstance(texts, Sequence) and len(texts) == 1)
    )


def pad(rows: Sequence[Int32Array]) -> tuple[Int32Array, Int32Array]:
    """Rows of ids as one array [B, T], zeros after their ends, and their lengths [B]."""
    lengths = np.array([len(row) for row in rows], np.int32)
    ids = np.zeros((len(rows), int(lengths.max())), np.int32)
    for padded, row in zip(ids, rows, strict=True):
        padded[: len(row)] = row
    return ids, lengths


def chunks(items: Sequence[Item], size: int = TEXTS_AT_ONCE) -> Iterator[Sequence[Item]]:
    """Cut a list into pieces of at most `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
