"""Models: layout, gradients of every kind of layer, and the same answer every time."""

from __future__ import annotations

import numpy as np
import pytest

from llmcore import ConfigError, ModelConfig, ShapeError, TrainStep, Transformer
from llmcore.objectives import Batch, CausalLM
from llmcore.parameters import parameter_shapes
from llmcore.tensor import write

TINY = {
    "vocab_size": 37, "hidden_size": 24, "num_decoder_layers": 2, "num_heads": 4,
    "max_positions": 40,
}  # fmt: skip
LLAMA = {
    "norm": "rms", "positions": "rope", "activation": "silu", "gated_ffn": True, "num_kv_heads": 2,
    "attention_bias": False, "attention_out_bias": False, "ffn_bias": False,
    "tie_embeddings": False,
}  # fmt: skip
POST = {"norm_placement": "post", "final_norm": False, "embedding_norm": True}
T5 = {
    "norm": "rms", "positions": "relative", "relative_buckets": 8, "relative_max_distance": 9,
    "attention_scale": 0.3, "activation": "gelu", "attention_bias": False,
    "attention_out_bias": False, "ffn_bias": False, "head_scale": 0.2, "head_dim": 7,
}  # fmt: skip
VARIANTS = {
    "gpt2": {},
    "llama": LLAMA,
    "post-norm": POST,
    "sinusoidal": {"positions": "sinusoidal", "embedding_scale": 4.9, "activation": "gelu"},
    "window": {"sliding_window": 3, "attention_softcap": 5.0, "activation": "gelu"},
    "types": {"type_vocab_size": 3, "position_offset": 2, "head_bias": True},
    "partial-rope": {**LLAMA, "rotary_dim": 4, "rope_interleaved": True, "head_dim": 10},
    "scaled-head": {"head_scale": 0.2, "positions": "none", "norm_bias": False},
    "qwen3": {**LLAMA, "qk_norm": True, "head_dim": 8},
    "relative-decoder": {
        "positions": "relative",
        "relative_buckets": 6,
        "relative_max_distance": 8,
    },
    "bert": {
        **POST,
        "num_decoder_layers": 0,
        "num_encoder_layers": 2,
        "type_vocab_size": 2,
        "activation": "gelu",
        "head_bias": True,
        "head_transform": True,
    },
    "classifier": {
        **POST,
        "num_decoder_layers": 0,
        "num_encoder_layers": 2,
        "pooler": True,
        "num_labels": 5,
    },
    "marian": {
        "num_encoder_layers": 1,
        "norm_placement": "post",
        "final_norm": False,
        "positions": "sinusoidal",
        "embedding_scale": 4.9,
        "activation": "silu",
        "head_bias": True,
    },
    "bart": {**POST, "num_encoder_layers": 2, "position_offset": 2, "activation": "gelu"},
    "t5": {**T5, "num_encoder_layers": 2},
    "t5-decoder-labels": {**T5, "num_encoder_layers": 1, "num_labels": 3, "gated_ffn": True},
}
DROPOUT = {
    "embedding_dropout": 0.1, "attention_dropout": 0.1, "residual_dropout": 0.2, "ffn_dropout": 0.1
}  # fmt: skip


def make(variant="gpt2", seed=0, **changes):
    model = Transformer(ModelConfig(**{**TINY, **VARIANTS[variant], **changes}), seed=seed)
    rng = np.random.default_rng(seed + 1)
    for parameter in model.parameters().values():  # leave no parameter at a constant
        noise = 0.2 * rng.standard_normal(parameter.shape).astype(np.float32)
        write(parameter, parameter.numpy() + noise)
    return model


