"""Uses of a model: masks filled, texts classified, embedded and translated, attention looked at."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import llmcore
from llmcore import (
    ConfigError,
    DataError,
    GenerationConfig,
    MaskedLM,
    ReversedLM,
    Seq2Seq,
    ShapeError,
    TrainStep,
)
from llmcore.objectives import CausalLM, Classification
from llmcore.tensor import write
from llmcore.tokenizer import Tokenizer
from reference.attention import attention_weights
from test_model import make

SENTENCES = ["the cat sat on the mat", "a dog ran to the cat", "the dog sat on a mat"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(SENTENCES, kind="wordpiece", vocab_size=60)


@pytest.fixture(scope="module")
def filler(tokenizer):
    """An encoder that knows three sentences by heart."""
    model = make("bert", vocab_size=tokenizer.vocab_size)
    model.tokenizer = tokenizer
    step = TrainStep(model, lr=3e-3)
    rows = tokenizer.encode_batch(SENTENCES)
    objective = MaskedLM(
        tokenizer.mask_id, vocab_size=tokenizer.vocab_size, special_ids=tokenizer.special_ids
    )
    ids, lengths = [row + [0] * (8 - len(row)) for row in rows], [len(row) for row in rows]
    for epoch in range(300):
        step(objective(ids, lengths, epoch=epoch))
    return model


def test_masks_are_filled_with_what_was_learned(filler):
    fills = filler.fill_mask("the cat [MASK] on the mat", top_k=3)
    assert fills[0].token == "sat"
    assert fills[0].text == "the cat sat on the mat"
    assert fills[0].score > 0.9
    assert [fill.score for fill in fills] == sorted((f.score for f in fills), reverse=True)
    both = filler.fill_mask("the [MASK] sat on the [MASK]", top_k=2)
    assert [len(fills) for fills in both] == [2, 2]
    assert both[1][0].token == "mat"
    many = filler.fill_mask(["a dog [MASK] to the cat", "the [MASK] sat on a mat"], top_k=1)
    assert [fills[0].token for fills in many] == ["ran", "dog"]


def test_probabilities_of_masks_are_the_softmax_of_the_logits(filler, tokenizer):
    ids = tokenizer.encode("the cat [MASK] on the mat")
    fills = filler.fill_mask([ids], top_k=tokenizer.vocab_size)[0]
    logits = filler([ids]).numpy()[0, ids.index(tokenizer.mask_id)].astype(np.float64)
    want = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    assert sum(fill.score for fill in fills) == pytest.approx(1)
    assert [fill.score for fill in fills] == pytest.approx([want[fill.id] for fill in fills])


def test_a_decoder_trained_on_masks_fills_them():
    model = make(max_positions=12)
    step, mask = TrainStep(model, lr=5e-3), 36
    objective = MaskedLM(mask, vocab_size=37, stack="decoder")
    ids = [[1, 2, 3, 4, 5, 6, 7, 8]]
    for epoch in range(150):
        step(objective(ids, epoch=epoch))
    hidden = [1, 2, mask, 4, 5, 6, 7, 8]
    fills = model.fill_mask(hidden, top_k=1, mask_id=mask, bidirectional=True)
    assert fills[0].id == 3
    with pytest.raises(ConfigError, match="decoder"):
        model.fill_mask(hidden, mask_id=mask)


def test_classes_are_learned_and_named():
    model = make("classifier", num_labels=2, label_names=("odd", "even"))
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 64)
    texts = [(2 * rng.integers(1, 18, rng.integers(2, 9)) + 1 - label) for label in labels]
    step = TrainStep(model, lr=2e-3)
    for _ in range(60):
        step(Classification()(texts, labels))
    results = model.classify(texts)
    assert (
        np.mean([result.index == label for result, label in zip(results, labels, strict=True)]) == 1
    )
    assert results[0].label == ("odd", "even")[labels[0]]
    assert sum(results[0].scores.values()) == pytest.approx(1)
    assert results[0].score == max(results[0].scores.values())
    # Alone as in a batch.
    assert model.classify([texts[5]])[0] == results[5]


def test_decoders_classify_from_their_last_token(rng):
    model = make("gpt2", num_labels=3)
    ids = [[1, 2, 3, 4], [5, 6]]
    results = model.classify(ids)
    hidden = [model.encode([row]).numpy()[0, -1].astype(np.float64) for row in ids]
    weight = model.parameters()["classifier.weight"].numpy().astype(np.float64)
    bias = model.parameters()["classifier.bias"].numpy()
    for row, result in zip(hidden, results, strict=True):
        logits = weight @ row + bias
        want = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        assert list(result.scores.values()) == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("variant", ["gpt2", "bert", "t5"])
def test_embeddings_pool_hidden_states(variant):
    model = make(variant)
    rows = [[1, 2, 3, 4, 5], [6, 7], [8]]
    states = [model.encode([row]).numpy()[0] for row in rows]
    assert np.array_equal(model.embed(rows), [state.mean(axis=0) for state in states])
    assert np.array_equal(model.embed(rows, pooling="first"), [state[0] for state in states])
    assert np.array_equal(model.embed(rows, pooling="last"), [state[-1] for state in states])
    unit = model.embed(rows, normalize=True)
    assert np.linalg.norm(unit, axis=1) == pytest.approx(np.ones(3))


def test_pooler_embeddings():
    model = make("classifier")
    state = model.encode([[1, 2, 3]]).numpy()[0, 0]
    weight, bias = (model.parameters()[f"pooler.{kind}"].numpy() for kind in ("weight", "bias"))
    assert model.embed([[1, 2, 3]], pooling="pooler")[0] == pytest.approx(
        np.tanh(weight @ state + bias), abs=1e-5
    )


def test_translations_are_those_it_was_taught():
    tokenizer = Tokenizer.train(
        ["ein hund", "eine katze", "a dog", "a cat"], kind="bpe", vocab_size=280,
        special_tokens=["<pad>", "</s>", "<2en>"],
    )  # fmt: skip
    model = make("t5", vocab_size=tokenizer.vocab_size, decoder_start_id=0, eos_id=1)
    model.tokenizer = tokenizer
    pairs = [("ein hund", "a dog"), ("eine katze", "a cat")]
    sources, targets = (
        [[*tokenizer.encode(t), 1] for t in side] for side in zip(*pairs, strict=True)
    )
    step, objective = TrainStep(model, lr=5e-3), Seq2Seq(decoder_start_id=0)
    for _ in range(150):
        step(objective(sources, targets))
    assert model.translate(["ein hund", "eine katze"]) == ["a dog", "a cat"]
    [score] = model.score(["a dog</s>"], sources=["ein hund"])
    assert score.perplexity < 1.2
    assert len(score.logprobs) == len(score.ids)
    with pytest.raises(ConfigError, match="<2fr>"):
        model.translate("ein hund", target_language="<2fr>")
    tagged = model.translate(
        "ein hund", GenerationConfig(max_new_tokens=6), target_language="<2en>"
    )
    assert len(tagged) == 1


# ---------------------------------------------------------------------------- who sees whom


@pytest.mark.cpu("bits that only it promises")
def test_prefix_of_nothing_is_causal_and_of_everything_bidirectional(rng):
    model = make()
    ids = rng.integers(0, 37, (2, 9))
    causal = model(ids).numpy()
    assert np.array_equal(model(ids, prefix_lengths=[0, 0]), causal)
    full = model(ids, prefix_lengths=[9, 9]).numpy()
    changed = ids.copy()
    changed[:, -1] = (changed[:, -1] + 1) % 37
    assert np.array_equal(model(changed).numpy()[:, :-1], causal[:, :-1])
    assert not np.array_equal(model(changed, prefix_lengths=[9, 9]).numpy()[:, 0], full[:, 0])
    # A prefix of four: its tokens see each other, the others what is before them.
    four = model(ids, prefix_lengths=[4, 4]).numpy()
    alone = model(ids[:, :4], prefix_lengths=[4, 4]).numpy()
    assert np.array_equal(four[:, :4], alone)


def test_full_prefix_equals_an_encoder_with_the_same_weights(rng):
    decoder = make("gpt2")
    encoder = make("gpt2", num_decoder_layers=0, num_encoder_layers=2)
    for name, tensor in encoder.parameters().items():
        write(tensor, decoder.parameters()[name.replace("encoder.", "decoder.")].numpy())
    ids, lengths = rng.integers(0, 37, (2, 9)), np.array([9, 6])
    want = encoder(ids, lengths).numpy()
    got = decoder(ids, lengths, prefix_lengths=lengths).numpy()
    for row, length in enumerate(lengths):
        assert np.array_equal(got[row, :length], want[row, :length])


def test_reversed_is_causal_on_the_flipped_text(rng):
    model = make()
    ids = rng.integers(0, 37, (3, 10))
    flipped = model.loss(CausalLM()(ids[:, ::-1]))
    assert model.loss(ReversedLM()(ids)) == flipped


# ---------------------------------------------------------------------------- attention


@pytest.mark.parametrize("variant", ["gpt2", "llama", "window", "relative-decoder", "qwen3"])
def test_attention_maps_are_those_the_output_is_made_of(variant, rng):
    model = make(variant)
    ids, lengths = rng.integers(0, 37, (2, 9)), [9, 6]
    maps = model.attention_maps(ids, lengths=lengths)
    config = model.config
    assert maps.shape == (2, config.num_decoder_layers, config.num_heads, 9, 9)
    assert maps.sum(-1)[0] == pytest.approx(np.ones(maps.shape[1:4]), abs=1e-5)
    assert not np.triu(maps, 1).any()
    assert not maps[1, ..., 6:].any()
    some = model.attention_maps(ids, layers=[1], heads=[2, 0], lengths=lengths, queries=(3, 5))
    assert np.array_equal(some, maps[:, [1]][:, :, [2, 0], 3:5])


def test_attention_maps_of_every_kind(rng):
    model = make("t5")
    ids, decoder_ids = rng.integers(0, 37, (2, 7)), rng.integers(0, 37, (2, 5))
    lengths = [7, 4]
    shared = {"lengths": lengths, "decoder_ids": decoder_ids}
    cross = model.attention_maps(ids, kind="cross", **shared)
    assert cross.shape == (2, 2, 4, 5, 7)
    assert cross.sum(-1) == pytest.approx(np.ones(cross.shape[:4]), abs=1e-5)
    assert not cross[1, ..., 4:].any()
    encoder = model.attention_maps(ids, kind="encoder", lengths=lengths)
    assert encoder.shape == (2, 2, 4, 7, 7)
    assert np.array_equal(encoder, model.attention_maps(ids, kind="encoder", **shared))
    decoder = model.attention_maps(ids, kind="decoder", **shared)
    assert decoder.shape == (2, 2, 4, 5, 5)
    assert not np.triu(decoder, 1).any()


def test_attention_maps_equal_eager_attention(tmp_path, rng):
    parity = pytest.importorskip("parity", reason="needs torch and transformers")
    torch = parity.torch
    for name in ("gpt2", "llama", "qwen3", "mistral", "bert", "marian", "bart", "t5"):
        pair = parity.Pair(name, tmp_path / name)
        pair.single.eval()
        case = parity.make_case(name, rng)
        pair.single.set_attn_implementation("eager")
        with torch.no_grad():
            outputs = pair.single(**case.inputs, output_attentions=True)
        batch = case.batch
        encoder = batch.enc_ids is not None
        ids = batch.enc_ids if encoder else batch.dec_ids
        inputs = {"lengths": batch.enc_lengths, "types": batch.types} if encoder else {}
        if encoder and batch.dec_ids is not None:
            inputs["decoder_ids"] = batch.dec_ids
            kinds = {
                "encoder": outputs.encoder_attentions, "decoder": outputs.decoder_attentions,
                "cross": outputs.cross_attentions,
            }  # fmt: skip
        else:
            kinds = {"encoder" if encoder else "decoder": outputs.attentions}
        for kind, want in kinds.items():
            exact = np.stack([layer.numpy() for layer in want], axis=1)
            got = pair.ours.attention_maps(ids, kind=kind, **inputs)
            if kind == "encoder":  # what padding looks at means nothing
                real = np.arange(ids.shape[1]) < batch.enc_lengths[:, None]
                got, exact = (maps.transpose(0, 3, 1, 2, 4)[real] for maps in (got, exact))
            assert np.abs(got - exact).max() < 1e-5, (name, kind)


def test_attention_maps_of_one_query_do_not_hold_a_square():
    """8192 keys: a square of weights would take 256 MB a head."""
    code = """
