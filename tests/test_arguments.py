"""Wrong arguments in Python: each is a typed error that says what it must be and what it was."""

from __future__ import annotations

import numpy as np
import pytest

import llmcore
from llmcore import (
    Batch,
    CausalLM,
    ConfigError,
    DataError,
    DeviceError,
    DTypeError,
    Engine,
    GenerationConfig,
    ModelConfig,
    OutOfMemory,
    ShapeError,
    TokenIndexError,
    Tokenizer,
    TrainConfig,
    Trainer,
    TrainStep,
    Transformer,
    ops,
)
from llmcore.data import TokenDataset

CONFIG = ModelConfig.preset(
    "gpt-nano", num_decoder_layers=1, hidden_size=16, num_heads=2, vocab_size=11, max_positions=8
)
IDS = np.arange(100) % 11


@pytest.fixture(scope="module")
def model():
    return Transformer(CONFIG)


def check(error, words, call):
    with pytest.raises(error) as caught:
        call()
    assert words in str(caught.value)
    assert isinstance(caught.value, llmcore.LlmcoreError)


@pytest.mark.parametrize(
    ("error", "words", "call"),
    [
        (ConfigError, "must be a ModelConfig, got a str", lambda: Transformer("gpt2")),
        (ConfigError, "seed must be a whole number", lambda: Transformer(CONFIG, seed=-1)),
        (ConfigError, "seed must be a whole number", lambda: Transformer(CONFIG, seed=2**64)),
        (ConfigError, "2**64 - 1, got None", lambda: Transformer(CONFIG, seed=None)),
        (ConfigError, "must be a ModelConfig, got a NoneType", lambda: Transformer(None)),
        (ConfigError, "unknown preset None; known: ", lambda: ModelConfig.preset(None)),
        (ConfigError, "ModelConfig: expected a mapping", lambda: ModelConfig.from_dict(None)),
        (ConfigError, "TrainConfig: expected a mapping", lambda: TrainConfig.from_dict([1])),
        (DeviceError, "use device='cpu'", lambda: Transformer(CONFIG, device="cuda")),
        (DeviceError, "got 'gpu'", lambda: Transformer(CONFIG, device="gpu")),
        (DeviceError, "must be a name", lambda: Transformer(CONFIG, device=0)),
        (DTypeError, "int8, int4, got 'float16'", lambda: Transformer(CONFIG, dtype="float16")),
        (ConfigError, "got 'bfloat16'", lambda: Transformer(CONFIG).quantize("bfloat16")),
        (DTypeError, "got 'f32'", lambda: Transformer(CONFIG, dtype="f32")),
        (
            ConfigError,
            "expected at most 10000, got 1000000000",
            lambda: CONFIG.replace(num_decoder_layers=10**9),
        ),
        (
            OutOfMemory,
            "use a smaller model",
            lambda: Transformer(ModelConfig.preset("gpt2-xl", num_decoder_layers=2000)),
        ),
    ],
)
def test_models(error, words, call):
    check(error, words, call)


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("from_pretrained: path_or_repo must be a path", lambda m: m.from_pretrained(None)),
        ("save_pretrained: path must be a path, got a int", lambda m: m.save_pretrained(1)),
        ("load_adapter: path must be a path", lambda m: m.load_adapter(None)),
        ("Tokenizer.load: path must be a path", lambda m: Tokenizer.load(None)),
        ("freeze: patterns must be texts", lambda m: m.freeze(None)),
        ("Engine: model must be a Transformer, got a NoneType", lambda m: Engine(None)),
        ("draft_model must be a Transformer, got a str", lambda m: Engine(m, draft_model="x")),
        ("TrainStep: model must be a Transformer", lambda m: TrainStep(None, lr=1.0)),
        ("Trainer: model must be a Transformer", lambda m: Trainer(None, IDS)),
    ],
)
def test_kinds_of_arguments(model, words, call):
    check(DTypeError, words, lambda: call(model))


