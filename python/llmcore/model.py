"""`Transformer`: a model with its weights, what it computes, and its files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmcore import _core
from llmcore._core import Tensor
from llmcore.config import ModelConfig
from llmcore.errors import (
    CheckpointError,
    ConfigError,
    DeviceError,
    DTypeError,
    OutOfMemory,
)
from llmcore.inputs import Inputs
from llmcore.objectives import Batch
from llmcore.validation import check_seed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmcore.generation_config import GenerationConfig
    from llmcore.score import ScoreResult
    from llmcore.tokenizer import Tokenizer


class Transformer:
    """A Transformer with its weights, on one device.

    Calls release the GIL; calls to one model from several threads take turns.

    Attributes:
        config: the architecture.
        tokenizer: turns text into ids where the model has one, or None.

    Args:
        config: the architecture, whole.
        device: "cpu", "cuda" or "cuda:<index>".
        dtype: "float32".
        seed: of the initial weights; the same seed gives the same weights.

    Raises:
        ConfigError: the config asks for what this version has no layer for.
        DeviceError: the device cannot be used, with the reason.
        OutOfMemory: the weights do not fit.

    Example:
        >>> model = Transformer(ModelConfig.preset("gpt-nano", num_decoder_layers=1))
        >>> model(np.array([[1, 2, 3]])).shape
        (1, 3, 65)
    """

    def __init__(
        self, config: ModelConfig, *, device: str = "cpu", dtype: str = "float32", seed: int = 0
    ) -> None:
        self._build(config, device, dtype, seed)

    def _build(self, config: ModelConfig, device: str, dtype: str, seed: int | None) -> None:
        if not isinstance(config, ModelConfig):
            raise ConfigError(
                f"Transformer: config must be a ModelConfig, got a {type(config).__name__}; "
                "a preset is ModelConfig.preset(name)"
            )
        check_computation(device, dtype)
        if seed is not None:
            check_seed(seed, "Transformer: seed")
        _check_memory(config)
        self.config = config
        self.device = device
        self.dtype = dtype
        self.tokenizer: Tokenizer | None = None
        self._core = _core.Transformer(config.to_dict(), device, seed)

    @classmethod
    def from_pretrained(
        cls, path_or_repo: str | os.PathLike[str], *, device: str = "cpu", dtype: str = "float32"
    ) -> Transformer:
        """Load a model in the Hugging Face layout.

        Args:
            path_or_repo: a directory with config.json and safetensors files, or, with the extra
                `hub`, the name of a repository on the Hugging Face Hub.
            device: as in `Transformer`.
            dtype: as in `Transformer`.

        Returns:
            The model, with its tokenizer if the directory holds one.

        Raises:
            CheckpointError: a file is missing, damaged, or does not fit the architecture.

        Example:
            >>> import tempfile
            >>> model = Transformer(ModelConfig.preset("gpt-nano"))
            >>> with tempfile.TemporaryDirectory() as directory:
            ...     model.save_pretrained(directory)
            ...     again = Transformer.from_pretrained(directory)
            >>> again.config == model.config
            True
        """
        from llmcore import checkpoint

        check_computation(device, dtype)
        saved = checkpoint.load(_local_directory(path_or_repo))
        model = cls.__new__(cls)
        model._build(saved.config, device, dtype, None)
        checkpoint.copy_parameters(saved.parameters, model.parameters())
        model.tokenizer = checkpoint.load_tokenizer(saved)
        return model

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Write config.json, model.safetensors and the tokenizer's files, all or nothing.

        Args:
            path: the directory; made if absent, replaced whole if a model is there.

        Raises:
            CheckpointError: it could not be written; what was there before stays.
        """
        from llmcore import checkpoint

        arrays = {name: tensor.numpy() for name, tensor in self.parameters().items()}
        checkpoint.save(
            path, config=self.config, parameters=arrays, state=None, tokenizer=self.tokenizer
        )

    def parameters(self) -> dict[str, Tensor]:
        """Name to weight, float32, in the order of the flat buffer; they share its memory."""
        views: dict[str, Tensor] = self._core.parameters()
        return views

    def gradients(self) -> dict[str, Tensor]:
        """Name to gradient as the last `loss_and_grad` or training step left it."""
        views: dict[str, Tensor] = self._core.gradients()
        return views

    def __call__(
        self,
        ids: Any,
        lengths: Any | None = None,
        *,
        decoder_ids: Any | None = None,
        decoder_lengths: Any | None = None,
        prefix_lengths: Any | None = None,
        types: Any | None = None,
    ) -> Tensor:
        """Logits of every position of the decoder, or of the encoder where that is all there is.

        Args:
            ids: [B, T] token ids. Where there are both stacks, what the encoder reads.
            lengths: [B] real tokens of each row of `ids`, or None: all. Logits of padding mean
                nothing.
            decoder_ids: [B, T] what the decoder reads beside an encoder.
            decoder_lengths: [B] real tokens of each row of `decoder_ids`, or None: all.
            prefix_lengths: [B] leading tokens of the decoder that all of its positions see.
            types: segment ids, shaped as `ids`; all 0 if None.

        Returns:
            Tensor [B, T, V] float32.

        Raises:
            ConfigError: ids of a stack that the model lacks, or none for one it has.
            ShapeError: wrong shapes, or more tokens than positions.
            TokenIndexError: an id outside the vocabulary.
        """
        inputs = Inputs.of(
            self.config, ids, lengths, decoder_ids, decoder_lengths, prefix_lengths, types
        )
        out = _core.empty([*inputs.stack_shape, self.config.vocab_size])
        self._core.logits(inputs, out)
        return out

    def encode(self, ids: Any, lengths: Any | None = None, *, types: Any | None = None) -> Tensor:
        """Hidden states after the last layer and norm.

        Args:
            ids: [B, T] token ids.
            lengths: [B] real tokens of each row, or None: all.
            types: [B, T] segment ids; all 0 if None.

        Returns:
            Tensor [B, T, C] float32: of the encoder where there is one, else of the decoder.

        Raises:
            ShapeError, TokenIndexError: as for a call.
        """
        inputs = Inputs.of(self.config, ids, lengths, types=types, encoder_only=True)
        out = _core.empty([*inputs.stack_shape, self.config.hidden_size])
        self._core.encode(inputs, out)
        return out

    def loss(self, batch: Batch) -> float:
        """Mean loss over the batch's targets, by weight; dropout is off.

        Example:
            >>> from llmcore.objectives import CausalLM
            >>> model = Transformer(ModelConfig.preset("gpt-nano", num_decoder_layers=1))
            >>> round(model.loss(CausalLM()([[1, 2, 3, 4]])))  # ln(65) = 4.17, knowing nothing
            4
        """
        check_batch(batch, "loss")
        total, weight = self._core.loss(batch)
        return _mean(total, weight)

    def loss_and_grad(self, batch: Batch) -> float:
        """The same, with its gradients left in `gradients()`, replacing those before."""
        check_batch(batch, "loss_and_grad")
        total, weight = self._core.loss_and_gradients(batch)
        return _mean(total, weight)

    def row_losses(self, batch: Batch) -> NDArray[np.float32]:
        """The loss of each target by itself, [R] float32, before weights."""
        check_batch(batch, "row_losses")
        out = _core.empty([batch.targets.size])
        self._core.row_losses(batch, out)
        losses: NDArray[np.float32] = out.numpy()
        return losses

    def generate(
        self, prompts: Any, config: GenerationConfig | None = None, *, stream: bool = False
    ) -> Any:
        """Continue prompts.

        Args:
            prompts: a text or a list of texts (with a tokenizer), a list of ids, or a list of lists
                of ids. They may differ in length; none changes what another becomes.
            config: how; greedy with 64 new tokens if None.
            stream: yield tokens as they come instead of returning the whole.

        Returns:
            A list of `GenerationResult`, one for each prompt; with `stream` an iterator of
            `GeneratedToken`, which can be closed at any time.

        Raises:
            ConfigError: settings that do not fit the model.
            DataError: a prompt without tokens.
            ShapeError: a prompt longer than the model's positions.
            TokenIndexError: an id outside the vocabulary.

        Example:
            >>> model = Transformer(ModelConfig.preset("gpt-nano", num_decoder_layers=1))
            >>> from llmcore import GenerationConfig
            >>> results = model.generate([[1, 2, 3], [4]], GenerationConfig(max_new_tokens=5))
            >>> [len(result.ids) for result in results]
            [5, 5]
        """
        from llmcore import generate as generation

        settings = generation.GenerationConfig() if config is None else config
        if not isinstance(settings, generation.GenerationConfig):
            raise DTypeError(
                "generate: config must be a GenerationConfig, for example "
                f"GenerationConfig(max_new_tokens=20), got a {type(settings).__name__}"
            )
        if stream:
            return generation.stream(self, prompts, settings)
        return generation.generate(self, prompts, settings)

    def score(self, texts: Any) -> list[ScoreResult]:
        """Log-probabilities and perplexity of texts under the model.

        Args:
            texts: as `prompts` of `generate`. The first token of each is context only. Texts longer
                than the model's positions are read in windows that overlap by half.

        Returns:
            One `ScoreResult` for each text.

        Raises:
            ConfigError, DataError, TokenIndexError: as `generate`.

        Example:
            >>> model = Transformer(ModelConfig.preset("gpt-nano", num_decoder_layers=1))
            >>> [result] = model.score([[1, 2, 3]])
            >>> len(result.logprobs), 60 < result.perplexity < 70
            (2, True)
        """
        from llmcore.score import score

        return score(self, texts)

    @property
    def recompute(self) -> bool:
        """Whether training keeps only each layer's input and runs the layer again for backward."""
        return bool(self._core.recompute)

    @recompute.setter
    def recompute(self, value: bool) -> None:
        self._core.recompute = value