import resource, numpy, llmcore
model = llmcore.Transformer(llmcore.ModelConfig(vocab_size=8, hidden_size=8, num_heads=1,
    num_decoder_layers=1, max_positions=8192))
ids = numpy.zeros((1, 8192), int)
model(ids)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
maps = model.attention_maps(ids, queries=(8191, 8192))
assert maps.shape == (1, 1, 1, 1, 8192) and abs(maps.sum() - 1) < 1e-4
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 16 * 1024  # kB


def test_reference_weights_sum_to_one(rng):
    """The oracle itself: a map of one head of a model without positions, by hand."""
    model = make("scaled-head", num_decoder_layers=1, num_heads=1)
    ids = rng.integers(0, 37, (1, 6))
    parameters = {name: t.numpy().astype(np.float64) for name, t in model.parameters().items()}
    x = parameters["embed.tokens.weight"][ids[0]]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    prefix = "decoder.layers.0.self_attention."
    x = x * parameters[prefix + "norm.weight"]
    q, k = (x @ parameters[f"{prefix}{n}.weight"].T + parameters[f"{prefix}{n}.bias"] for n in "qk")
    want = attention_weights(q[None, None], k[None, None], causal=True)
    assert model.attention_maps(ids)[:, 0] == pytest.approx(want, abs=1e-5)


