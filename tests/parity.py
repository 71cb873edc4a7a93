"""Tiny models of every architecture in PyTorch, what they are given, and ours beside them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from llmcore import Transformer, _core, hf
from llmcore.objectives import Batch
from tolerance import EPS, FLOOR_ULPS

torch = pytest.importorskip("torch")
torch.set_num_threads(1)  # tiny models; threads that spin are slow beside other work
transformers = pytest.importorskip("transformers")

B, T, S, V = 3, 17, 11, 61
PAD = 1  # RoBERTa counts positions from here on; all others ignore it


def model(name, **settings):
    """A class of transformers with a config of its own; no dropout, labels or cache."""
    architecture = getattr(transformers, name)
    return architecture(architecture.config_class(**settings))


def gpt2():
    return model(
        "GPT2LMHeadModel", vocab_size=V, n_positions=32, n_embd=48, n_layer=3, n_head=4,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip


def llama(name="LlamaForCausalLM", **changes):
    settings = {
        "vocab_size": V, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
        "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
    }  # fmt: skip
    return model(name, **{**settings, **changes})


def bert(name="BertForMaskedLM", **changes):
    settings = {
        "vocab_size": V, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
        "num_attention_heads": 4, "max_position_embeddings": 40, "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0, "pad_token_id": PAD,
    }  # fmt: skip
    return model(name, **{**settings, **changes})


def bart(name="BartForConditionalGeneration", **changes):
    settings = {
        "vocab_size": V, "d_model": 48, "encoder_layers": 2, "decoder_layers": 3,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 80,
        "decoder_ffn_dim": 80, "max_position_embeddings": 40, "dropout": 0.0,
        "attention_dropout": 0.0, "activation_dropout": 0.0, "pad_token_id": PAD,
        "decoder_start_token_id": 2, "eos_token_id": 2, "bos_token_id": 0,
        "forced_eos_token_id": 2,
    }  # fmt: skip
    return model(name, **{**settings, **changes})


def t5(**changes):
    settings = {
        "vocab_size": V, "d_model": 48, "d_kv": 10, "d_ff": 80, "num_layers": 2,
        "num_decoder_layers": 3, "num_heads": 4, "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 12, "dropout_rate": 0.0, "pad_token_id": PAD,
        "decoder_start_token_id": PAD, "eos_token_id": 2, "initializer_factor": 0.5,
    }  # fmt: skip
    return model("T5ForConditionalGeneration", **{**settings, **changes})


LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip
YARN = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}

DECODERS = {
    "gpt2": gpt2,
    "llama": llama,
    "llama-tied": lambda: llama(tie_word_embeddings=True),
    "llama-wide-heads": lambda: llama(head_dim=20),
    "llama-linear": lambda: llama(rope_parameters=LINEAR),
    "llama-llama3": lambda: llama(rope_parameters=LLAMA3),
    "llama-yarn": lambda: llama(rope_parameters=YARN),
    "mistral": lambda: llama(
        "MistralForCausalLM", sliding_window=5, attn_implementation="eager", rms_norm_eps=1e-6
    ),
    "qwen2": lambda: llama("Qwen2ForCausalLM", tie_word_embeddings=True),
    "qwen3": lambda: llama("Qwen3ForCausalLM", head_dim=12),
}
ENCODERS = {
    "bert": bert,
    "roberta": lambda: bert("RobertaForMaskedLM", max_position_embeddings=42, type_vocab_size=1),
}
CLASSIFIERS = {
    "bert-labels": lambda: bert("BertForSequenceClassification", num_labels=5),
    "roberta-labels": lambda: bert(
        "RobertaForSequenceClassification", num_labels=4, max_position_embeddings=42,
        type_vocab_size=1,
    ),
}  # fmt: skip
PAIRS = {
    "marian": lambda: bart(
        "MarianMTModel", activation_function="swish", scale_embedding=True,
        decoder_start_token_id=PAD,
    ),
    "transformer": lambda: bart(
        "MarianMTModel", activation_function="relu", scale_embedding=True,
        decoder_start_token_id=PAD,
    ),
    "bart": bart,
    "mbart": lambda: bart("MBartForConditionalGeneration", scale_embedding=True),
    "t5": t5,
    "t5-v1.1": lambda: t5(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
}  # fmt: skip
MODELS = {**DECODERS, **ENCODERS, **CLASSIFIERS, **PAIRS}


@dataclass
class Case:
    """One batch, for PyTorch and for us; fields as in `Batch`, and `total` targets."""

    batch: Batch

    @property
    def inputs(self):
        """What a model of transformers is called with."""
        batch, inputs = self.batch, {}
        if batch.enc_ids is not None:
            real = np.arange(batch.enc_ids.shape[1]) < batch.enc_lengths[:, None]
            inputs["input_ids"] = torch.tensor(np.where(real, batch.enc_ids, PAD))
            inputs["attention_mask"] = torch.tensor(real.astype(int))
        if batch.dec_ids is not None:
            name = "input_ids" if batch.enc_ids is None else "decoder_input_ids"
            inputs[name] = torch.tensor(batch.dec_ids)
        if batch.types is not None:
            inputs["token_type_ids"] = torch.tensor(batch.types)
        return inputs

    def rotated(self, by):
        """The same batch with its sequences in another order: the same loss, otherwise rounded."""
        batch, ids = (
            self.batch,
            self.batch.enc_ids if self.batch.dec_ids is None else self.batch.dec_ids,
        )
        order = np.roll(np.arange(len(ids)), by)
        changes = {
            name: np.asarray(values)[order]
            for name in ("enc_ids", "enc_lengths", "dec_ids", "types")
            if (values := getattr(batch, name)) is not None
        }
        if batch.rows is None:
            changes["targets"] = np.asarray(batch.targets).reshape(ids.shape)[order].reshape(-1)
        else:
            rows = np.asarray(batch.rows)
            places = np.argsort(order)[rows // ids.shape[1]] * ids.shape[1] + rows % ids.shape[1]
            sort = np.argsort(places)
            changes |= {"rows": places[sort], "targets": np.asarray(batch.targets)[sort]}
        return Case(Batch(head=batch.head, **changes))

    def logits(self, model):
        """Logits of the scored rows, [R, V] or [R, labels]."""
        logits = model(**self.inputs).logits
        if self.batch.head == "labels":
            return logits
        flat = logits.reshape(-1, logits.shape[-1])
        return flat if self.batch.rows is None else flat[torch.tensor(self.batch.rows).long()]

    def loss(self, model):
        """Mean cross-entropy over the batch's targets."""
        target = torch.tensor(self.batch.targets).long()
        return torch.nn.functional.cross_entropy(self.logits(model), target)