@pytest.mark.parametrize(
    ("error", "words", "ids", "lengths"),
    [
        (ShapeError, "must have 2 axes, got shape [3]", [1, 2, 3], None),
        (ShapeError, "rows of equal length", [[1], [1, 2]], None),
        (ShapeError, "has positions for 8", np.zeros((1, 9), int), None),
        (DTypeError, "must hold integers, got float64", [[1.0, 2.0]], None),
        (TokenIndexError, "= 11 is outside the table of 11", [[1, 11]], None),
        (
            TokenIndexError,
            f"ids[0, 1] = {2**40} is outside the vocabulary of 11",
            [[1, 2**40]],
            None,
        ),
        (TokenIndexError, "must not be negative, got -2", [[1, -2]], None),
        (ShapeError, "lengths", [[1, 2]], [1, 2]),
        (ShapeError, "lengths[0] must be from 0 to 2, got 3", [[1, 2]], [3]),
    ],
)
def test_ids(model, error, words, ids, lengths):
    check(error, words, lambda: model(ids, lengths=lengths))


def test_batches(model):
    for call in (model.loss, model.loss_and_grad, TrainStep(model, lr=1.0).step):
        check(DTypeError, "CausalLM()(ids)", lambda call=call: call([[1, 2]][0][0]))
    empty = Batch(dec_ids=[[1, 2]], targets=[1, 2], weights=[0, 0])
    check(ConfigError, "no targets with a weight above zero", lambda: model.loss(empty))
    outside = CausalLM()([[1, 2, 12]])
    check(TokenIndexError, "12", lambda: model.loss(outside))
    check(TokenIndexError, "12", lambda: TrainStep(model, lr=1.0).step(outside))


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        ("lr must be a number, at least 0, got -1", {"lr": -1}),
        ("lr must be a number", {"lr": "a"}),
        ("lr must be a number", {"lr": float("nan")}),
        ("betas must be two numbers", {"lr": 1, "betas": 0.9}),
        ("betas must be two numbers", {"lr": 1, "betas": (0.9, 1.0)}),
        ("eps must be a number above 0", {"lr": 1, "eps": 0}),
        ("max_grad_norm must be a number above 0", {"lr": 1, "max_grad_norm": 0}),
        ("dropout_seed", {"lr": 1, "dropout_seed": 1.5}),
    ],
)
def test_train_step(model, words, settings):
    check(ConfigError, words, lambda: TrainStep(model, **settings))


def test_train_step_state(model):
    step = TrainStep(model, lr=1.0)
    check(ConfigError, "at least one batch", lambda: step.step([]))
    check(ConfigError, "lr must be a number", lambda: step.step(CausalLM()([[1, 2]]), lr=-1))
    check(ConfigError, "there is no m, v", lambda: step.load_state_dict({}))
    state = {**step.state_dict(), "m": np.zeros(3, np.float32)}
    check(ShapeError, "belongs to another model", lambda: step.load_state_dict(state))


@pytest.mark.parametrize(
    "settings",
    [
        {"max_new_tokens": 0}, {"max_new_tokens": "5"}, {"max_new_tokens": 2.5},
        {"temperature": -1}, {"temperature": "hot"}, {"temperature": float("nan")},
        {"top_k": -1}, {"top_k": 1.5}, {"top_p": 0}, {"top_p": 2}, {"min_p": -1},
        {"num_beams": 0}, {"seed": -1}, {"stop_ids": 3}, {"stop_ids": ["a"]},
        {"stop_strings": [""]}, {"stop_strings": 3}, {"overflow": "x"}, {"do_sample": 1},
    ],
)  # fmt: skip
def test_generation_settings(settings):
    check(ConfigError, next(iter(settings)), lambda: GenerationConfig(**settings))


def test_a_temperature_too_small_to_divide_by_is_greedy(model):
    greedy = model.generate([[1, 2]], GenerationConfig(max_new_tokens=4))
    for temperature in (0, 1e-38, 1e-44, 5e-324):
        config = GenerationConfig(max_new_tokens=4, temperature=temperature)
        assert not config.do_sample
        assert model.generate([[1, 2]], config) == greedy
    check(ConfigError, "at least 0", lambda: GenerationConfig(temperature=-1e-40))
    check(ConfigError, "from 1 to 2**31 - 1", lambda: GenerationConfig(max_new_tokens=2**31))


def test_prompts(model):
    for error, words, prompts in (
        (ConfigError, "has no tokenizer", "text"),
        (DataError, "expected at least one", []),
        (DataError, "prompts[1] has no tokens", [[1], []]),
        (TokenIndexError, "id 11 at position 1", [[1, 11]]),
        (TokenIndexError, f"[1] = {2**40} is outside the vocabulary of 11", [[1, 2**40]]),
        (DTypeError, "must hold integers", [[1.5]]),
        (DTypeError, "got a int", 5),
        (ShapeError, "overflow='slide'", [[1] * 9]),
    ):
        check(error, words, lambda prompts=prompts: model.generate(prompts))
    check(DTypeError, "must be a GenerationConfig", lambda: model.generate([1], {"seed": 1}))


