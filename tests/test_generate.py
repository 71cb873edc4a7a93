"""Generation and scoring: against recomputation, against transformers, and against itself."""

from __future__ import annotations

import numpy as np
import pytest

from llmcore import ConfigError, DataError, GenerationConfig, ShapeError, _core
from llmcore.tokenizer import Tokenizer
from reference.beam import beam_search
from test_model import make as make_model

VARIANTS = [
    "gpt2", "llama", "window", "sinusoidal", "qwen3", "relative-decoder", "marian", "bart", "t5",
]  # fmt: skip
BEAMS = {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 0.8}
PROMPTS = [[1, 2, 3, 4, 5], [7], [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 11], [3, 3]]


def make(variant="gpt2", **changes):
    return make_model(variant, decoder_start_id=3, **changes)


def ids_of(results):
    return [result.ids for result in results]


def logits_after(model, prompt, written):
    """Logits of the token after `written`, the whole text read anew."""
    if model.config.kind != "encoder-decoder":
        return model([[*prompt, *written]]).numpy()[0, -1]
    begun = [model.config.decoder_start_id, *written]
    return model([prompt], decoder_ids=[begun]).numpy()[0, -1]


def recomputed(model, prompt, count):
    """Greedy continuation without a cache: the whole text is read again for each token."""
    written = []
    for _ in range(count):
        written.append(int(logits_after(model, prompt, written).argmax()))
    return written


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_is_the_argmax_of_the_whole_text_read_again(variant):
    model = make(variant)
    config = GenerationConfig(max_new_tokens=20, stop_ids=())
    for prompt, result in zip(PROMPTS, model.generate(PROMPTS, config), strict=True):
        assert result.ids == recomputed(model, prompt, 20)
        assert result.finish_reason == "length"


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.9, "top_p": 0.9, "seed": 3}, BEAMS])
def test_a_text_does_not_depend_on_its_batch_or_on_threads(variant, sampling, threads):
    model = make(variant)
    config = GenerationConfig(max_new_tokens=15, stop_ids=(), **sampling)
    results = []
    for count in (1, 2, 3, 8):
        threads(count)
        results.append(model.generate(PROMPTS, config))
    assert all(result == results[0] for result in results)
    for prompt, result in zip(PROMPTS, results[0], strict=True):
        assert model.generate([prompt], config) == [result]
        assert model.generate([[5, 5], prompt, [8]], config)[1] == result


def test_a_prompt_given_twice_gets_two_texts():
    config = GenerationConfig(max_new_tokens=15, stop_ids=(), temperature=1.0)
    first, second = make().generate([PROMPTS[0]] * 2, config)
    assert first.ids != second.ids


@pytest.mark.parametrize("variant", VARIANTS)
def test_cached_equals_uncached_bit_for_bit(variant):
    """The log-probability of each token is that of the whole text read at once, to the last bit."""
    model = make(variant)
    [result] = model.generate([PROMPTS[0]], GenerationConfig(max_new_tokens=12, stop_ids=()))
    for place, (token, logprob) in enumerate(zip(result.ids, result.logprobs, strict=True)):
        logits = logits_after(model, PROMPTS[0], result.ids[:place])[None].copy()
        chosen, logprobs = _core.choose_tokens(
            options=_core.GenerationOptions(), logits=_core.as_tensor(logits), ids=[[1]],
            prompt_lengths=[1], sequences=[0],
        )  # fmt: skip
        assert (chosen, logprobs) == ([token], [logprob])


@pytest.mark.parametrize("variant", VARIANTS)
def test_beams_keep_the_log_probabilities_of_the_text_read_again(variant):
    """Places of beams are reordered in the cache: what each has read is its own text."""
    model = make(variant)
    config = GenerationConfig(max_new_tokens=9, stop_ids=(5,), **BEAMS)
    for prompt, best in zip(PROMPTS, model.generate(PROMPTS, config), strict=True):
        assert len(best.alternatives) == 2
        scores = [result.score for result in (best, *best.alternatives)]
        assert scores == sorted(scores, reverse=True)
        for result in (best, *best.alternatives):
            for place, token in enumerate(result.ids):
                logits = logits_after(model, prompt, result.ids[:place]).astype(np.float64)
                logits -= logits.max()
                want = logits[token] - np.log(np.exp(logits).sum())
                assert result.logprobs[place] == pytest.approx(want, abs=1e-5)
            assert result.score == pytest.approx(sum(result.logprobs) / len(result.ids) ** 0.8)


