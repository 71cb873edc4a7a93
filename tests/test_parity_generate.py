"""Greedy and beam search of every architecture that writes: the ids that transformers gives."""

from __future__ import annotations

import numpy as np
import pytest

from llmcore import GenerationConfig

parity = pytest.importorskip("parity", reason="needs torch and transformers")
from parity import DECODERS, PAIRS, Pair, torch  # noqa: E402

NEW, EOS = 12, 2
SETTINGS = {
    "greedy": {},
    "beam": {"num_beams": 4},
    "beams": {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 0.6},
    "early": {"num_beams": 3, "early_stopping": True, "no_repeat_ngram_size": 2},
}


@pytest.fixture(params=[*DECODERS, *PAIRS])
def pair(request, tmp_path):
    pair = Pair(request.param, tmp_path / "hf")
    pair.single.eval()
    return pair


def prompts_for(pair, rng):
    lengths = (5, 1, 9)
    return [rng.integers(3, 61, length).tolist() for length in lengths]


def theirs(pair, prompt, settings):
    """The new ids that transformers gives for one prompt, and the scores of beams."""
    ids = torch.tensor([prompt])
    output = pair.single.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW,
        min_new_tokens=0,
        do_sample=False,
        eos_token_id=EOS,
        pad_token_id=1,
        return_dict_in_generate=True,
        output_scores=True,
        # transformers 5.24 makes a cache as deep as the encoder, which T5's decoder may exceed.
        use_cache=not pair.name.startswith("t5"),
        **settings,
    )
    begin = len(prompt) if pair.name in DECODERS else 1
    rows = [row[begin:].tolist() for row in output.sequences]
    ended = [row[: row.index(EOS) + 1] if EOS in row else row for row in rows]
    return ended, getattr(output, "sequences_scores", None)


@pytest.mark.parametrize("name", SETTINGS)
def test_equals_transformers(pair, name, rng):
    settings = SETTINGS[name]
    prompts = prompts_for(pair, rng)
    config = GenerationConfig(max_new_tokens=NEW, stop_ids=(EOS,), **settings)
    results = pair.ours.generate(prompts, config)
    for prompt, result in zip(prompts, results, strict=True):
        want, scores = theirs(pair, prompt, settings)
        found = [result, *result.alternatives]
        # transformers repeats padding where fewer texts ended; ours end at the length as well.
        assert [one.ids for one in found] == want[: len(found)]
        assert len(found) == settings.get("num_return_sequences", 1)
        if scores is not None:
            got = [one.score for one in found]
            assert np.allclose(got, scores.numpy(), rtol=1e-4, atol=1e-5)
