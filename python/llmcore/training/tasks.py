"""Objectives by name: the data, the model and the special tokens that each one goes with."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from llmcore.config import Kind, ModelConfig
from llmcore.data.example_tokenizing import end_id
from llmcore.data.examples import ExampleDataset
from llmcore.errors import ConfigError, DataError, did_you_mean
from llmcore.objectives import (
    CausalLM,
    Classification,
    CompletionLM,
    MaskedLM,
    Mixture,
    PrefixLM,
    ReversedLM,
    Seq2Seq,
    SpanCorruption,
    word_starts,
)
from llmcore.tokenizer.training import USUAL_SPECIAL_TOKENS, TokenizerKind

if TYPE_CHECKING:
    from llmcore.data import TokenDataset
    from llmcore.tokenizer import Tokenizer
    from llmcore.training.train_config import TrainConfig

#: What data are: text without end, of which blocks are read, or examples of some kind.
DataKind = Literal["text", "pairs", "completions", "labels"]

#: Sentinels of a tokenizer that is trained for span corruption: as many as T5 has.
_SENTINELS = 100


@dataclass(frozen=True)
class Task:
    """What an objective goes with.

    Attributes:
        objective: its class.
        data: what it is made from.
        models: the kinds of model it trains.
        make: builds it from what is known about the run.
    """

    objective: type
    data: DataKind
    models: tuple[Kind, ...]
    make: Callable[[_Run], Any]


@dataclass(frozen=True)
class _Run:
    """What objectives are built from."""

    train: TrainConfig
    model: ModelConfig
    tokenizer: Tokenizer | None


def _make_masked(run: _Run) -> MaskedLM:
    mask = _mask_token(run.tokenizer)
    assert run.tokenizer is not None  # it has a mask token
    added = run.tokenizer.backend.get_added_tokens_decoder()
    return MaskedLM(
        mask,
        vocab_size=run.tokenizer.vocab_size,
        seed=run.train.seed,
        probability=run.train.mask_probability,
        special_ids=[index for index, token in added.items() if token.special],
        word_starts=word_starts(run.tokenizer) if run.train.whole_words else None,
        stack="encoder" if run.model.kind == "encoder" else "decoder",
    )


def _mask_token(tokenizer: Tokenizer | None) -> int:
    if tokenizer is None or tokenizer.mask_id is None:
        raise ConfigError(
            "the objective masked needs a tokenizer with a mask token; train one with"
            " special_tokens=[…, '[MASK]'], or give objective=MaskedLM(mask_id=…)"
        )
    return tokenizer.mask_id


def _make_span_corruption(run: _Run) -> SpanCorruption:
    sentinels, end = _sentinels(run.tokenizer)
    return SpanCorruption(
        sentinels,
        eos_id=end if run.model.eos_id is None else run.model.eos_id,
        decoder_start_id=_decoder_start(run.model),
        seed=run.train.seed,
        density=run.train.mask_probability,
        label_smoothing=run.train.label_smoothing,
    )


def _sentinels(tokenizer: Tokenizer | None) -> tuple[list[int], int]:
    found, end = [], None
    if tokenizer is not None:
        named = (tokenizer.token_to_id(f"<extra_id_{n}>") for n in range(_SENTINELS))
        found, end = [index for index in named if index is not None], end_id(tokenizer)
    if not found or end is None:
        raise ConfigError(
            "the objective span-corruption needs a tokenizer with an end-of-text token and"
            " sentinels, <extra_id_0>, <extra_id_1>, …; train one with them as special_tokens, or"
            " give objective=SpanCorruption(…)"
        )
    return found, end


def _decoder_start(model: ModelConfig) -> int:
    if model.decoder_start_id is None:
        raise ConfigError(
            "the model has no decoder_start_id, the id its decoder reads first; give"
            " --set model.decoder_start_id=…, the id of the padding or end-of-text token"
        )
    return model.decoder_start_id


#: Every objective that a run can name.
TASKS: Mapping[str, Task] = {
    "causal": Task(CausalLM, "text", ("decoder",), lambda run: CausalLM(run.train.label_smoothing)),
    "reversed": Task(
        ReversedLM, "text", ("decoder",), lambda run: ReversedLM(run.train.label_smoothing)
    ),
    "prefix": Task(
        PrefixLM,
        "text",
        ("decoder",),
        lambda run: PrefixLM(run.train.seed, run.train.label_smoothing),
    ),
    "masked": Task(MaskedLM, "text", ("encoder", "decoder"), _make_masked),
    "span-corruption": Task(SpanCorruption, "text", ("encoder-decoder",), _make_span_corruption),
    "seq2seq": Task(
        Seq2Seq,
        "pairs",
        ("encoder-decoder",),
        lambda run: Seq2Seq(run.train.label_smoothing, _decoder_start(run.model), run.model.eos_id),
    ),
    "completion": Task(
        CompletionLM,
        "completions",
        ("decoder",),
        lambda run: CompletionLM(run.train.label_smoothing),
    ),
    "classification": Task(
        Classification,
        "labels",
        ("encoder", "decoder"),
        lambda run: Classification("encoder" if run.model.kind == "encoder" else "decoder"),
    ),
}

# Those that read a text in one direction, and so decide in which it is generated.
_DIRECTED = (CausalLM, PrefixLM, CompletionLM, ReversedLM)

# The objective of a run that names none, by its data and its model.
_NATURAL: Mapping[tuple[DataKind, Kind], str] = {
    ("text", "decoder"): "causal",
    ("text", "encoder"): "masked",
    ("text", "encoder-decoder"): "span-corruption",
    ("pairs", "encoder-decoder"): "seq2seq",
    ("completions", "encoder-decoder"): "seq2seq",
    ("pairs", "decoder"): "completion",
    ("completions", "decoder"): "completion",
    ("labels", "decoder"): "classification",
    ("labels", "encoder"): "classification",
}

_DATA_NAMES: Mapping[DataKind, str] = {
    "text": "plain text",
    "pairs": "pairs of texts",
    "completions": "prompts with their completions",
    "labels": "texts with labels",
}


def parse_objective(text: str) -> dict[str, float]:
    """Read the name of an objective, or the weights of a mixture.

    Raises:
        ConfigError: An unknown name, a weight that is none, or parts that read different data.

    Example:
        >>> parse_objective("causal")
        {'causal': 1.0}
        >>> parse_objective("causal=2, masked=1")
        {'causal': 2.0, 'masked': 1.0}
    """
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, equals, weight = (word.strip() for word in part.partition("="))
        if name not in TASKS:
            hint = did_you_mean(name, TASKS) or f"; known: {', '.join(TASKS)}"
            raise ConfigError(f"objective {name!r} is unknown{hint}")
        if name in weights:
            raise ConfigError(f"objective {name} is named twice in {text!r}")
        try:
            weights[name] = float(weight) if equals else 1.0
        except ValueError:
            weights[name] = 0.0
        if not 0.0 < weights[name] < float("inf"):
            raise ConfigError(f"objective {name}: its weight must be above 0, got {weight!r}")
    kinds = {TASKS[name].data for name in weights}
    if len(kinds) > 1:
        raise ConfigError(
            f"objective {text!r} mixes what reads"
            f" {' and '.join(sorted(_DATA_NAMES[kind] for kind in kinds))}"
        )
    return weights


def data_kind(names: Mapping[str, float]) -> DataKind:
    """Return what data the named objectives, all of them, are made from."""
    return TASKS[next(iter(names))].data


def natural_objective(data: DataKind, model: Kind) -> str:
    """Return the objective of a run that names none.

    Raises:
        ConfigError: There is none for such data and such a model.

    Example:
        >>> natural_objective("text", "encoder"), natural_objective("pairs", "encoder-decoder")
        ('masked', 'seq2seq')
    """
    if (data, model) not in _NATURAL:
        raise ConfigError(f"there is no objective that trains an {model} on {_DATA_NAMES[data]}")
    return _NATURAL[data, model]


def make_objective(
    train: TrainConfig,
    model: ModelConfig,
    tokenizer: Tokenizer | None,
    data: TokenDataset | ExampleDataset,
) -> Any:
    """Build the objective of a run from its settings.

    Raises:
        ConfigError: It does not go with the data or the model, or the tokenizer lacks its tokens.
    """
    text = train.objective or natural_objective(kind_of_data(data), model.kind)
    names = parse_objective(text)
    for name in names:  # before what it needs of the tokenizer is looked for
        check_model(TASKS[name].objective, name, TASKS[name].models, model)
    run = _Run(train, model, tokenizer)
    parts = [(TASKS[name].make(run), weight) for name, weight in names.items()]
    return parts[0][0] if len(parts) == 1 else Mixture(parts, seed=train.seed)


def kind_of_data(data: TokenDataset | ExampleDataset) -> DataKind:
    """Return what a data set is; of two texts one cannot tell pairs from completions."""
    if not isinstance(data, ExampleDataset):
        return "text"
    return "pairs" if data.labels is None else "labels"


# -- what goes with what ---------------------------------------------------------------------------


def check_objective(
    objective: Any, model: ModelConfig, data: TokenDataset | ExampleDataset
) -> None:
    """Raise unless an objective can train a model on data. Objectives of users pass.

    Raises:
        ConfigError: Saying what the objective needs, and what there is.
    """
    parts = _parts(objective)
    kind = kind_of_data(data)
    for part in parts:
        name = next((name for name, task in TASKS.items() if type(part) is task.objective), None)
        if name is None:
            continue
        task = TASKS[name]
        stack = getattr(part, "stack", None)
        check_model(task.objective, name, (stack,) if stack else task.models, model)
        wanted = "pairs" if task.data == "completions" else task.data
        if wanted != kind:
            raise ConfigError(
                f"{task.objective.__name__} is made from {_DATA_NAMES[task.data]}, but {data.name}"
                f" is {_DATA_NAMES[kind]}"
            )
        if task.objective is Classification and model.num_labels == 0:
            raise ConfigError(
                "Classification needs a model with a classifier; build it with num_labels=…"
            )
        if isinstance(data, ExampleDataset) and data.num_labels > model.num_labels:
            raise ConfigError(
                f"{data.name} has {data.num_labels} labels, but the model's num_labels is"
                f" {model.num_labels}; build it with as many"
            )
    backwards = {isinstance(part, ReversedLM) for part in parts if isinstance(part, _DIRECTED)}
    if backwards == {True} and not model.right_to_left:
        raise ConfigError(
            "ReversedLM reads texts from their end: build the model with right_to_left=True, so"
            " that generation does, too"
        )
    if backwards == {False} and model.right_to_left:
        raise ConfigError(
            f"the model reads texts from their end (right_to_left), but {_name(objective)} from"
            " their beginning; train it with ReversedLM, or build it with right_to_left=False"
        )


def check_models(names: Iterable[str], model: ModelConfig) -> None:
    """Raise unless the model is of a kind that each of the named objectives trains."""
    for name in names:
        check_model(TASKS[name].objective, name, TASKS[name].models, model)


def check_model(objective: type, name: str, kinds: Sequence[str], model: ModelConfig) -> None:
    """Raise unless the model is of one of the kinds that an objective trains."""
    if model.kind not in kinds:
        needed = " or an ".join(kinds)
        article = "a" if needed.startswith("d") else "an"
        have = "a decoder" if model.kind == "decoder" else f"an {model.kind}"
        fitting = ", ".join(other for other, task in TASKS.items() if model.kind in task.models)
        raise ConfigError(
            f"{objective.__name__} (objective {name}) trains {article} {needed}, but the model is"
            f" {have}; objectives for it: {fitting}"
        )


def writes_text(objective: Any) -> bool:
    """Whether a model trained by an objective has learned to go on from a text or a source."""
    return any(isinstance(part, (*_DIRECTED, Seq2Seq)) for part in _parts(objective))


def _parts(objective: Any) -> list[Any]:
    return [part for part, _ in objective.parts] if isinstance(objective, Mixture) else [objective]


def unsmoothed(objective: Any) -> Any:
    """Return an objective without its label smoothing, which is for training.

    Example:
        >>> unsmoothed(Mixture([(CausalLM(0.1), 1)])).parts[0][0].label_smoothing
        0.0
    """
    if isinstance(objective, Mixture):
        parts = [(unsmoothed(part), weight) for part, weight in objective.parts]
        return dataclasses.replace(objective, parts=parts)
    if not dataclasses.is_dataclass(objective) or not getattr(objective, "label_smoothing", 0.0):
        return objective
    return dataclasses.replace(cast(Any, objective), label_smoothing=0.0)


def describe_objective(objective: Any) -> dict[str, Any]:
    """Return the name and the settings of an objective, ready for JSON: equal ones train alike.

    Example:
        >>> describe_objective(CausalLM())
        {'name': 'CausalLM', 'label_smoothing': 0.0}
    """
    settings: dict[str, Any] = {}
    if dataclasses.is_dataclass(objective):
        settings = {
            item.name: _plain(getattr(objective, item.name))
            for item in dataclasses.fields(objective)
        }
    return {"name": _name(objective), **settings}


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return f"{value.size} values, {hashlib.sha256(value.tobytes()).hexdigest()[:16]}"
    if isinstance(value, (list, tuple, range)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return value if isinstance(value, (str, int, float, type(None))) else describe_objective(value)


def _name(objective: Any) -> str:
    return getattr(objective, "__name__", type(objective).__name__)


# -- tokenizers and architectures made for a run ---------------------------------------------------


def usual_tokenizer(names: Mapping[str, float], model: Kind) -> TokenizerKind:
    """Return the kind of tokenizer that is trained for a run that names none.

    Example:
        >>> usual_tokenizer({"causal": 1.0}, "decoder"), usual_tokenizer({"masked": 1.0}, "encoder")
        ('char', 'wordpiece')
    """
    if model == "encoder":
        return "wordpiece"
    return "char" if model == "decoder" and data_kind(names) == "text" else "bpe"


def check_tokens(names: Mapping[str, float], tokenizer: Tokenizer) -> None:
    """Raise unless a tokenizer has the tokens that objectives need, before it is put to work.

    Raises:
        ConfigError: Saying which one lacks.
    """
    if "masked" in names:
        _mask_token(tokenizer)
    if "span-corruption" in names:
        _sentinels(tokenizer)


def block_frame(objective: Any, tokenizer: Tokenizer | None) -> tuple[int, int] | None:
    """Return the ids around every block of text, or None.

    An encoder reads a text between "[CLS]" and "[SEP]", or what its tokenizer has for them. So that
    it has learned to, the blocks that it is trained on stand between them, too.
    """
    masked = isinstance(objective, MaskedLM) and objective.stack == "encoder"
    if not masked or tokenizer is None or None in (tokenizer.cls_id, tokenizer.sep_id):
        return None
    return cast("tuple[int, int]", (tokenizer.cls_id, tokenizer.sep_id))


def special_tokens(names: Mapping[str, float], kind: TokenizerKind) -> list[str]:
    """Return the special tokens of a tokenizer of some kind that is trained for objectives.

    Example:
        >>> special_tokens({"seq2seq": 1.0}, "bpe")
        ['<pad>', '</s>']
        >>> special_tokens({"masked": 1.0}, "char")
        ['[MASK]']
    """
    tokens = list(USUAL_SPECIAL_TOKENS[kind])
    if kind != "wordpiece" and names.keys() & {"seq2seq", "span-corruption"}:
        tokens = ["<pad>", "</s>", *(["<unk>"] if kind != "bpe" else [])]
    if "completion" in names and not tokens:
        tokens = ["<|endoftext|>"]
    if "masked" in names and "[MASK]" not in tokens:
        tokens.append("[MASK]")
    if "span-corruption" in names:
        tokens += [f"<extra_id_{n}>" for n in range(_SENTINELS)]
    return tokens


def fit_config(
    names: Mapping[str, float],
    model: ModelConfig,
    tokenizer: Tokenizer | None,
    data: TokenDataset | ExampleDataset,
    *,
    fresh: bool,
) -> dict[str, Any]:
    """Return the fields of an architecture that follow from objectives and data.

    Args:
        names: The objectives.
        model: The architecture as it is.
        tokenizer: That of the data.
        data: For the number of labels.
        fresh: Whether the model is a new one; one that was trained keeps its special ids.
    """
    fitted: dict[str, Any] = {}
    directed = [name for name in names if issubclass(TASKS[name].objective, _DIRECTED)]
    if directed == ["reversed"] and fresh:
        fitted["right_to_left"] = True
    if tokenizer is not None and (fresh or model.eos_id is None):
        fitted["eos_id"] = end_id(tokenizer) if model.kind != "decoder" else tokenizer.eos_id
    if model.kind == "encoder-decoder" and (fresh or model.decoder_start_id is None):
        # As Marian and T5; BART, and a tokenizer without padding, start from the end of a text.
        pad = model.pad_id if tokenizer is None else tokenizer.pad_id
        end = fitted.get("eos_id", model.eos_id)
        fitted["decoder_start_id"] = end if pad is None else pad
    if "classification" in names:
        labels: int = data.num_labels  # type: ignore[union-attr]
        if labels < 2:
            raise DataError(
                f"{data.name} has {labels} label{'' if labels == 1 else 's'}; there must be two"
                " at least to tell apart"
            )
        # The head over the vocabulary makes way; BERT's pooler comes with its classifier.
        fitted |= {"num_labels": labels, "pooler": model.kind == "encoder"}
        fitted["label_names"] = data.label_names  # type: ignore[union-attr]
        fitted |= {"head_transform": False, "head_bias": False, "tie_embeddings": True}
    return fitted