def check_batch(batch: Any, caller: str) -> None:
    """Raise `DTypeError` unless `batch` is a `Batch`."""
    if not isinstance(batch, Batch):
        raise DTypeError(
            f"{caller}: expected a Batch, got a {type(batch).__name__}; "
            "an objective makes one of ids: CausalLM()(ids)"
        )


def check_computation(device: str, dtype: str) -> None:
    """Raise unless models can be computed on this device in this number format.

    Raises:
        DTypeError: the format is not supported.
        DeviceError: the device cannot be used, with the reason.
    """
    if not isinstance(device, str):
        raise DeviceError(f"device must be a name such as 'cpu', got {device!r}")
    _core.empty([0], device=device)
    if dtype in ("bfloat16", "float16"):
        raise DTypeError(
            f"Transformer: this version computes models in float32 only, not in {dtype}; "
            "leave dtype out, or give 'float32'"
        )
    if dtype != "float32":
        raise DTypeError(f"Transformer: dtype must be 'float32', got {dtype!r}")


def _check_memory(config: ModelConfig) -> None:
    """Refuse weights beyond what there is, before the system kills the process over them."""
    needed, limit = 4 * config.num_parameters(), int(_core.device_info()["memory_bytes"])
    if needed > limit:
        from llmcore.log import format_bytes

        raise OutOfMemory(
            f"Transformer: {config.num_parameters():,} weights take {format_bytes(needed)}, "
            f"this process may use {format_bytes(limit)}; use a smaller model"
        )


def _mean(total: float, weight: float) -> float:
    if weight <= 0:
        raise ConfigError("model: the batch has no targets with a weight above zero")
    return total / weight


def _local_directory(path_or_repo: str | os.PathLike[str]) -> Path:
    path = Path(path_or_repo)
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(
            f"from_pretrained: {path} is a file; give the directory that holds config.json"
        )
    name = str(path_or_repo)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise CheckpointError(f"from_pretrained: there is no directory {name}")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise CheckpointError(
            f"from_pretrained: there is no directory {name}; to take it from the Hugging Face Hub, "
            "install the extra 'hub'"
        ) from None
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt"]))
    except Exception as error:
        raise CheckpointError(
            f"from_pretrained: there is no directory {name}, and the Hugging Face Hub could not "
            f"give it: {str(error).splitlines()[0]}"
        ) from error
