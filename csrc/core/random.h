// Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
//
// Counter-based: the value at a place is a function of (seed, stream, place), so dropout masks are
// never stored, and are the same for any thread count and on any device.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace llmcore {

struct Philox4 {
  uint32_t lane[4];
};

// Four words for the 128-bit counter (block, stream) under the 64-bit key `seed`.
LLMCORE_INLINE Philox4 philox(uint64_t seed, uint64_t stream, uint64_t block) {
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  uint32_t c0 = static_cast<uint32_t>(block), c1 = static_cast<uint32_t>(block >> 32);
  uint32_t c2 = static_cast<uint32_t>(stream), c3 = static_cast<uint32_t>(stream >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53u} * c0;
    const uint64_t product1 = uint64_t{0xCD9E8D57u} * c2;
    c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ key0;
    c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ key1;
    c1 = static_cast<uint32_t>(product1);
    c3 = static_cast<uint32_t>(product0);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// A uniform number in [0, 1) with 24 random bits.
LLMCORE_INLINE float uniform(uint32_t word) {
  return static_cast<float>(word >> 8) * 0x1p-24f;
}

// Dropout keeps element i of (seed, stream) iff word i%4 of block i/4 is at least this threshold.
LLMCORE_INLINE uint32_t dropout_threshold(float p) {
  return static_cast<uint32_t>(p * 0x1p32f);  // the product is exact
}

// A dropout site: which mask this is. `p` 0 means no dropout.
struct Dropout {
  float p = 0.0f;
  uint64_t seed = 0;
  uint64_t stream = 0;  // distinct per step, micro-batch and site
  // Where a GPU finds what is to be added to the stream, or null: a captured step takes its number
  // from there.
  const uint64_t* added = nullptr;
};

}  // namespace llmcore
