"""Logits processors and sampling in plain NumPy, by sorting everything."""

from __future__ import annotations

import numpy as np

from reference.random import philox_words


def process_logits(
    logits, ids, prompt_length, *, repetition_penalty=1.0, presence_penalty=0.0,
    frequency_penalty=0.0, no_repeat_ngram_size=0, min_new_tokens=0, stop_ids=(), banned_ids=(),
    forced_ids=(), forced_eos_id=-1, max_new_tokens=128, temperature=1.0, do_sample=False, **_,
):  # fmt: skip
    z, ids, n = logits.copy(), list(ids), no_repeat_ngram_size
    for token in set(ids):
        z[token] *= repetition_penalty if z[token] < 0 else 1 / repetition_penalty
    for token in set(ids[prompt_length:]):
        z[token] -= presence_penalty + frequency_penalty * ids[prompt_length:].count(token)
    for i in range(len(ids) - n + 1) if n else ():
        if ids[i : i + n - 1] == ids[len(ids) - n + 1 :]:
            z[ids[i + n - 1]] = -np.inf
    new_tokens = len(ids) - prompt_length
    if new_tokens < min_new_tokens:
        z[list(stop_ids)] = -np.inf
    z[list(banned_ids)] = -np.inf
    forced = forced_ids[new_tokens] if new_tokens < len(forced_ids) else -1
    if forced_eos_id >= 0 and new_tokens == max_new_tokens - 1:
        forced = forced_eos_id
    if forced >= 0:
        z[:] = -np.inf
        z[forced] = 0
    return z / temperature if do_sample else z


def kept(z, *, top_k=0, top_p=1.0, min_p=0.0, **_):
    """Which tokens may be sampled, as a mask; the three restrictions one after the other."""
    order = np.lexsort((np.arange(len(z)), -z))  # most likely first, lower ids first where equal
    mask = z > -np.inf
    if 0 < top_k < len(z):
        mask &= z >= z[order[top_k - 1]]
    weights = np.where(mask, np.exp(z - z.max()), 0)
    before = np.cumsum(weights[order]) - weights[order]  # of the more likely ones
    if top_p < 1:
        mask[order] &= (before < top_p * weights.sum()) & mask[order]
    return mask & (weights >= min_p)


def uniform(seed, sequence, position):
    """53 bits of Philox's block `position` of stream `sequence`."""
    words = philox_words(seed, sequence, 4 * position + 2)[-2:].astype(np.uint64)
    return float(((words[0] << np.uint64(32)) | words[1]) >> np.uint64(11)) * 2.0**-53


def choose(logits, ids, prompt_length, sequence=0, *, seed=0, do_sample=False, **options):
    """(id, log-probability under the model)."""
    z = process_logits(logits, ids, prompt_length, do_sample=do_sample, **options)
    log_probabilities = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
    token = int(np.argmax(z))
    if do_sample:
        weights = np.where(kept(z, **options), np.exp(z - z.max()), 0)
        target = uniform(seed, sequence, len(ids) - prompt_length) * weights.sum()
        token = int(np.flatnonzero(np.cumsum(weights) > target)[0])
    return token, log_probabilities[token]
