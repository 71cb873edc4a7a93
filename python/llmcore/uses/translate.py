"""Translation: from texts to texts with an encoder-decoder model."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from llmcore.errors import ConfigError, DTypeError
from llmcore.generation_config import GenerationConfig
from llmcore.uses.texts import as_list

if TYPE_CHECKING:
    from llmcore.generate import GenerationResult
    from llmcore.model import Transformer

#: Beams of a translation, where nothing else is asked for.
NUM_BEAMS = 4


def translate(
    model: Transformer,
    texts: Any,
    config: GenerationConfig | None,
    source_prefix: str,
    target_language: str | None,
) -> list[str]:
    """Translate texts; see `Transformer.translate`."""
    results = translations(model, texts, config, source_prefix, target_language)
    return [result.text.strip() for result in results]


def translations(
    model: Transformer,
    texts: Any,
    config: GenerationConfig | None = None,
    source_prefix: str = "",
    target_language: str | None = None,
) -> list[GenerationResult]:
    """Do the same, with the ids, the score and the alternatives of each translation."""
    if model.config.kind != "encoder-decoder":
        raise ConfigError(
            f"translate: needs an encoder-decoder model, this one is an {model.config.kind}"
            if model.config.kind == "encoder"
            else "translate: needs an encoder-decoder model, this one is a decoder; "
            "generate(prompt) goes on from a text"
        )
    if model.tokenizer is None:
        raise ConfigError("translate: the model has no tokenizer; generate(ids) takes token ids")
    settings = config or GenerationConfig(num_beams=NUM_BEAMS, max_new_tokens=256)
    if target_language is not None:
        tag = model.tokenizer.token_to_id(target_language)
        if tag is None:
            raise ConfigError(
                f"translate: target_language {target_language!r} is no token of the model's "
                "vocabulary; give its tag as the vocabulary spells it, such as '<2de>' or 'de_DE'"
            )
        settings = dataclasses.replace(settings, forced_prefix=(tag,))
    sources = as_list(texts, "translate: texts")
    for text in sources:
        if not isinstance(text, str):
            raise DTypeError(
                f"translate: texts must be texts, got a {type(text).__name__}; "
                "generate(ids) takes token ids"
            )
    prefixed = [source_prefix + text for text in sources]
    results: list[GenerationResult] = model.generate(prefixed, settings)
    return results