def batch_for(model, rng, rows=3, length=11):
    """A batch in which not every position is scored, with padding where there is an encoder."""
    config = model.config
    ids = rng.integers(0, config.vocab_size, (rows, length + 1))
    types = rng.integers(0, 2, (rows, length)) if config.type_vocab_size else None
    chosen = np.sort(rng.choice(rows * length, rows * length // 2, replace=False))
    stacks = {"decoder": {"dec_ids": ids[:, :-1], "dec_lengths": np.full(rows, length)}}
    stacks["encoder"] = {"enc_ids": ids[:, :-1], "enc_lengths": np.full(rows, length)}
    stacks["encoder-decoder"] = {
        **stacks["decoder"],
        "enc_ids": rng.integers(0, config.vocab_size, (rows, 7)),
        "enc_lengths": rng.integers(1, 8, rows),
    }
    targets, head = ids[:, 1:].reshape(-1)[chosen], "tokens"
    if config.num_labels:
        place = 0 if config.kind == "encoder" else length - 1
        chosen = np.arange(rows) * length + place
        targets, head = rng.integers(0, config.num_labels, rows), "labels"
    return Batch(
        **stacks[config.kind], types=types, rows=chosen, targets=targets, head=head,
        weights=rng.uniform(0.5, 2, chosen.size), label_smoothing=0.1,
    )  # fmt: skip


def logits_of(model, ids, lengths=None, sources=None, source_lengths=None):
    """Logits of the stack the head reads; sources go to an encoder beside a decoder."""
    if model.config.kind == "encoder-decoder":
        return model(sources, source_lengths, decoder_ids=ids, decoder_lengths=lengths).numpy()
    return model(ids, lengths).numpy()


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_are_those_the_config_says(variant):
    model = make(variant)
    shapes = {name: tensor.shape for name, tensor in model.parameters().items()}
    assert list(shapes.items()) == list(parameter_shapes(model.config).items())


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_agree_with_finite_differences(variant, rng):
    """Along each parameter's own gradient, the loss changes by its norm."""
    model = make(variant)
    batch = batch_for(model, rng)
    model.loss_and_grad(batch)
    gradients = {name: g.numpy().copy() for name, g in model.gradients().items()}
    for name, parameter in model.parameters().items():
        gradient = gradients[name].astype(np.float64)
        norm = np.linalg.norm(gradient)
        if norm < 1e-6:  # a key's bias does not change a softmax
            assert name.endswith("k.bias"), f"{name} has no gradient"
            continue
        before = parameter.numpy().copy()
        # The loss moves by about 0.02, if that is not too far: the third order is small beside it.
        step = min(0.02 / norm, 0.1)
        direction = (gradient / norm).astype(np.float32)
        differences = []
        for size in (step, step / 2):
            write(parameter, before + np.float32(size) * direction)
            above = model.loss(batch)
            write(parameter, before - np.float32(size) * direction)
            differences.append((above - model.loss(batch)) / (2 * size))
            write(parameter, before)
        extrapolated = (4 * differences[1] - differences[0]) / 3  # Richardson
        rounding = 4 * 2.0**-24 * above / step  # a few units in the loss's last place
        assert extrapolated == pytest.approx(norm, rel=2e-3, abs=rounding), name


@pytest.mark.parametrize("variant", ["gpt2", "llama", "post-norm", "bert", "t5", "qwen3"])
def test_recompute_changes_nothing(variant, rng):
    results = []
    for recompute in (False, True):
        model = make(variant, **DROPOUT)
        model.recompute = recompute
        step = TrainStep(model, lr=1e-2, dropout_seed=5)
        batch = batch_for(model, np.random.default_rng(3))
        losses = [step(batch).loss for _ in range(3)]
        results.append((losses, state_bytes(model)))
    assert results[0] == results[1]


def state_bytes(model):
    return b"".join(p.numpy().tobytes() for p in model.parameters().values())


@pytest.mark.parametrize("variant", ["gpt2", "llama", "classifier", "bart", "t5", "qwen3"])
def test_training_does_not_depend_on_threads(variant, threads):
    results = []
    for count in (1, 2, 3, 8):
        threads(count)
        model = make(variant, **DROPOUT)
        step = TrainStep(model, lr=1e-2, weight_decay=0.1, max_grad_norm=0.5)
        rng = np.random.default_rng(7)
        losses = [step([batch_for(model, rng), batch_for(model, rng, 2, 5)]).loss for _ in range(3)]
        results.append((losses, state_bytes(model)))
    assert all(result == results[0] for result in results)


@pytest.mark.cpu("bits that only it promises")
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_row_does_not_depend_on_its_batch(variant, rng):
    model = make(variant)
    ids = rng.integers(0, TINY["vocab_size"], (5, 12))
    sources = rng.integers(0, TINY["vocab_size"], (5, 9))
    lengths, source_lengths = np.array([12, 1, 7, 3, 12]), np.array([9, 2, 1, 9, 5])
    together = logits_of(model, ids, lengths, sources, source_lengths)
    for row, (length, source) in enumerate(zip(lengths, source_lengths, strict=True)):
        one = slice(row, row + 1)
        alone = logits_of(model, ids[one, :length], None, sources[one, :source], None)
        assert np.array_equal(alone[0], together[row, :length])


def test_accumulation_is_exact_over_unequal_micro_batches(rng):
    ids = rng.integers(0, TINY["vocab_size"], (6, 9))
    lengths = np.array([8, 3, 5, 1, 8, 2])
    norms, losses, gradients = [], [], []
    for parts in ([slice(0, 6)], [slice(0, 1), slice(1, 4), slice(4, 6)]):
        model = make()
        step = TrainStep(model, lr=0.0)
        result = step([CausalLM()(ids[part], lengths[part] + 1) for part in parts])
        losses.append(result.loss)
        norms.append(result.grad_norm)
        gradients.append(np.concatenate([g.numpy().ravel() for g in model.gradients().values()]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    assert np.abs(gradients[0] - gradients[1]).max() <= 1e-5 * np.abs(gradients[0]).max()


def test_a_step_that_is_not_finite_is_skipped(rng):
    model = make()
    step = TrainStep(model, lr=1e-2)
    step(batch_for(model, rng))
    before = state_bytes(model)
    weight = model.parameters()["decoder.layers.0.feed_forward.up.weight"]
    kept = weight.numpy().copy()
    write(weight, np.where(np.arange(kept.size).reshape(kept.shape) == 0, np.nan, kept))
    result = step(batch_for(model, rng))
    assert result.skipped
    assert not np.isfinite(result.loss)
    assert step.first_not_finite() == "the weight decoder.layers.0.feed_forward.up.weight"
    write(weight, np.full_like(kept, 3e38))  # no sum with it is finite
    assert step(batch_for(model, rng)).skipped
    assert step.first_not_finite().startswith("the gradient of ")
    write(weight, kept)
    assert state_bytes(model) == before
    assert step(batch_for(model, rng), max_norm=1e-9).skipped
    assert step(batch_for(model, rng), max_loss=1e-9).skipped
    assert not step(batch_for(model, rng)).skipped
    assert step.first_not_finite() is None


def test_optimizer_state_round_trip(rng):
    batches = [batch_for(make(), rng) for _ in range(4)]
    model = make(**DROPOUT)
    step = TrainStep(model, lr=1e-2, dropout_seed=9)
    for batch in batches[:2]:
        step(batch)
    copy = make(seed=4, **DROPOUT)
    for name, parameter in copy.parameters().items():
        write(parameter, model.parameters()[name].numpy())
    resumed = TrainStep(copy, lr=1e-2)
    resumed.load_state_dict(step.state_dict())
    for batch in batches[2:]:
        assert step(batch) == resumed(batch)
    assert state_bytes(model) == state_bytes(copy)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda m: m(np.zeros((1, 41), int)), ShapeError, ["41", "40"]),
        (lambda m: m(np.full((2, 3), 37)), IndexError, ["37"]),
        (lambda m: m(np.zeros(3, int)), ShapeError, ["ids", "[3]"]),
        (lambda m: m(np.zeros((2, 3))), TypeError, ["ids", "float64"]),
        (lambda m: m.loss(CausalLM()(np.full((1, 3), 99))), IndexError, ["99"]),
        (lambda m: TrainStep(m, lr=-1.0), ConfigError, ["lr", "-1"]),
        (lambda m: TrainStep(m, lr=1.0)([]), ConfigError, ["batch"]),
    ],
)
def test_bad_input_is_named(call, error, words):
    with pytest.raises(error) as raised:
        call(make())
    assert all(word in str(raised.value) for word in words), raised.value