def test_translations_are_of_texts(model):
    both = ModelConfig.preset("transformer-base", num_encoder_layers=1, num_decoder_layers=1,
                              hidden_size=16, num_heads=2, ffn_size=16, vocab_size=60)  # fmt: skip
    translator = Transformer(both)
    translator.tokenizer = Tokenizer.train(["a b c"], "char")
    for texts in ([[1, 2]], [1, 2], np.array([[1]]), [None]):
        check(DTypeError, "texts must be texts", lambda texts=texts: translator.translate(texts))
    check(DTypeError, "got a NoneType", lambda: translator.translate(None))


def test_prompts_are_taken_in_every_form(model):
    config = GenerationConfig(max_new_tokens=3)
    expected = model.generate([[1, 2, 3]], config)
    array = np.array([1, 2, 3])
    for prompts in ([1, 2, 3], array, array[None], llmcore.tensor(array), (array.astype("u1"),)):
        assert model.generate(prompts, config) == expected


def test_a_long_prompt_slides(model):
    slide = GenerationConfig(max_new_tokens=6, overflow="slide")
    whole = model.generate([[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1, 2]], slide)
    assert whole == model.generate([[5, 6, 7, 8, 9, 10, 1, 2]], slide)


def test_trainer(model, tmp_path):
    def trainer(data, config=None, model=model):
        settings = TrainConfig(block_size=4, out_dir=str(tmp_path / "run"))
        return Trainer(model, data, config or settings)

    for error, words, data in (
        (ShapeError, "one-dimensional, got shape []", None),
        (ShapeError, "one-dimensional", [[1], [1, 2]]),
        (DTypeError, "must be integers", IDS * 1.0),
        (DataError, "outside the vocabulary of 11", IDS + 5),
        (DataError, "is a file, not a tokenized data set", __file__),
        (DataError, "holds no tokenized data set", str(tmp_path)),
        (ConfigError, "a pair", (IDS, IDS, IDS)),
        (DataError, "validation needs at least 2", (IDS, IDS[:1])),
    ):
        check(error, words, lambda data=data: trainer(data))
    check(DTypeError, "got a str", lambda: trainer(IDS, model="gpt2"))
    check(DTypeError, "must be a TrainConfig", lambda: trainer(IDS, {"steps": 1}))
    assert list(tmp_path.iterdir()) == []


def test_tokenizers_and_data(tmp_path):
    tokenizer = Tokenizer.train(["abc"], "char")
    for error, words, call in (
        (DTypeError, "got bytes", lambda: tokenizer.encode(b"abc")),
        (DTypeError, "a list of texts", lambda: tokenizer.encode_batch("abc")),
        (DTypeError, "whole numbers", lambda: tokenizer.decode([1.5])),
        (TokenIndexError, "-1", lambda: tokenizer.decode([-1])),
        (DataError, "got one NoneType", lambda: Tokenizer.train(None, "char")),
        (DataError, "above 0, got -3", lambda: Tokenizer.train(["a"], "bpe", -3)),
        (DataError, "above 0, got 'x'", lambda: Tokenizer.train(["a"], "bpe", "x")),
        (DataError, "no such file", lambda: Tokenizer.load(tmp_path / "none")),
        (DataError, "holds no tokenized", lambda: TokenDataset.open(tmp_path / "none")),
    ):
        check(error, words, call)


def test_tensors_and_threads():
    for error, words, call in (
        (ShapeError, "ragged", lambda: llmcore.tensor([[1], [1, 2]])),
        (DTypeError, "got object", lambda: llmcore.tensor(None)),
        (DTypeError, "x must be an array, got None", lambda: ops.relu(None)),
        (
            DTypeError,
            "ids must be an array, got None",
            lambda: ops.embedding(None, [[1.0]]),
        ),
        (ConfigError, "whole number, got 'a'", lambda: llmcore.set_num_threads("a")),
        (ConfigError, "whole number, got 2.5", lambda: llmcore.set_num_threads(2.5)),
        (ConfigError, "from 1 to 4096, got 0", lambda: llmcore.set_num_threads(0)),
        (DeviceError, "got 'x'", lambda: llmcore.memory_stats("x")),
    ):
        check(error, words, call)
