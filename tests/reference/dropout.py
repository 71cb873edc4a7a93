"""Philox 4x32-10 (Salmon et al. 2011) in Python integers, and the dropout mask made of it."""

from __future__ import annotations

import numpy as np

WORD = 2**32


def philox(seed: int, stream: int, block: int) -> list[int]:
    key = [seed % WORD, seed // WORD]
    c = [block % WORD, block // WORD, stream % WORD, stream // WORD]
    for _ in range(10):
        first, second = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [
            second // WORD ^ c[1] ^ key[0],
            second % WORD,
            first // WORD ^ c[3] ^ key[1],
            first % WORD,
        ]
        key = [(key[0] + 0x9E3779B9) % WORD, (key[1] + 0xBB67AE85) % WORD]
    return c


def keep(p: float, seed: int, offset: int, count: int) -> np.ndarray:
    """Which of `count` elements from `offset` on are kept."""
    blocks = range(offset // 4, (offset + count + 3) // 4)
    words = np.array([philox(seed, 0, block) for block in blocks], np.uint64).reshape(-1)
    words = words[offset % 4 :][:count]
    return words >= int(np.float64(np.float32(p)) * WORD)
