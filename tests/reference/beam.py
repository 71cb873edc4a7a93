"""Beam search over a function from ids to logits: every continuation of every beam, sorted."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np

from reference.sampling import process_logits


class Hypothesis(NamedTuple):
    score: float
    total: float
    ids: tuple
    log_probabilities: tuple


def log_softmax(logits):
    z = logits.astype(np.float64) - logits.max()
    with np.errstate(divide="ignore"):
        return z - np.log(np.exp(z).sum())


def beam_search(
    next_logits, prompt, *, num_beams, max_new_tokens, stop_ids=(), num_beam_groups=1,
    diversity_penalty=0.0, length_penalty=1.0, early_stopping=False, num_return_sequences=1,
    **processors,
):  # fmt: skip
    """The best of what each group of beams finds, best first."""
    width = num_beams // num_beam_groups
    running = [[Hypothesis(0.0, 0.0, (), ())] for _ in range(num_beam_groups)]
    finished = [[] for _ in range(num_beam_groups)]

    def is_forced(place):
        last = processors.get("forced_eos_id", -1) >= 0 and place == max_new_tokens - 1
        return last or place < len(processors.get("forced_ids", ()))

    def following(beams, chosen):
        """What may follow, likeliest first; of equals the lower beam's and the lower id."""
        found = []
        for place, beam in enumerate(beams):
            model = log_softmax(next_logits([*prompt, *beam.ids]))
            # float32, as process_logits has it: rounded alike, equal values stay equal.
            z = process_logits(
                model.astype(np.float32), [*prompt, *beam.ids], len(prompt), stop_ids=stop_ids,
                max_new_tokens=max_new_tokens, **processors,
            )  # fmt: skip
            for token in np.flatnonzero(np.isfinite(z)).tolist():
                total = beam.total + float(z[token])
                if not is_forced(len(beam.ids)):
                    total -= diversity_penalty * chosen[token]
                longer = Hypothesis(
                    total / (len(beam.ids) + 1) ** length_penalty,
                    total,
                    (*beam.ids, token),
                    (*beam.log_probabilities, model[token]),
                )
                found.append((-total, place, token, longer))
        return [each[-1] for each in sorted(found)]

    for length in range(1, max_new_tokens + 1):
        chosen = Counter()
        for group in range(num_beam_groups):
            candidates = following(running[group], chosen)
            stops = [each.ids[-1] in stop_ids for each in candidates]
            ends = [stop or length == max_new_tokens for stop in stops]
            new = [each for each, end in zip(candidates[:width], ends, strict=False) if end]
            merged = sorted(finished[group] + new, key=lambda each: -each.score)
            best = finished[group] = merged[:width]
            beams = [each for each, end in zip(candidates, ends, strict=True) if not end][:width]
            if beams and len(best) == width:
                suits = early_stopping == "never" and length_penalty > 0
                hope = beams[0].total / (max_new_tokens if suits else length) ** length_penalty
                if early_stopping is True or hope <= best[-1].score:
                    beams = []
            running[group] = beams
            chosen.update(each.ids[-1] for each in beams)
    everything = [each for best in finished for each in best]
    return sorted(everything, key=lambda each: -each.score)[:num_return_sequences]
