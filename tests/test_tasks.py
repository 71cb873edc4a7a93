"""Which objective goes with which data, model and tokenizer, and what else is said."""

from __future__ import annotations

import json

import numpy as np
import pytest

from llmcore.config import ModelConfig
from llmcore.data import TokenDataset
from llmcore.data.examples import ExampleDataset
from llmcore.errors import ConfigError, DataError
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
)
from llmcore.tokenizer import Tokenizer
from llmcore.training.tasks import (
    TASKS,
    block_frame,
    check_objective,
    describe_objective,
    fit_config,
    make_objective,
    natural_objective,
    parse_objective,
    special_tokens,
    writes_text,
)
from llmcore.training.train_config import TrainConfig

SIZES = {"vocab_size": 60, "hidden_size": 8, "num_heads": 2, "max_positions": 16}
DECODER = ModelConfig(**SIZES, num_decoder_layers=1)
ENCODER = ModelConfig(**SIZES, num_encoder_layers=1, num_labels=2)
BOTH = ModelConfig(**SIZES, num_encoder_layers=1, num_decoder_layers=1, decoder_start_id=0)

TEXT = TokenDataset.from_ids(np.arange(50))
PAIRS = ExampleDataset.from_pairs([[1]], [[2]])
LABELS = ExampleDataset.from_labels([[1], [2]], [0, 1])

EVERY = {
    "causal": (CausalLM(), DECODER, TEXT),
    "reversed": (ReversedLM(), DECODER.replace(right_to_left=True), TEXT),
    "prefix": (PrefixLM(), DECODER, TEXT),
    "masked": (MaskedLM(3), ENCODER, TEXT),
    "span-corruption": (SpanCorruption([9, 8], eos_id=1, decoder_start_id=0), BOTH, TEXT),
    "seq2seq": (Seq2Seq(), BOTH, PAIRS),
    "completion": (CompletionLM(), DECODER, PAIRS),
    "classification": (Classification(), ENCODER, LABELS),
}


def test_every_objective_is_named():
    assert EVERY.keys() == TASKS.keys()
    for name, (objective, model, data) in EVERY.items():
        assert type(objective) is TASKS[name].objective
        check_objective(objective, model, data)


@pytest.mark.parametrize(
    ("words", "objective", "model", "data"),
    [
        ("Seq2Seq (objective seq2seq) trains an encoder-decoder, but the model is a decoder",
         Seq2Seq(), DECODER, PAIRS),
        ("SpanCorruption (objective span-corruption) trains an encoder-decoder, but the model is"
         " an encoder", EVERY["span-corruption"][0], ENCODER, TEXT),
        ("CausalLM (objective causal) trains a decoder, but the model is an encoder; objectives"
         " for it: masked, classification", CausalLM(), ENCODER, TEXT),
        ("MaskedLM (objective masked) trains an encoder, but the model is a decoder",
         MaskedLM(3), DECODER, TEXT),
        ("trains a decoder, but the model is an encoder", MaskedLM(3, stack="decoder"), ENCODER,
         TEXT),
        ("trains a decoder, but the model is an encoder-decoder", CompletionLM(), BOTH, PAIRS),
        ("Classification needs a model with a classifier", Classification(),
         ENCODER.replace(num_labels=0), LABELS),
        ("has 2 labels, but the model's num_labels is 1", Classification(),
         ENCODER.replace(num_labels=1), LABELS),
        ("right_to_left=True", ReversedLM(), DECODER, TEXT),
        ("right_to_left=False", CausalLM(), DECODER.replace(right_to_left=True), TEXT),
        ("Seq2Seq is made from pairs of texts, but the data set is plain text", Seq2Seq(), BOTH,
         TEXT),
        ("CausalLM is made from plain text, but the pairs is pairs of texts", CausalLM(), DECODER,
         PAIRS),
        ("is texts with labels", CompletionLM(), DECODER, LABELS),
        ("MaskedLM (objective masked) trains an encoder", Mixture([(CausalLM(), 1),
                                                                   (MaskedLM(3), 1)]), DECODER,
         TEXT),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_told(words, objective, model, data):
    with pytest.raises(ConfigError) as error:
        check_objective(objective, model, data)
    assert words in str(error.value)


def test_mixtures_of_directions_and_objectives_of_users_pass():
    both = Mixture([(CausalLM(), 1), (ReversedLM(), 1)])
    for right_to_left in (False, True):
        check_objective(both, DECODER.replace(right_to_left=right_to_left), TEXT)
    masked = Mixture([(ReversedLM(), 1), (MaskedLM(3, stack="decoder"), 1)])
    check_objective(masked, DECODER.replace(right_to_left=True), TEXT)
    check_objective(lambda ids, lengths, samples, epoch: None, BOTH, TEXT)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("casual", "'casual' is unknown, did you mean 'causal'"),
        ("", "known: causal, reversed"),
        ("causal=0", "weight must be above 0, got '0'"),
        ("causal=x", "weight must be above 0, got 'x'"),
        ("causal=inf", "weight must be above 0"),
        ("causal,causal", "named twice"),
        ("causal,seq2seq", "mixes what reads pairs of texts and plain text"),
    ],
)
def test_names_that_are_none(text, words):
    with pytest.raises(ConfigError, match=words):
        parse_objective(text)
    if text:
        with pytest.raises(ConfigError, match=words):
            TrainConfig(objective=text)


