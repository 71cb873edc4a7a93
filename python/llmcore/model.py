"""`Transformer`: a model with its weights, what it computes, and its files."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmcore import _core, lora, quantized
from llmcore._core import Tensor
from llmcore.config import LoraConfig, ModelConfig
from llmcore.errors import (
    CheckpointError,
    ConfigError,
    DeviceError,
    DTypeError,
    OutOfMemory,
)
from llmcore.inputs import Inputs
from llmcore.objectives import Batch
from llmcore.uses.methods import Uses
from llmcore.validation import as_path, check_seed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmcore.generation_config import GenerationConfig
    from llmcore.tokenizer import Tokenizer


class Transformer(Uses):
    """A Transformer with its weights, on one device.

    Calls release the GIL; calls to one model from several threads take turns.

    Attributes:
        config: the architecture.
        tokenizer: turns text into ids where the model has one, or None.

    Args:
        config: the architecture, whole.
        device: "cpu", "cuda" or "cuda:<index>".
        dtype: number format that matrices are kept in: "float32", or, for inference alone,
            "bfloat16", "int8" or "int4". Vectors, sums and all that a model computes between its
            products stay float32.
        seed: of the initial weights; the same seed gives the same weights.

    Raises:
        ConfigError: the config asks for what this version has no layer for.
        DTypeError: there is no such format.
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
        check_seed(seed, "Transformer: seed")
        self._build(config, device, dtype, seed)

    def _build(self, config: ModelConfig, device: str, dtype: str, seed: int | None) -> None:
        if not isinstance(config, ModelConfig):
            raise ConfigError(
                f"Transformer: config must be a ModelConfig, got a {type(config).__name__}; "
                "a preset is ModelConfig.preset(name)"
            )
        check_computation(device, dtype)
        first = device if dtype == "float32" else "cpu"  # where matrices are packed
        # Without a seed all weights are zero: whoever reads a model fills them.
        _check_memory(config, "float32" if seed is not None else dtype)
        self.config = config
        self.tokenizer: Tokenizer | None = None
        self._core = _core.Transformer(config.to_dict(), first, seed)
        if config.lora is not None:
            lora.freeze_base(self)
        if dtype != "float32":
            self._core.pack(dtype, zeros=seed is None)
            self._core = quantized.core_on(device, self._core, config)

    @property
    def device(self) -> str:
        """Where the weights are and all is computed: "cpu" or "cuda:<index>"."""
        return str(self._core.device)

    @property
    def dtype(self) -> str:
        """Number format of the matrices: "float32", "bfloat16", "int8" or "int4"."""
        return str(self._core.format)

    def __repr__(self) -> str:
        size = f"{self.config.num_parameters():,} parameters"
        return f"Transformer({self.config.kind}, {size}, {self.dtype} on {self.device})"

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo: str | os.PathLike[str],
        *,
        device: str = "cpu",
        dtype: str | None = None,
    ) -> Transformer:
        """Load a model in the Hugging Face layout.

        Args:
            path_or_repo: a directory with config.json and safetensors files, or, with the extra
                `hub`, the name of a repository on the Hugging Face Hub.
            device: as in `Transformer`.
            dtype: as in `Transformer`; None: what `quantize` or an earlier `dtype` had left when
                the model was saved, else "float32". Another format is converted to tensor by
                tensor, so "float32" makes any model one that can be trained.

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

        check_computation(device, dtype or "float32")
        source = as_path(path_or_repo, "from_pretrained: path_or_repo")
        saved = checkpoint.load(_local_directory(source), verify="later")
        model = cls.__new__(cls)
        model._build(saved.config, "cpu", dtype or saved.format, None)
        if model.dtype == "float32":
            checkpoint.copy_parameters(saved.parameters, model.parameters(), saved.unchecked)
        else:
            if saved.unchecked is not None:
                saved.unchecked.check()
            quantized.fill(model._core, saved.parameters)
        model._core = quantized.core_on(device, model._core, model.config)
        model.tokenizer = checkpoint.load_tokenizer(saved)
        return model

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Write config.json, model.safetensors and the tokenizer's files, all or nothing.

        Matrices are written in the model's `dtype`, and read again as the same bits. transformers
        reads float32 and bfloat16. A model with adapters it does not read, of which a warning
        reminds: merge them first (`merge_lora`), or write them apart (`save_adapter`).

        Args:
            path: the directory; made if absent, replaced whole if a model is there.

        Raises:
            CheckpointError: it could not be written; what was there before stays.
        """
        from llmcore import checkpoint

        if self.config.lora is not None:
            warnings.warn(
                "save_pretrained: the model has adapters, and is saved as llmcore alone reads it; "
                "for transformers merge them first (merge_lora(), convert --merge-lora), for peft "
                "write them apart with save_adapter",
                stacklevel=2,
            )
        checkpoint.save(
            as_path(path, "save_pretrained: path"),
            config=self.config,
            parameters=quantized.parameters_of(self._core, self.config),
            state=None,
            tokenizer=self.tokenizer,
        )

    def quantize(self, format: str) -> Transformer:
        """Round the matrices to integers, for inference that reads less memory.

        int8 has a scale for each output, int4 one for every 32 weights of an output; what they are
        multiplied with is rounded to int8 row by row. Embeddings and the head are matrices, too.
        Vectors, such as biases and norms, and adapters stay float32. On the CPU a row's
        result depends neither on the rest of its batch nor on the number of threads.

        The weights move: views of `parameters()`, a `TrainStep` and an `Engine` made before belong
        to the old ones. The model can no longer be trained, nor be given adapters.

        Args:
            format: "int8" or "int4".

        Returns:
            The model itself.

        Raises:
            ConfigError: there is no such format, or the model is not float32 any more.

        Example:
            >>> model = Transformer(ModelConfig.preset("gpt-nano", num_decoder_layers=1))
            >>> model.quantize("int8")
            Transformer(decoder, 213,504 parameters, int8 on cpu)
        """
        if format not in ("int8", "int4"):
            raise ConfigError(f"quantize: format must be 'int8' or 'int4', got {format!r}")
        self._require_float32("quantize")
        core = _core.Transformer(self.config.to_dict(), "cpu", None)
        core.pack(format, zeros=True)
        quantized.fill(core, ((name, t.numpy()) for name, t in self.parameters().items()))
        self._core = quantized.core_on(self.device, core, self.config)
        return self

    def _require_float32(self, caller: str) -> None:
        if self.dtype != "float32":
            raise ConfigError(
                f"{caller}: the model's weights are {self.dtype}, for inference; "
                "load it again with dtype='float32'"
            )

    def parameters(self) -> dict[str, Tensor]:
        """Name to weight, float32, in the order of the flat buffer; they share its memory.

        On a GPU their `numpy()` is a copy.
        Matrices of another `dtype` than float32 are left out.
        """
        views: dict[str, Tensor] = self._core.parameters()
        return views

    def gradients(self) -> dict[str, Tensor]:
        """Name to gradient as the last `loss_and_grad` or training step left it.

        Raises:
            ConfigError: the model's `dtype` is for inference alone.
        """
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
        out = _core.empty([*inputs.stack_shape, self.config.vocab_size], device=self.device)
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
        out = _core.empty([*inputs.stack_shape, self.config.hidden_size], device=self.device)
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
        """The same, with its gradients left in `gradients()`, replacing those before.

        Raises:
            ConfigError: the model's `dtype` is for inference alone.
        """
        check_batch(batch, "loss_and_grad")
        total, weight = self._core.loss_and_gradients(batch)
        return _mean(total, weight)

    def row_losses(self, batch: Batch) -> NDArray[np.float32]:
        """The loss of each target by itself, [R] float32, before weights."""
        check_batch(batch, "row_losses")
        out = _core.empty([batch.targets.size], device=self.device)
        self._core.row_losses(batch, out)
        losses: NDArray[np.float32] = out.numpy()
        return losses

    def generate(
        self,
        prompts: Any,
        config: GenerationConfig | None = None,
        *,
        stream: bool = False,
        draft_model: Transformer | None = None,
    ) -> Any:
        """Continue prompts.

        Args:
            prompts: a text or a list of texts (with a tokenizer), a list of ids, or a list of lists
                of ids. They may differ in length; none changes what another becomes.
            config: how; greedy with 64 new tokens if None.
            stream: yield tokens as they come instead of returning the whole. The weights must not
                change meanwhile: on a GPU the next token may be on its way.
            draft_model: a smaller decoder of the same vocabulary, whose guesses this model confirms
                where the config has speculate="draft". It changes the time, not the text.

        Returns:
            A list of `GenerationResult`, one for each prompt; with `stream` an iterator of
            `GeneratedToken`, which can be closed at any time.

        Raises:
            ConfigError: settings that do not fit the model, or a draft model that does not.
            DataError: a prompt without tokens.
            ShapeError: a prompt longer than the model's positions.
            TokenIndexError: an id outside the vocabulary.

        Example:
            >>> model = Transformer(ModelConfig.preset("gpt-nano", num_decoder_layers=1))
            >>> from llmcore import GenerationConfig
            >>> results = model.generate([[1, 2, 3], [4]], GenerationConfig(max_new_tokens=5))
            >>> [len(result.ids) for result in results]
            [5, 5]
            >>> guessing = GenerationConfig(max_new_tokens=5, speculate="ngram")
            >>> model.generate([[1, 2, 3], [4]], guessing) == results
            True
            >>> smaller = GenerationConfig(max_new_tokens=5, cache_dtype="bfloat16")
            >>> len(model.generate([[1, 2, 3]], smaller)[0].ids)
            5
        """
        from llmcore import generate as generation
        from llmcore.generation_config import GenerationConfig

        settings = GenerationConfig() if config is None else config
        if not isinstance(settings, GenerationConfig):
            raise DTypeError(
                "generate: config must be a GenerationConfig, for example "
                f"GenerationConfig(max_new_tokens=20), got a {type(settings).__name__}"
            )
        if stream:
            return generation.stream(self, prompts, settings, draft_model)
        return generation.generate(self, prompts, settings, draft_model)

    def add_lora(self, config: LoraConfig, *, seed: int = 0) -> None:
        """Add low-rank adapters (Hu et al. 2021) and freeze all else but classifier and pooler.

        B starts at zero, so outputs stay what they are, bit for bit; A is drawn from a normal
        distribution of variance 1 / (3 in). Weight decay applies to both as to any matrix. The
        weights move: views of `parameters()` and a `TrainStep` made before belong to the old ones.

        Args:
            config: rank, scale, dropout and targets of the adapters.
            seed: of A.

        Raises:
            ConfigError: the model has adapters already, or none of the targets.

        Example:
            >>> from llmcore.config import LoraConfig
            >>> model = Transformer(ModelConfig.preset("gpt-nano", num_decoder_layers=1))
            >>> model.add_lora(LoraConfig(rank=4, targets=["q", "v"]))
            >>> [(name, tensor.shape) for name, tensor in model.trainable_parameters().items()][0]
            ('decoder.layers.0.self_attention.q.lora_a', (4, 128))
        """
        lora.add_lora(self, config, seed=seed)

    def merge_lora(self) -> None:
        """Add the adapters to the weights beside them, W += (alpha / rank) B A, and drop them.

        The model computes what it did, within rounding; all of it is trainable again.

        Raises:
            ConfigError: the model has no adapters.

        Example:
            >>> from llmcore.config import LoraConfig
            >>> model = Transformer(ModelConfig.preset("gpt-nano", num_decoder_layers=1))
            >>> model.add_lora(LoraConfig(rank=4))
            >>> model.merge_lora()
            >>> model.config.lora is None
            True
        """
        lora.merge_lora(self)

    def save_adapter(self, path: str | os.PathLike[str], *, base_model: str | None = None) -> None:
        """Write the adapters as the library `peft` does, and with them what else is trainable.

        The files are adapter_config.json and adapter_model.safetensors, and llmcore_adapter.json
        for us. Where a family holds several of our matrices in one, as GPT-2 does q, k and v, its
        one adapter has a rank as many times as high.

        Args:
            path: a directory of the adapter's own; made if absent.
            base_model: name or path of the model it belongs to, written down for readers.

        Raises:
            ConfigError: the model has no adapters.
            CheckpointError: it could not be written, or the directory holds a model.

        Example:
            >>> import tempfile
            >>> from llmcore.config import LoraConfig
            >>> model = Transformer(ModelConfig.preset("gpt-nano", num_decoder_layers=1))
            >>> other = Transformer(model.config)
            >>> model.add_lora(LoraConfig(rank=4))
            >>> with tempfile.TemporaryDirectory() as directory:
            ...     model.save_adapter(directory)
            ...     other.load_adapter(directory)
            >>> other.config.lora == model.config.lora
            True
        """
        lora.save_adapter(self, path, base_model=base_model)

    def load_adapter(self, path: str | os.PathLike[str]) -> None:
        """Read adapters from files of this package or of `peft`, and freeze all else.

        Args:
            path: a directory with adapter_config.json and adapter_model.safetensors. What it holds
                beside adapters, such as a classifier, replaces the model's own.

        Raises:
            ConfigError: the model has adapters that differ in rank, scale or targets.
            CheckpointError: a file is missing or damaged, does not fit the model, or asks for what
                is not supported, such as DoRA.
        """
        lora.load_adapter(self, path)

    def freeze(self, patterns: str | Sequence[str]) -> None:
        """Keep parameters as they are from now on: no gradient, no update, no optimizer memory.

        Args:
            patterns: names, in which `*` stands for anything, as in a shell.

        Raises:
            ConfigError: a pattern that fits no name.

        Example:
            >>> model = Transformer(ModelConfig.preset("gpt-nano", num_decoder_layers=1))
            >>> model.freeze(["*"])
            >>> model.unfreeze(["decoder.norm.*"])
            >>> list(model.trainable_parameters())
            ['decoder.norm.weight']
        """
        lora.set_trainable(self, patterns, False, "freeze")

    def unfreeze(self, patterns: str | Sequence[str]) -> None:
        """Train parameters that were frozen; the opposite of `freeze`."""
        lora.set_trainable(self, patterns, True, "unfreeze")

    def trainable_parameters(self) -> dict[str, Tensor]:
        """The part of `parameters()` that is not frozen."""
        return lora.trainable_parameters(self)

    @property
    def recompute(self) -> bool:
        """Whether training keeps only each layer's input and runs the layer again for backward."""
        return bool(self._core.recompute)

    @recompute.setter
    def recompute(self, value: bool) -> None:
        self._core.recompute = value


