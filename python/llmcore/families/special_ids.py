"""Special token ids: our fields, and the keys of config.json and generation_config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmcore.config import TOKEN_ID_FIELDS, ModelConfig

# Our field -> the foreign key, with "_token" between name and "_id".
_KEYS = {name: name.removesuffix("_id") + "_token_id" for name in TOKEN_ID_FIELDS}


def decode_ids(
    values: Mapping[str, Any], defaults: Mapping[str, int | None], fields: Mapping[str, Any]
) -> dict[str, Any]:
    """Read the special ids, and the ids that are never generated.

    Ids outside the vocabulary are forgotten: small models keep those of transformers' defaults
    (50256 in GPT-2's), which they cannot mean.

    Args:
        values: The contents of config.json, with those of generation_config.json over them.
        defaults: What stands for a key that is absent, by our name.
        fields: Our other fields, vocab_size among them.

    Example:
        >>> values = {"eos_token_id": [2, 3], "pad_token_id": 9, "bad_words_ids": [[4], [5, 6]]}
        >>> decode_ids(values, {"bos_id": 1}, {"vocab_size": 8})
        {'bos_id': 1, 'eos_id': 2, 'suppressed_ids': (4,)}
    """
    size = fields["vocab_size"]

    def outside(token: Any) -> bool:
        return isinstance(token, int) and isinstance(size, int) and token >= size

    found = {ours: _first(values.get(theirs, defaults.get(ours))) for ours, theirs in _KEYS.items()}
    ids = {ours: token for ours, token in found.items() if token is not None}
    suppressed = tuple(token for token in _suppressed(values) if not outside(token))
    ids = {ours: token for ours, token in ids.items() if not outside(token)}
    return {**ids, "suppressed_ids": suppressed} if suppressed else ids


def _first(value: Any) -> Any:
    """One id, or None. Of several the first is meant; a negative one means there is none."""
    if isinstance(value, list):
        value = value[0] if value else None
    return None if isinstance(value, int) and value < 0 else value


def _suppressed(values: Mapping[str, Any]) -> list[Any]:
    """Ids under `suppress_tokens`, and of the words of one id under `bad_words_ids`."""
    tokens, words = (values.get(key) for key in ("suppress_tokens", "bad_words_ids"))
    found = list(tokens) if isinstance(tokens, list) else []
    if isinstance(words, list):
        found += [word[0] for word in words if isinstance(word, list) and len(word) == 1]
    return [token for i, token in enumerate(found) if token not in found[:i]]


def encode_ids(config: ModelConfig, defaults: Mapping[str, int | None]) -> dict[str, Any]:
    """Write the special ids; none is null where transformers would assume its default instead.

    `decoder_start_token_id` alone is left out where it is None: Marian's must be a number.

    Args:
        config: Holds them.
        defaults: What transformers assumes where a key is absent, by our name.

    Example:
        >>> config = ModelConfig.preset("gpt-nano", eos_id=3, suppressed_ids=(4, 5))
        >>> encode_ids(config, {"bos_id": 1})
        {'bos_token_id': None, 'eos_token_id': 3, 'suppress_tokens': [4, 5]}
    """
    values: dict[str, Any] = {}
    for ours, theirs in _KEYS.items():
        token = getattr(config, ours)
        if token is not None or (ours in defaults and ours != "decoder_start_id"):
            values[theirs] = token
    if config.suppressed_ids:
        values["suppress_tokens"] = list(config.suppressed_ids)
    return values