def test_natural_objectives():
    found = {
        (kind, model): natural_objective(kind, model)
        for kind, model in (
            ("text", "decoder"), ("text", "encoder"), ("text", "encoder-decoder"),
            ("pairs", "encoder-decoder"), ("completions", "decoder"), ("labels", "encoder"),
        )
    }  # fmt: skip
    assert list(found.values()) == [
        "causal", "masked", "span-corruption", "seq2seq", "completion", "classification",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="no objective that trains an encoder on pairs"):
        natural_objective("pairs", "encoder")


TOKENIZERS = {
    kind: Tokenizer.train(
        ["to be or not to be"], kind, None if kind == "char" else 420,
        special_tokens({"masked": 1, "span-corruption": 1, "seq2seq": 1}, kind),
    )
    for kind in ("char", "bpe", "wordpiece", "unigram")
}  # fmt: skip


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_trained_tokenizer_has_what_objectives_need(kind):
    tokenizer = TOKENIZERS[kind]
    assert tokenizer.mask_id is not None
    model = BOTH.replace(vocab_size=tokenizer.vocab_size)
    model = model.replace(
        **fit_config({"span-corruption": 1.0}, model, tokenizer, TEXT, fresh=True)
    )
    train = TrainConfig(objective="span-corruption", mask_probability=0.3, seed=5)
    made = make_objective(train, model, tokenizer, TEXT)
    assert len(made.sentinel_ids) == 100
    assert (made.density, made.seed, made.decoder_start_id) == (0.3, 5, tokenizer.pad_id)
    assert made.eos_id in (tokenizer.eos_id, tokenizer.sep_id)


def test_settings_reach_the_objective():
    tokenizer = TOKENIZERS["wordpiece"]
    train = TrainConfig(
        objective="causal=3,masked=1", label_smoothing=0.1, mask_probability=0.4, whole_words=True
    )
    mixture = make_objective(train, DECODER, tokenizer, TEXT)
    (causal, first), (masked, second) = mixture.parts
    assert (first, second, causal.label_smoothing) == (3, 1, 0.1)
    assert (masked.probability, masked.stack) == (0.4, "decoder")
    assert len(masked.word_starts) == masked.vocab_size == tokenizer.vocab_size
    assert {tokenizer.cls_id, tokenizer.sep_id} <= set(masked.special_ids)
    made = make_objective(TrainConfig(), BOTH.replace(eos_id=1), None, PAIRS)
    assert made == Seq2Seq(decoder_start_id=0, eos_id=1)
    assert make_objective(TrainConfig(), ENCODER, None, LABELS) == Classification()
    assert make_objective(TrainConfig(), DECODER, None, LABELS) == Classification("decoder")


def test_what_a_tokenizer_lacks_is_told():
    plain = Tokenizer.train(["to be"], "char")
    for tokenizer in (None, plain):
        with pytest.raises(ConfigError, match="needs a tokenizer with a mask token"):
            make_objective(TrainConfig(objective="masked"), DECODER, tokenizer, TEXT)
        with pytest.raises(ConfigError, match="needs a tokenizer with an end-of-text token and"):
            make_objective(TrainConfig(objective="span-corruption"), BOTH, tokenizer, TEXT)
    start = BOTH.replace(decoder_start_id=None)
    with pytest.raises(ConfigError, match="no decoder_start_id"):
        make_objective(TrainConfig(), start, None, PAIRS)
    words = TrainConfig(objective="masked", whole_words=True)
    with pytest.raises(DataError, match="does not tell where words begin"):
        make_objective(words, DECODER, TOKENIZERS["char"], TEXT)


def test_an_architecture_is_fitted_to_objective_and_data():
    tokenizer = TOKENIZERS["bpe"]
    fitted = fit_config({"classification": 1.0}, ENCODER, tokenizer, LABELS, fresh=True)
    assert (fitted["num_labels"], fitted["pooler"]) == (2, True)
    assert fit_config({"reversed": 1.0}, DECODER, None, TEXT, fresh=True) == {"right_to_left": True}
    assert fit_config({"reversed": 1.0}, DECODER, None, TEXT, fresh=False) == {}
    one = ExampleDataset.from_labels([[1]], [0])
    with pytest.raises(DataError, match="has 1 label; there must be two"):
        fit_config({"classification": 1.0}, ENCODER, None, one, fresh=True)


def test_what_describes_an_objective_tells_settings_apart():
    starts = np.arange(60) % 3 == 0
    mixtures = [
        Mixture([(CausalLM(), 1), (MaskedLM(3, word_starts=table), weight)], seed=seed)
        for table in (None, starts, ~starts)
        for weight in (1, 2)
        for seed in (0, 1)
    ]
    described = [json.dumps(describe_objective(mixture)) for mixture in mixtures]
    assert len(set(described)) == len(mixtures)
    for objective, _, _ in EVERY.values():
        facts = describe_objective(objective)
        assert json.loads(json.dumps(facts)) == facts
        assert facts["name"] == type(objective).__name__
    assert describe_objective(len) == {"name": "len"}


def test_blocks_for_an_encoder_have_a_frame():
    tokenizer = TOKENIZERS["wordpiece"]
    frame = (tokenizer.cls_id, tokenizer.sep_id)
    assert block_frame(MaskedLM(3), tokenizer) == frame
    for objective, other in (
        (MaskedLM(3, stack="decoder"), tokenizer), (CausalLM(), tokenizer),
        (MaskedLM(3), TOKENIZERS["bpe"]), (MaskedLM(3), None),
    ):  # fmt: skip
        assert block_frame(objective, other) is None


def test_what_writes_text():
    writers = {name for name, (objective, _, _) in EVERY.items() if writes_text(objective)}
    assert writers == {"causal", "reversed", "prefix", "completion", "seq2seq"}
    assert writes_text(Mixture([(CausalLM(), 1), (MaskedLM(3, stack="decoder"), 1)]))