def check_model(model: Any, caller: str, what: str = "model") -> None:
    """Raise `DTypeError` unless `model` is a `Transformer`."""
    if not isinstance(model, Transformer):
        raise DTypeError(f"{caller}: {what} must be a Transformer, got a {type(model).__name__}")


def check_batch(batch: Any, caller: str) -> None:
    """Raise `DTypeError` unless `batch` is a `Batch`."""
    if not isinstance(batch, Batch):
        raise DTypeError(
            f"{caller}: expected a Batch, got a {type(batch).__name__}; "
            "an objective makes one of ids: CausalLM()(ids)"
        )


def check_computation(device: str, dtype: str) -> None:
    """Raise unless models can be computed on this device with matrices in this number format.

    Raises:
        DTypeError: the format is not supported.
        DeviceError: the device cannot be used, with the reason.
    """
    if not isinstance(device, str):
        raise DeviceError(f"device must be a name such as 'cpu', got {device!r}")
    _core.empty([0], device=device)
    if dtype not in quantized.WEIGHT_BITS:
        raise DTypeError(
            f"Transformer: dtype must be one of {', '.join(quantized.WEIGHT_BITS)}, got {dtype!r}"
        )


def _check_memory(config: ModelConfig, dtype: str) -> None:
    """Refuse weights beyond what there is, before the system kills the process over them."""
    needed = int(config.num_parameters() * quantized.WEIGHT_BITS[dtype] / 8)
    limit = int(_core.device_info()["memory_bytes"])
    if needed > limit:
        from llmcore.training.log import format_bytes

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
