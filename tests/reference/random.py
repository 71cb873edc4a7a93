"""Philox 4x32-10 (Salmon et al. 2011) and the dropout masks made of it."""

from __future__ import annotations

import numpy as np


def philox_words(seed, stream, count):
    """The first `count` 32-bit words of (seed, stream): word i is word i % 4 of block i // 4."""
    mask = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    block = np.arange((count + 3) // 4, dtype=np.uint64)
    c0, c1 = block & mask, block >> half
    c2 = np.full_like(block, stream & 0xFFFFFFFF)
    c3 = np.full_like(block, stream >> 32)
    key0, key1 = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(10):
        product0, product1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c2 = (
            (product1 >> half) ^ c1 ^ np.uint64(key0),
            (product0 >> half) ^ c3 ^ np.uint64(key1),
        )
        c1, c3 = product1 & mask, product0 & mask
        key0, key1 = (key0 + 0x9E3779B9) & 0xFFFFFFFF, (key1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], 1).reshape(-1)[:count].astype(np.uint32)


def dropout_mask(shape, p, seed, stream):
    """1 / (1 - p) where dropout keeps an element, 0 where it does not; float32."""
    words = philox_words(seed, stream, int(np.prod(shape))).reshape(shape)
    keep = np.float32(1) / (np.float32(1) - np.float32(p))
    return (words >= np.uint32(float(np.float32(p)) * 2.0**32)) * keep
