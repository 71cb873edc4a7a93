"""The methods of `llmcore.Transformer` that put a trained model to use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from llmcore.inputs import Inputs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from llmcore.generation_config import GenerationConfig
    from llmcore.model import Transformer
    from llmcore.uses.attention import MapKind
    from llmcore.uses.classify import Classified, Pooling
    from llmcore.uses.score import ScoreResult


class Uses:
    """What `llmcore.Transformer` can be asked, beyond logits, losses and generation."""

    def score(self, texts: Any, sources: Any | None = None) -> list[ScoreResult]:
        """Log-probabilities and perplexity of texts under the model.

        Args:
            texts: as `prompts` of `generate`. The first token of each is context only. Texts longer
                than the model's positions are read in windows that overlap by half.
            sources: beside an encoder, what each text is about; its tokens then all count.

        Returns:
            One `ScoreResult` for each text.

        Raises:
            ConfigError: the model is an encoder alone, or sources are missing or not wanted.
            DataError, TokenIndexError: as `generate`.

        Example:
            >>> from llmcore import ModelConfig, Transformer
            >>> model = Transformer(ModelConfig.preset("gpt-nano", num_decoder_layers=1))
            >>> [result] = model.score([[1, 2, 3]])
            >>> len(result.logprobs), 60 < result.perplexity < 70
            (2, True)
        """
        from llmcore.uses.score import score

        return score(_model(self), texts, sources)

    def translate(
        self,
        texts: Any,
        config: GenerationConfig | None = None,
        *,
        source_prefix: str = "",
        target_language: str | None = None,
    ) -> list[str]:
        """Translate, or rewrite in whatever way an encoder-decoder model was trained to.

        Args:
            texts: one text or several.
            config: how; beam search with 4 beams and at most 256 new tokens if None.
            source_prefix: set before each text, for models that are told there what to do:
                ">>fra<< ", "translate English to German: ", "summarize: ".
            target_language: the token that a multilingual model's translation begins with, as its
                vocabulary spells it: "de_DE".

        Returns:
            One translation for each text.

        Raises:
            ConfigError: the model is no encoder-decoder, has no tokenizer, or not that language.
            DataError: a text without tokens.
            ShapeError: a text longer than the encoder's positions.
        """
        from llmcore.uses.translate import translate

        return translate(_model(self), texts, config, source_prefix, target_language)

    def fill_mask(
        self,
        text: Any,
        top_k: int = 5,
        *,
        mask_id: int | None = None,
        bidirectional: bool = False,
    ) -> Any:
        """Predict the tokens that stand where a text has its mask token.

        Args:
            text: one text or several, or their ids, each with one mask or more.
            top_k: how many of the likeliest tokens to tell.
            mask_id: the mask token; None: the tokenizer's.
            bidirectional: for a decoder that was also trained with `MaskedLM(stack="decoder")`: let
                every token see the whole text.

        Returns:
            For a text with one mask a list of `MaskFill`, the likeliest first; with several masks a
            list of such lists, in their order; for several texts a list of all that.

        Raises:
            ConfigError: the model predicts no masks, or nobody says which token the mask is.
            DataError: a text without a mask, or longer than the model's positions.

        Example:
            >>> from llmcore import ModelConfig, Transformer
            >>> config = ModelConfig.preset("bert-base", num_encoder_layers=1, hidden_size=24,
            ...     num_heads=2, vocab_size=50)
            >>> fills = Transformer(config).fill_mask([7, 4, 9], top_k=3, mask_id=4)
            >>> len(fills), fills[0].score >= fills[1].score
            (3, True)
        """
        from llmcore.uses.fill_mask import fill_mask

        return fill_mask(_model(self), text, top_k, mask_id, bidirectional)

    def classify(self, texts: Any, *, types: Any | None = None) -> list[Classified]:
        """Say which label each text has.

        Args:
            texts: one text or several, or their ids.
            types: segment ids of each text's tokens, where it consists of two.

        Returns:
            One `Classified` for each text: label, its probability, and those of all labels.

        Raises:
            ConfigError: the model has no classifier.
            DataError: a text without tokens, or longer than the model's positions.
        """
        from llmcore.uses.classify import classify

        return classify(_model(self), texts, types)

    def embed(
        self, texts: Any, *, pooling: Pooling = "mean", normalize: bool = False
    ) -> NDArray[np.float32]:
        """One vector for each text, made of its hidden states.

        Args:
            texts: one text or several, or their ids.
            pooling: "mean" of all tokens, the "first" or "last" one's, or the "pooler"'s.
            normalize: divide each vector by its length, so that dot products are cosines.

        Returns:
            [B, C] float32.

        Raises:
            ConfigError: an unknown pooling, or a pooler that the model lacks.
            DataError: a text without tokens, or longer than the model's positions.

        Example:
            >>> from llmcore import ModelConfig, Transformer
            >>> model = Transformer(ModelConfig.preset("gpt-nano", num_decoder_layers=1))
            >>> model.embed([[1, 2, 3], [4]]).shape
            (2, 128)
        """
        from llmcore.uses.classify import embed

        return embed(_model(self), texts, pooling, normalize)

    def attention_maps(
        self,
        ids: Any,
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        kind: MapKind = "decoder",
        *,
        lengths: Any | None = None,
        decoder_ids: Any | None = None,
        decoder_lengths: Any | None = None,
        prefix_lengths: Any | None = None,
        types: Any | None = None,
        queries: tuple[int, int] | None = None,
    ) -> NDArray[np.float32]:
        """Attention weights, computed for what is asked about alone, beside the fused kernel.

        Args:
            ids: [B, T] token ids; where there are both stacks, what the encoder reads.
            layers: which layers, counted from 0; None: all.
            heads: which heads; None: all.
            kind: "encoder", "decoder", or "cross": the decoder's of the encoder's output.
            lengths: as for a call.
            decoder_ids: as for a call.
            decoder_lengths: as for a call.
            prefix_lengths: as for a call.
            types: as for a call.
            queries: (first, stop): only these queries, in memory for so many rows; None: all.

        Returns:
            [B, layers, heads, queries, keys] float32; rows sum to 1. Weights of padded queries mean
            nothing, padded keys weigh nothing. Dropout is off.

        Raises:
            ConfigError: attention, layers, heads or queries that the model or batch does not have.
            ShapeError, TokenIndexError: as for a call.

        Example:
            >>> from llmcore import ModelConfig, Transformer
            >>> model = Transformer(ModelConfig.preset("gpt-nano", num_decoder_layers=1))
            >>> model.attention_maps([[1, 2, 3]], heads=[0])[0, 0, 0, 0].tolist()
            [1.0, 0.0, 0.0]
        """
        from llmcore.uses.attention import attention_maps, check_kind

        check_kind(_model(self), kind)
        inputs = Inputs.of(
            _model(self).config,
            ids,
            lengths,
            decoder_ids,
            decoder_lengths,
            prefix_lengths,
            types,
            encoder_only=kind == "encoder",
        )
        return attention_maps(_model(self), inputs, layers, heads, kind, queries)


def _model(uses: Uses) -> Transformer:
    """The model whose methods these are."""
    return cast("Transformer", uses)