def make_case(name, rng):
    """A batch such as the model called `name` is trained on, padded where that may be."""
    ids = rng.integers(2, V, (B, T + 1))
    lengths = np.array([T, 5, 12])
    if name in DECODERS:
        return Case(Batch(dec_ids=ids[:, :-1], targets=ids[:, 1:].reshape(-1)))
    if name in PAIRS:
        sources, source_lengths = rng.integers(2, V, (B, S)), np.array([4, S, 7])
        return Case(
            Batch(
                enc_ids=sources, enc_lengths=source_lengths, dec_ids=ids[:, :-1],
                targets=ids[:, 1:].reshape(-1),
            )
        )  # fmt: skip
    types = rng.integers(0, 2, (B, T)) if name == "bert" else None
    if name in CLASSIFIERS:
        return Case(
            Batch(enc_ids=ids[:, :-1], enc_lengths=lengths, rows=np.arange(B) * T,
                  targets=rng.integers(0, 4, B), head="labels")
        )  # fmt: skip
    real = np.flatnonzero(np.arange(T) < lengths[:, None])
    rows = np.sort(rng.choice(real, 9, replace=False))
    return Case(
        Batch(enc_ids=ids[:, :-1], enc_lengths=lengths, types=types, rows=rows,
              targets=rng.integers(0, V, 9))
    )  # fmt: skip


def our_logits(model, case):
    """Logits of the scored rows, as `Case.logits` gives them."""
    from llmcore import _core

    batch = case.batch
    if batch.head == "labels":
        out = _core.empty([batch.targets.size, model.config.num_labels])
        model._core.label_logits(batch, out)
        return out.numpy()
    sources = {} if batch.enc_ids is None else {"lengths": batch.enc_lengths, "types": batch.types}
    if batch.enc_ids is not None and batch.dec_ids is not None:
        sources["decoder_ids"] = batch.dec_ids
    logits = model(batch.dec_ids if batch.enc_ids is None else batch.enc_ids, **sources).numpy()
    flat = logits.reshape(-1, logits.shape[-1])
    return flat if batch.rows is None else flat[batch.rows]


