"""Runs with every objective: they resume bit for bit, evaluate alike, and say what is amiss."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest

from command import TEXT, fails, run
from llmcore import checkpoint
from llmcore.config import ModelConfig
from llmcore.data.example_tokenizing import encode_source
from llmcore.data.examples import ExampleDataset
from llmcore.errors import ConfigError, DataError
from llmcore.model import Transformer
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
from llmcore.training.train_config import TrainConfig
from llmcore.training.trainer import Trainer

SIZES = {
    "vocab_size": 40, "hidden_size": 16, "num_heads": 2, "max_positions": 24,
    "embedding_dropout": 0.2, "attention_dropout": 0.2, "residual_dropout": 0.2,
}  # fmt: skip
DECODER = ModelConfig(**SIZES, num_decoder_layers=2)
ENCODER = ModelConfig(**SIZES, num_encoder_layers=2)
BOTH = ModelConfig(**SIZES, num_encoder_layers=1, num_decoder_layers=1)

MASKED_DECODER = MaskedLM(39, vocab_size=40, seed=4, stack="decoder")
RUNS = {
    "masked-decoder": (DECODER, MASKED_DECODER),
    "masked": (ENCODER, MaskedLM(39, vocab_size=40, seed=4)),
    "reversed": (DECODER.replace(right_to_left=True), ReversedLM()),
    "prefix": (DECODER, PrefixLM(seed=3, label_smoothing=0.1)),
    "mixture": (DECODER, Mixture([(CausalLM(), 1), (MASKED_DECODER, 1)], seed=2)),
    "span-corruption": (BOTH, SpanCorruption([36, 37, 38], eos_id=1, decoder_start_id=0, seed=7)),
    "seq2seq": (BOTH, Seq2Seq(0.1, decoder_start_id=0, eos_id=1)),
    "completion": (DECODER, CompletionLM()),
    "classification": (ENCODER.replace(num_labels=3, pooler=True), Classification()),
    "classification-decoder": (DECODER.replace(num_labels=3), Classification("decoder")),
}  # fmt: skip


def ragged(count, seed):
    rng = np.random.default_rng(seed)
    return [rng.integers(2, 36, rng.integers(1, 11)) for _ in range(count)]


def data_for(objective):
    if isinstance(objective, Classification):
        return ExampleDataset.from_labels(ragged(50, 1), np.arange(50) % 3).split(0.2)
    if isinstance(objective, (Seq2Seq, CompletionLM)):
        return ExampleDataset.from_pairs(ragged(50, 1), ragged(50, 2)).split(0.2)
    ids = np.random.default_rng(1).integers(2, 36, 700)
    return ids[:600], ids[600:]


def trainer(name, out, *, objective=None, seed=0, **changes):
    config, usual = RUNS[name]
    settings = {
        "steps": 14, "batch_size": 3, "block_size": 12, "accumulation": 2, "eval_interval": 5,
        "eval_batches": 3, "log_interval": 4, "sampling": "epoch", "out_dir": str(out), **changes,
    }  # fmt: skip
    chosen = objective or usual
    model = Transformer(config, seed=seed)
    return Trainer(model, data_for(chosen), TrainConfig(**settings), objective=chosen)


def outcome(out):
    """Everything that a run leaves and that does not tell the time."""
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for record in metrics:
        for name in ("time", "tokens_per_second", "peak_share"):
            record.pop(name, None)
    files = ("last/model.safetensors", "last/training_state.safetensors", "best/model.safetensors")
    return metrics, {name: (out / name).read_bytes() for name in files}


@pytest.mark.parametrize("name", RUNS)
def test_resume_is_bit_for_bit(tmp_path, name):
    trainer(name, tmp_path / "whole").fit()
    first = trainer(name, tmp_path / "parts")
    step = first._step.step

    def stop_at_seven(*args, **named):
        if first.state.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*args, **named)

    first._step.step = stop_at_seven
    assert first.fit().reason == "interrupted"
    second = trainer(name, tmp_path / "parts", seed=5, resume=True)
    assert second.fit().reason == "finished"
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")
    # Masks are frozen in evaluation: the same loss again, whatever was drawn before.
    last = json.loads((tmp_path / "whole/metrics.jsonl").read_text().splitlines()[-1])
    assert second.evaluate() == second.evaluate() == last["val_loss"]


def test_training_masks_other_tokens_every_time(tmp_path):
    run = trainer("masked", tmp_path, batch_size=40, steps=4, accumulation=1)
    batches = [run._sampler.next_sample().batch(run.objective) for _ in range(6)]
    assert len({batch.rows.tobytes() for batch in batches}) == 6


def test_evaluation_does_not_smooth_labels(tmp_path):
    losses = [
        trainer("prefix", tmp_path, objective=PrefixLM(3, smoothing)).evaluate()
        for smoothing in (0.0, 0.3)
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("name", "other", "words"),
    [
        ("masked", MaskedLM(39, vocab_size=40, seed=4, probability=0.3),
         "probability was 0.15 and is 0.3"),
        ("prefix", CausalLM(), "name was PrefixLM and is CausalLM"),
        ("mixture", Mixture([(CausalLM(), 2), (MASKED_DECODER, 1)], seed=2), "another objective"),
    ],
)  # fmt: skip
def test_another_objective_is_refused(tmp_path, name, other, words):
    trainer(name, tmp_path).fit()
    before = outcome(tmp_path)
    with pytest.raises(ConfigError, match=words):
        trainer(name, tmp_path, objective=other, resume=True).fit()
    assert outcome(tmp_path) == before
    recorded = json.loads((tmp_path / "run.json").read_text())["objective"]
    assert recorded["name"] == type(RUNS[name][1]).__name__


def test_what_does_not_fit_is_refused_before_training(tmp_path):
    def refuse(model, data, words, error=ConfigError, **settings):
        config = TrainConfig(block_size=8, out_dir=str(tmp_path / "out"), **settings)
        with pytest.raises(error, match=words):
            Trainer(Transformer(model), data, config)

    ids, _ = data_for(CausalLM())
    pairs = data_for(Seq2Seq())
    refuse(ENCODER, pairs, "no objective that trains an encoder on pairs")
    refuse(DECODER, ids, "trains an encoder-decoder", objective="seq2seq")
    refuse(DECODER, pairs, "CausalLM is made from plain text", objective="causal")
    refuse(DECODER, ids, "needs a tokenizer with a mask token", objective="masked")
    refuse(DECODER, (pairs[0], ids), "CompletionLM is made from")
    refuse(DECODER.replace(max_positions=9), pairs, "cut them .max_length. or give the model more")
    refuse(DECODER.replace(vocab_size=30), pairs, "outside the vocabulary of 30", DataError)
    empty = ExampleDataset.from_pairs([], [])
    refuse(DECODER, empty, "has no examples", DataError)
    assert not (tmp_path / "out").exists()


# -- the command line ----------------------------------------------------------------------------

SHORT = ["--steps", 6, "--eval-interval", 3, "--batch-size", 4, "--block-size", 16,
         "--eval-batches", 0, "--sample-tokens", 4, "--set", "model.hidden_size=16", "--set",
         "model.num_heads=2"]  # fmt: skip
ONE_DECODER = ["--set", "model.num_decoder_layers=1"]
ONE_ENCODER = ["--set", "model.num_encoder_layers=1"]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Small data of every form in the current directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "a.de").write_text("".join(f"Nummer {i} ist hier\n" for i in range(60)))
    (tmp_path / "a.en").write_text("".join(f"number {i} is here\n" for i in range(60)))
    reviews = [{"text": f"number {i}", "label": ["even", "odd"][i % 2]} for i in range(60)]
    (tmp_path / "reviews.jsonl").write_text("\n".join(map(json.dumps, reviews)))
    chats = [{"prompt": f"say {i}: ", "completion": f"{i} {i}"} for i in range(60)]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, chats)))
    table = "".join(f"{i}\tnumber {i}\t{i % 3}\n" for i in range(60))
    (tmp_path / "table.tsv").write_text("row\tquestion\tstars\n" + table)
    return tmp_path


COMMANDS = [
    ("CausalLM", ["text.txt"]),
    ("ReversedLM", ["text.txt", "--objective", "reversed"]),
    ("PrefixLM", ["text.txt", "--objective", "prefix", "--label-smoothing", 0.1]),
    ("MaskedLM", ["text.txt", "--objective", "masked", "--tokenizer", "unigram",
                  "--vocab-size", 90, "--whole-words"]),
    ("Mixture", ["text.txt", "--objective", "causal=1,masked=2"]),
    ("CompletionLM", ["chats.jsonl"]),
    ("CompletionLM", ["a.de", "--target", "a.en", "--tokenizer", "char"]),
    ("Classification", ["reviews.jsonl"]),
    ("MaskedLM", ["text.txt", "--model", "bert-base", "--mask-probability", 0.3]),
    ("Classification", ["table.tsv", "--fields", "question,stars", "--objective",
                        "classification", "--model", "bert-base"]),
    ("Seq2Seq", ["a.de", "--target", "a.en", "--model", "transformer-base"]),
    ("Seq2Seq", ["a.de", "--target", "a.en", "--model", "t5-small", "--tokenizer", "unigram",
                 "--vocab-size", 90, "--max-length", 9]),
    ("SpanCorruption", ["text.txt", "--model", "t5-small", "--vocab-size", 400]),
]  # fmt: skip


@pytest.mark.parametrize(("objective", "words"), COMMANDS)
def test_train_and_eval(capsys, files, objective, words):
    model = words[words.index("--model") + 1] if "--model" in words else "gpt-nano"
    layers = {"gpt-nano": ONE_DECODER, "bert-base": ONE_ENCODER}.get(
        model, [*ONE_DECODER, *ONE_ENCODER]
    )
    train = ["train", "--data", *words, *SHORT, *layers, "--out-dir", "out"]
    status, printed, err = run(capsys, *train)
    assert status == 0, err
    assert f"objective  {objective}" in printed
    assert ("A sample:" in printed) == (objective in {
        "CausalLM", "ReversedLM", "PrefixLM", "CompletionLM", "Mixture", "Seq2Seq"
    })  # fmt: skip
    settings = json.loads((files / "out/run.json").read_text())
    assert settings["objective"]["name"] == objective
    records = (files / "out/metrics.jsonl").read_text().splitlines()
    last = [json.loads(line)["val_loss"] for line in records if "val_loss" in line][-1]
    status, printed, err = run(
        capsys, "eval", "out/last", "--json", "--block-size", 16, "--batch-size", 4
    )
    assert status == 0, err
    assert json.loads(printed)["loss"] == last
    # What the run was trained on can be read as data of their own, too.
    target = words[1:3] if "--target" in words else []
    status, printed, err = run(capsys, "eval", "out", "--data", words[0], *target, "--json")
    assert status == 0, err
    assert json.loads(printed)["loss"] > 0
    # A resumed run needs neither its data nor its options.
    (files / words[0]).unlink()
    status, printed, err = run(capsys, "train", "--resume", "--out-dir", "out", "--steps", 8)
    assert status == 0, err
    assert "at step 6 of 8" in printed


def test_what_a_run_says_of_its_model(capsys, files):
    words = ["train", *SHORT, *ONE_DECODER, *ONE_ENCODER]
    data = ["--data", "a.de", "--target", "a.en", "--model", "transformer-base"]
    assert run(capsys, *words, *data, "--out-dir", "pairs")[0] == 0
    saved = checkpoint.load(files / "pairs/last")
    tokenizer = checkpoint.load_tokenizer(saved)
    assert saved.config.vocab_size == tokenizer.vocab_size
    assert saved.config.decoder_start_id == saved.config.pad_id == tokenizer.pad_id == 0
    assert saved.config.eos_id == tokenizer.eos_id == 1
    # Sources are encoded for the trained model as they were in training.
    assert tokenizer.encode("Nummer") == encode_source(tokenizer, ["Nummer"])[0]
    assert tokenizer.encode("Nummer")[-1] == 1
    reverse = ["train", *SHORT, *ONE_DECODER, "--data", "text.txt", "--objective", "reversed"]
    assert run(capsys, *reverse, "--out-dir", "reversed")[0] == 0
    assert checkpoint.load(files / "reversed/last").config.right_to_left


def test_a_classifier_starts_from_a_masked_model(capsys, files):
    pretrain = ["train", *SHORT, *ONE_ENCODER, "--model", "bert-base", "--data", "text.txt"]
    assert run(capsys, *pretrain, "--out-dir", "bert")[0] == 0
    tune = ["train", "--steps", 1, "--lr", 1e-9, "--model", "bert", "--data", "reviews.jsonl"]
    status, _, err = run(capsys, *tune, "--out-dir", "tuned")
    assert status == 0, err
    before, after = (
        {name: np.array(array) for name, array in checkpoint.load(files / folder).parameters}
        for folder in ("bert/best", "tuned/last")
    )
    assert after["classifier.weight"].shape == (2, 16)
    name = "encoder.layers.0.self_attention.q.weight"
    np.testing.assert_allclose(after[name], before[name], atol=1e-6)
    assert not any(name.startswith("head.") for name in after)


def test_texts_that_are_too_long_are_cut_and_counted(capsys, files):
    words = ["train", *SHORT, *ONE_DECODER, "--data", "chats.jsonl", "--tokenizer", "char"]
    status, printed, err = run(capsys, *words, "--max-length", 10, "--out-dir", "out")
    assert status == 0, err
    assert "warning: 60 texts were longer than 10 tokens and have been cut" in printed
    line = fails(capsys, 1, *words, "--max-length", 11, "--out-dir", "out", "--resume")
    assert "other data (max_length from 10 to 11)" in line


@pytest.mark.parametrize(
    ("words", "status", "hint"),
    [
        (["--data", "a.de", "--target", "a.fr"], 1, "a.fr: there is no such file"),
        (["--data", "a.fr", "--target", "a.en"], 1, "a.fr: there is no such file"),
        (["--data", "a.de", "--target", "text.txt"], 1,
         "a.de has 60 lines and text.txt has 120: line n of the one must belong"),
        (["--target", "a.en"], 1, "name --data, too"),
        (["--objective", "seq2seq", "--model", "t5-small"], 1, "is made from examples"),
        (["--data", "text.txt", "--target", "a.en", "--objective", "causal"], 1,
         "leave --target out"),
        (["--data", "a.de", "--target", "a.en", "--validation", "a.de"], 1,
         "the targets of a.de are missing: name their file with --validation-target"),
        (["--data", "reviews.jsonl", "--fields", "text,mood"], 1,
         "reviews.jsonl:1: there is no field 'mood'; the fields are 'text', 'label'"),
        (["--data", "reviews.jsonl", "--fields", "text"], 1, "fields must name text,label"),
        (["--data", "chats.jsonl", "--objective", "classification"], 1,
         "chats.jsonl:1: there is no field 'text'"),
        (["--data", "blank.jsonl", "--objective", "completion"], 1,
         "blank.jsonl:2: the prompt is empty"),
        (["--data", "one.jsonl"], 1, "has 1 label; there must be two"),
        (["--data", "text.txt", "--objective", "masked", "--tokenizer", "plain"], 1,
         "needs a tokenizer with a mask token"),
        (["--data", "text.txt", "--objective", "masked", "--whole-words"], 1,
         "does not tell where words begin"),
        (["--data", "text.txt", "--objective", "span-corruption"], 1,
         "SpanCorruption (objective span-corruption) trains an encoder-decoder, but the model is a"
         " decoder"),
        (["--data", "text.txt", "--model", "bert-base", "--objective", "causal"], 1,
         "CausalLM (objective causal) trains a decoder, but the model is an encoder"),
        (["--data", "a.de", "--target", "a.en", "--model", "bert-base"], 1,
         "no objective that trains an encoder on pairs of texts"),
        (["--data", "chats.jsonl", "--max-length", 90, "--model", "start"], 1,
         "max_length 90 is more than the model's max_positions 16"),
        (["--objective", "casual"], 2, "did you mean 'causal'"),
        (["--objective", "causal,seq2seq"], 2, "mixes what reads"),
        (["--label-smoothing", 1], 2, "label_smoothing must be at most 0.999"),
        (["--mask-probability", 0], 2, "mask_probability must be at least 0.001"),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence(capsys, files, words, status, hint):
    from llmcore.tokenizer import Tokenizer

    (files / "blank.jsonl").write_text(
        '{"prompt": "a", "completion": "b"}\n{"prompt": " ", "completion": "b"}\n'
    )
    one = [{"text": f"number {i}", "label": "a"} for i in range(30)]
    (files / "one.jsonl").write_text("\n".join(map(json.dumps, one)))
    tokenizer = Tokenizer.train([TEXT], "bpe", 300)
    tokenizer.save(files / "plain")
    if "start" in words:
        config = ModelConfig.preset("gpt-nano", num_decoder_layers=1, max_positions=16,
                                    vocab_size=300)  # fmt: skip
        start = Transformer(config)
        start.tokenizer = tokenizer
        start.save_pretrained(files / "start")
    line = fails(capsys, status, "train", "--steps", 2, "--out-dir", "out", *words)
    assert hint in line
    assert not (files / "out/last").exists()


def test_eval_says_what_it_needs(capsys, files):
    words = ["train", *SHORT, *ONE_DECODER, "--data", "reviews.jsonl", "--out-dir", "out"]
    assert run(capsys, *words)[0] == 0
    (files / "other.tsv").write_text("number 1\tnever\n")
    line = fails(capsys, 1, "eval", "out", "--data", "other.tsv")
    assert "other.tsv:1: unknown label 'never'; the labels are 'even', 'odd'" in line
    line = fails(capsys, 2, "eval", "out", "--objective", "casual")
    assert "did you mean 'causal'" in line
    line = fails(capsys, 1, "eval", "out", "--data", "text.txt", "--objective", "masked")
    assert "needs a tokenizer with a mask token" in line
    line = fails(capsys, 1, "train", "--resume", "--out-dir", "out", "--objective", "causal")
    assert "with another objective (classification before, now causal)" in line