def test_a_beam_as_wide_as_the_vocabulary_finds_the_best_text():
    """Two tokens of eight: all 64 texts are in the beam."""
    model = make(vocab_size=8)
    config = GenerationConfig(max_new_tokens=2, stop_ids=(), num_beams=8, length_penalty=0.0)
    [best] = model.generate([[1, 2]], config)
    texts = {
        (a, b): model.score([[1, 2, a, b]])[0].logprobs[1:] for a in range(8) for b in range(8)
    }
    assert tuple(best.ids) == max(texts, key=lambda text: sum(texts[text]))


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [-0.7, 2.0])
def test_beams_stop_as_the_config_says(early_stopping, length_penalty):
    """Each of the three ends elsewhere; the oracle reads every text anew and sorts everything."""
    settings = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 10,
                "length_penalty": length_penalty, "early_stopping": early_stopping,
                "stop_ids": (5, 9, 11, 30)}  # fmt: skip
    for seed in range(4):
        model = make(seed=seed)
        want = beam_search(lambda ids, m=model: logits_after(m, ids, []), [7, 3], **settings)
        [best] = model.generate([[7, 3]], GenerationConfig(**settings))
        found = [best, *best.alternatives]
        assert [result.ids for result in found] == [list(each.ids) for each in want]


def test_early_stopping_has_three_values():
    for value in ("sometimes", 1, None):
        with pytest.raises(ConfigError, match="early_stopping: expected True or False, or one of"):
            GenerationConfig(early_stopping=value)


def test_right_to_left_models_write_backwards():
    forward, backward = make(), make(right_to_left=True)
    config = GenerationConfig(max_new_tokens=6, stop_ids=())
    [want] = forward.generate([PROMPTS[0][::-1]], config)
    [got] = backward.generate([PROMPTS[0]], config)
    assert got.ids == want.ids[::-1]
    assert got.logprobs == want.logprobs[::-1]
    text = [1, 2, 3, 4]
    assert backward.score([text])[0].logprobs == forward.score([text[::-1]])[0].logprobs[::-1]


def test_forced_prefixes_and_special_ids():
    model = make("bart", forced_bos_id=7, forced_eos_id=2, suppressed_ids=(4, 5))
    for beams in (1, 3):
        config = GenerationConfig(
            max_new_tokens=8, num_beams=beams, stop_ids=(2,), min_new_tokens=8
        )
        [result] = model.generate([[1, 2]], config)
        assert result.ids[0] == 7
        assert result.ids[-1] == 2
        assert not {4, 5} & set(result.ids)
        tagged = GenerationConfig(max_new_tokens=4, num_beams=beams, forced_prefix=(9, 8))
        assert model.generate([[1, 2]], tagged)[0].ids[:2] == [9, 8]


def test_logprobs_are_those_of_the_model():
    model = make()
    [result] = model.generate([PROMPTS[0]], GenerationConfig(max_new_tokens=8, stop_ids=()))
    [scored] = model.score([PROMPTS[0] + result.ids])
    assert np.allclose(result.logprobs, scored.logprobs[-8:], atol=1e-5)
    assert result.score == pytest.approx(sum(result.logprobs))


def test_score_equals_the_softmax_of_the_logits(rng):
    model = make()
    texts = [rng.integers(0, 37, length).tolist() for length in (9, 2, 1, 40, 41, 100)]
    for text, result in zip(texts, model.score(texts), strict=True):
        assert len(result.logprobs) == len(text) - 1
        seen = text[:40]
        logits = model([seen]).numpy()[0].astype(np.float64)
        logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        want = [logprobs[i, token] for i, token in enumerate(text[1:41])]
        assert np.allclose(result.logprobs[:40], want, atol=1e-5)
        if len(text) > 1:
            assert result.perplexity == pytest.approx(np.exp(-result.score / (len(text) - 1)))


def test_long_texts_are_scored_in_windows_that_overlap(rng):
    model = make()
    text = rng.integers(0, 37, 100).tolist()
    [result] = model.score([text])
    # After the first 41 tokens, windows begin 20 tokens before the first they score.
    logits = model([text[21:61]]).numpy()[0].astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    want = [logprobs[i - 1 - 21, text[i]] for i in range(41, 62)]
    assert np.allclose(result.logprobs[40:61], want, atol=1e-5)


def test_stop_ids_end_a_text():
    model = make()
    [free] = model.generate([PROMPTS[0]], GenerationConfig(max_new_tokens=12, stop_ids=()))
    stop = free.ids[5]
    first = free.ids.index(stop)
    [ended] = model.generate([PROMPTS[0]], GenerationConfig(max_new_tokens=12, stop_ids=(stop,)))
    assert ended.ids == free.ids[: first + 1]
    assert ended.finish_reason == "stop"
    [later] = model.generate(
        [PROMPTS[0]], GenerationConfig(max_new_tokens=12, min_new_tokens=9, stop_ids=(stop,))
    )
    assert stop not in later.ids[:9]