class Pair:
    """The same model in PyTorch (float32 and float64) and here."""

    def __init__(self, name, directory):
        make = MODELS[name]
        self.name = name
        torch.manual_seed(1)
        self.single = make()
        with torch.no_grad():  # biases and norms start as constants: make every parameter count
            for parameter in filter(lambda p: p.requires_grad, self.single.parameters()):
                parameter.add_(0.1 * torch.randn_like(parameter))
            for buffer_name, buffer in self.single.named_buffers():
                if buffer_name.endswith("final_logits_bias"):
                    buffer.add_(0.1 * torch.randn_like(buffer))
        self.single.save_pretrained(directory)
        self.ours = Transformer.from_pretrained(directory)
        self.double = make().double()
        self.double.load_state_dict(self.single.state_dict())

    @property
    def constants(self):
        """What PyTorch has as a buffer and we as a parameter: the bias of Marian's and BART's head.

        A gradient PyTorch does not compute cannot be compared.
        """
        buffers = [name for name, _ in self.single.named_buffers()]
        return {"head.bias"} if "final_logits_bias" in buffers else set()

    def singles(self, compute):
        """What `compute(model)` gives in float32 under each of PyTorch's implementations."""
        results, before = [], self.single.config._attn_implementation
        for implementation in ("eager", "sdpa"):
            self.single.set_attn_implementation(implementation)
            results.append(compute(self.single))
        self.single.set_attn_implementation(before)
        return results

    def our_gradients(self):
        """Ours as PyTorch sees them: transformers 5 ties T5 v1.1's head where its file does not."""
        gradients = {name: np.array(g, np.float64) for name, g in self.ours.gradients().items()}
        head = self.single.get_output_embeddings()
        if "head.weight" in gradients and head.weight is self.single.get_input_embeddings().weight:
            both = gradients["embed.tokens.weight"] + gradients["head.weight"]
            gradients["embed.tokens.weight"] = gradients["head.weight"] = both
        return gradients

    def gradients(self, model, case, directory):
        """The gradients of a PyTorch model under our names, by way of our own loader."""
        model.zero_grad()
        case.loss(model).backward()
        holder = type(model)(model.config).to(model.dtype)
        holder.load_state_dict(model.state_dict())
        with torch.no_grad():
            pairs = zip(holder.parameters(), model.parameters(), strict=True)
            for parameter, source in ((p, s) for p, s in pairs if s.requires_grad):
                parameter.copy_(source.grad)
        return names_to_arrays(holder, directory)


def names_to_arrays(model, directory):
    """A PyTorch model's tensors under our names, float64: two float32 halves travel by file."""
    halves = []
    values = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for half in range(2):
        part = type(model)(model.config).float()
        rest = {
            name: value if half == 0 else value.double() - value.float().double()
            for name, value in values.items()
        }
        part.load_state_dict({name: value.float() for name, value in rest.items()})
        part.save_pretrained(directory / f"half{half}")
        config = hf.load_config(directory / f"half{half}")
        state = hf.load_state(directory / f"half{half}", config)
        halves.append({name: np.array(array, np.float64) for name, array in state})
    return {name: halves[0][name] + halves[1][name] for name in halves[0]}


def assert_within(name, got, exact, *singles, scale=None):
    """Our error may be twice PyTorch's own in float32, and a few units in the last place.

    How large that is is chance: the largest of several runs is the measure. They are PyTorch's on
    the CPU; on another device, whose orders of sums were not looked at one by one, it may be three
    times as large. `scale` has the size of what was summed, where that cancels.
    """
    got, exact = np.asarray(got, np.float64), np.asarray(exact, np.float64)
    theirs = max(np.abs(np.asarray(single, np.float64) - exact).max() for single in singles)
    largest = np.abs(exact if scale is None else scale).max()
    times = 2 if _core.as_tensor([0.0]).device == "cpu" else 3
    allowed = times * theirs + FLOOR_ULPS * EPS["float32"] * largest
    error = np.abs(got - exact).max()
    assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"