# ---------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: make("bart").fill_mask([1, 2], mask_id=2), ConfigError, ["encoder-decoder"]),
        (lambda: make("bert").fill_mask([1, 2]), ConfigError, ["mask_id"]),
        (lambda: make("bert").fill_mask([1, 2], mask_id=3), DataError, ["texts[0]", "mask"]),
        (lambda: make("bert").fill_mask([3] * 41, mask_id=3), DataError, ["41", "40"]),
        (lambda: make("bert").fill_mask([3], top_k=38, mask_id=3), ConfigError, ["top_k", "37"]),
        (lambda: make("bert").fill_mask("text"), ConfigError, ["tokenizer"]),
        (lambda: make("bert").classify([[1]]), ConfigError, ["num_labels"]),
        (lambda: make("classifier").classify([[]]), DataError, ["texts[0]", "no tokens"]),
        (lambda: make("bert").embed([[1]], pooling="max"), ConfigError, ["mean", "max"]),
        (lambda: make("bert").embed([[1]], pooling="pooler"), ConfigError, ["pooler"]),
        (lambda: make("bert").translate("x"), ConfigError, ["encoder-decoder"]),
        (lambda: make("gpt2").translate("x"), ConfigError, ["decoder", "generate"]),
        (lambda: make("bart").translate("x"), ConfigError, ["tokenizer"]),
        (lambda: make("bert").score([[1, 2]]), ConfigError, ["encoder"]),
        (lambda: make("bart").score([[1, 2]]), ConfigError, ["sources"]),
        (lambda: make("gpt2").score([[1, 2]], sources=[[1]]), ConfigError, ["encoder"]),
        (lambda: make("bart")([[1, 2]]), ConfigError, ["decoder_ids"]),
        (lambda: make("bert")([[1, 2]], decoder_ids=[[1]]), ConfigError, ["no decoder"]),
        (lambda: make("gpt2")([[1, 2]], decoder_ids=[[1]]), ConfigError, ["encoder"]),
        (lambda: make("bart")([[1]] * 2, decoder_ids=[[1]]), ShapeError, ["2", "1"]),
        (lambda: make("bert").attention_maps([[1]]), ConfigError, ["decoder", "encoder"]),
        (lambda: make().attention_maps([[1]], layers=[2]), ConfigError, ["layers", "1", "2"]),
        (lambda: make().attention_maps([[1]], queries=(0, 2)), ConfigError, ["queries", "1"]),
        (lambda: make().attention_maps([[1]], kind="self"), ConfigError, ["kind", "self"]),
    ],
)
def test_bad_input_is_named(call, error, words):
    with pytest.raises(error) as raised:
        call()
    assert all(word in str(raised.value) for word in words), raised.value


def test_every_objective_is_public():
    for name in ("CausalLM", "ReversedLM", "PrefixLM", "MaskedLM", "Seq2Seq", "SpanCorruption",
                 "Classification", "Mixture"):  # fmt: skip
        assert callable(getattr(llmcore, name))