def test_positions_used_up():
    model = make()  # 40 positions
    prompt = list(range(30))
    [ended] = model.generate([prompt], GenerationConfig(max_new_tokens=50, stop_ids=()))
    assert len(ended.ids) == 10
    assert ended.finish_reason == "length"
    slide = GenerationConfig(max_new_tokens=50, stop_ids=(), overflow="slide")
    together = model.generate([prompt, [1]], slide)
    assert [len(result.ids) for result in together] == [50, 50]
    assert model.generate([prompt], slide)[0] == together[0]
    # What follows the tenth token is what the latest 20 tokens alone would have led to.
    text = prompt + together[0].ids
    assert together[0].ids[10:20] == recomputed(model, text[20:40], 10)


@pytest.fixture
def speaking():
    """A model with a byte-level tokenizer of its 37 first characters."""
    model = make(vocab_size=300)
    model.tokenizer = Tokenizer.train(["the cat sat on the mat"], kind="bpe", vocab_size=260)
    return model


def test_text_in_text_out(speaking):
    config = GenerationConfig(max_new_tokens=12, temperature=1.0, banned_ids=range(256, 300))
    [whole] = speaking.generate("the cat", config)
    pieces = list(speaking.generate("the cat", config, stream=True))
    assert "".join(piece.text for piece in pieces) == whole.text
    assert [piece.id for piece in pieces] == whole.ids
    assert [piece.finish_reason for piece in pieces] == [None] * 11 + ["length"]
    assert whole.text == speaking.tokenizer.decode(whole.ids)


def test_stop_strings_are_cut_off_and_never_shown(speaking):
    config = {"max_new_tokens": 40, "temperature": 1.5, "banned_ids": range(128, 300)}
    [free] = speaking.generate("the", GenerationConfig(**config))
    stop = free.text[10:13]
    config = GenerationConfig(**config, stop_strings=[stop, "not there"])
    [ended] = speaking.generate("the", config)
    assert ended.text == free.text[: free.text.index(stop)]
    assert ended.finish_reason == "stop"
    assert len(ended.ids) < 40
    shown = "".join(piece.text for piece in speaking.generate("the", config, stream=True))
    assert shown == ended.text


def test_a_stream_can_be_closed_and_the_model_used_again():
    model = make()
    stream = model.generate(PROMPTS, GenerationConfig(max_new_tokens=30), stream=True)
    first = [next(stream).index for _ in range(4)]
    assert first == [0, 1, 2, 3]
    before = model.generate(PROMPTS)
    stream.close()
    assert model.generate(PROMPTS) == before


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda m: m.generate([[1, 99]]), IndexError, ["prompts[0]", "99", "37"]),
        (lambda m: m.generate([[1], []]), DataError, ["prompts[1]", "no tokens"]),
        (lambda m: m.generate([]), DataError, ["prompt"]),
        (lambda m: m.generate("text"), ConfigError, ["tokenizer"]),
        (lambda m: m.generate([[0] * 41]), ShapeError, ["41", "40"]),
        (lambda m: m.score([[0, 50]]), IndexError, ["texts[0]", "50"]),
        (
            lambda m: m.generate([[1]], GenerationConfig(num_beams=38)),
            ConfigError,
            ["num_beams", "37", "38"],
        ),
        (lambda m: make("bert").generate([[1]]), ConfigError, ["encoder", "fill_mask"]),
        (lambda m: make("bart").generate([[1], []]), DataError, ["prompts[1]", "no tokens"]),
        (lambda m: make("bart").generate([[1] * 41]), ShapeError, ["sources[0]", "41", "40"]),
        (lambda m: make_model("bart").generate([[1]]), ConfigError, ["decoder_start_id"]),
        (lambda m: m.generate([[1]], GenerationConfig(num_beams=2), stream=True), ConfigError, []),
        (lambda m: GenerationConfig(top_p=0.0), ConfigError, ["top_p", "0"]),
        (lambda m: GenerationConfig(num_beams=0, max_new_tokens=0), ConfigError, ["2 problems"]),
        (
            lambda m: m.generate([[1]], GenerationConfig(stop_strings=["x"])),
            ConfigError,
            ["stop_strings", "tokenizer"],
        ),
        (
            lambda m: m.generate([[1]], GenerationConfig(banned_ids=range(37))),
            ConfigError,
            ["token"],
        ),
    ],
)
def test_bad_input_is_named(call, error, words):
    with pytest.raises(error) as raised:
        call(make())
    assert all(word in str(raised.value) for word in words), raised.value


def test_equals_transformers(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from llmcore import Transformer

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, eos_token_id=7,
    )  # fmt: skip
    theirs = transformers.LlamaForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = Transformer.from_pretrained(tmp_path)
    for penalties in ({}, {"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 2}):
        for prompt in PROMPTS:
            want = theirs.generate(
                torch.tensor([prompt]), max_new_tokens=20, do_sample=False, pad_token_id=49,
                **penalties,
            )[0, len(prompt) :].tolist()  # fmt: skip
            [got] = ours.generate([prompt], GenerationConfig(max_new_tokens=20, **penalties))
            assert got.ids == want
