// Choosing tokens in CUDA: a block a row, which reads its logits from the caches as often as the
// settings need; the first time, from memory, several blocks share a long one.
//
//   greedy                                   1 pass
//   all tokens, or min-p                     2
//   top-k, top-p, both; the best of a beam   3: what may be left is gathered in shared memory as
//                                            soon as it is no more than kMostBest
//   more than that left by top-k or top-p    5; by both 8
//
// The k-th largest, or the one at which the probabilities reach p, is found by histograms: of all
// keys between the lowest and the highest, then of those in the bin it lies in, until a bin is one
// key. Probabilities are integers, so that the threads may add them in any order.
#include "ops/sampling.h"

#include <float.h>

#include "cuda/exp_sum.h"
#include "cuda/integers.h"
#include "cuda/launch.h"

namespace llmcore::cuda {
namespace {

using Sum = unsigned long long;

constexpr int kAtOnce = 4;
constexpr int kFew = 128, kMany = 1024;  // threads, for up to kSmall classes and for more
constexpr int64_t kSmall = 2048;
constexpr float kOne = 0x1p43f;  // the weight of the most likely token: kMostClasses of it fit Sum

// The order of floats as integers, -0 being 0.
__device__ __forceinline__ unsigned key_of(float z) {
  const unsigned bits = __float_as_uint(z + 0.0f);
  return bits >> 31 ? ~bits : bits | 1u << 31;
}
__device__ __forceinline__ float value_of(unsigned key) {
  return __uint_as_float(key >> 31 ? key & ~(1u << 31) : ~key);
}

// A token as one number: in order of ids, or of likelihood.
__device__ __forceinline__ Sum pair(unsigned high, unsigned low) {
  return Sum{high} << 32 | low;
}
__device__ __forceinline__ unsigned high_of(Sum pair) {
  return static_cast<unsigned>(pair >> 32);
}
__device__ __forceinline__ unsigned low_of(Sum pair) {
  return static_cast<unsigned>(pair);
}

// The bin in which a sum reaches its limit.
struct Crossing {
  Sum missing;                   // of the limit before the bin
  unsigned bin, count, through;  // keys in it, and up to its end
};

template <int kThreads>
struct Shared {
  static constexpr int kBins = 2 * kThreads;
  WideSum weights[kBins];
  unsigned counts[kBins];
  Sum gathered[kMostBest];
  Sum sums[kWarp];
  double doubles[kWarp];
  float floats[kWarp];
  Crossing crossing;
  Sum found;
  unsigned next;
};

// What the logits of a row are like.
struct Summary {
  float largest, lowest;
  double log_sum;  // of e^(z - largest), so that log-probabilities are rounded once
  unsigned id;     // the most likely one
  bool damaged;    // by NaN or +inf

  __device__ float log_probability(float z) const {
    return z == -INFINITY ? z : static_cast<float>(static_cast<double>(z) - largest - log_sum);
  }
};

// The same of a part of a row, on its way there.
struct Part {
  Sum best;    // the largest and ~id
  double sum;  // of e^(z - largest)
  float lowest;
  bool damaged;

  __device__ float largest() const { return value_of(high_of(best)); }
  __device__ Summary summary() const {
    return {largest(), lowest, log(sum), ~low_of(best), damaged};
  }
};

__device__ __forceinline__ Sum larger(Sum a, Sum b) {
  return a > b ? a : b;
}

// By a block, of the logits from `begin` to `end`.
template <int kThreads>
__device__ Part part_of_row(const float* logits, int begin, int end, Shared<kThreads>& shared) {
  float largest = -INFINITY, lowest = INFINITY;
  double sum = 0.0;
  unsigned id = 0;
  int damaged = 0;
  for (int first = begin + threadIdx.x; first < end; first += kAtOnce * kThreads) {
    float z[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int at = first + i * kThreads;
      z[i] = at < end ? logits[at] : -INFINITY;
    }
    const float before = largest;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int at = first + i * kThreads;
      damaged |= !(z[i] <= FLT_MAX);
      if (at < end && z[i] < lowest) lowest = z[i];
      if (z[i] > largest) {
        largest = z[i];
        id = at;
      }
    }
    if (largest > before) sum *= expf(before - largest);
#pragma unroll
    for (float& x : z) x = expf(x - finite(largest));
    sum += (z[0] + z[1]) + (z[2] + z[3]);
  }
  Part part;
  part.best = block_reduce(pair(key_of(largest), ~id), shared.sums, Sum{0}, larger);
  part.sum = block_sum(sum * expf(largest - finite(part.largest())), shared.doubles);
  part.lowest = -block_max(-lowest, shared.floats);
  part.damaged = __syncthreads_or(damaged) != 0;
  return part;
}

// Parts of the rows that a kernel takes at a time, and how many blocks of each row have come to
// their end; zeros between kernels, of which the queue has one at a time. One block would take
// several times as long to read a large vocabulary.
constexpr int kMostRows = 32, kParts = kWarp;
__device__ Part parts[kMostRows][kParts];
__device__ unsigned ended[kMostRows];

// By each block of a row: whether it is the last one, for which `part` becomes that of the row.
__device__ bool join_parts(int row, int place, Part& part) {
  __shared__ bool last;
  if (threadIdx.x == 0) {
    parts[row][place] = part;
    __threadfence();
    last = take_number(&ended[row]) == kParts - 1;
    if (last) ended[row] = 0;
  }
  __syncthreads();
  if (!last) return false;
  __threadfence();
  const Part mine = parts[row][threadIdx.x % kWarp];
  part.best = warp_reduce(mine.best, larger);
  part.sum = warp_sum(mine.sum * expf(mine.largest() - finite(part.largest())));
  part.lowest = -warp_max(-mine.lowest);
  part.damaged = __any_sync(~0u, mine.damaged) != 0;
  return true;
}

// In ascending order.
template <int kThreads>
__device__ void sort(Sum* values, int count) {
  int size = 1;
  while (size < count) size *= 2;
  for (int i = count + static_cast<int>(threadIdx.x); i < size; i += kThreads) values[i] = ~Sum{0};
  for (int span = 2; span <= size; span *= 2)
    for (int step = span / 2; step > 0; step /= 2) {  // bitonic (Batcher 1968)
      __syncthreads();
      for (int i = threadIdx.x; i < size / 2; i += kThreads) {
        const int low = 2 * i - (i & (step - 1)), high = low + step;
        const Sum a = values[low], b = values[high];
        if ((a > b) == ((low & span) == 0)) {
          values[low] = b;
          values[high] = a;
        }
      }
    }
  __syncthreads();
}

// Where select() ended: at a key that `count` tokens have, and with what the others lack.
struct Selected {
  unsigned key;
  Sum missing;
  unsigned count;
};

// The tokens that may still be chosen: those above `floor`, and those at it up to the id `last`.
template <int kThreads>
struct Candidates {
  static constexpr int kBins = Shared<kThreads>::kBins, kWarps = kThreads / kWarp;
  static constexpr int kBits = kThreads == kMany ? 11 : 8;
  static_assert(kBins == 1 << kBits);

  Shared<kThreads>& shared;
  const float* logits;
  int count;  // of logits, or of what is gathered
  float temperature, largest;
  unsigned floor;
  unsigned last = ~0u;
  bool gathered = false;

  __device__ bool keeps(unsigned key, unsigned id) const {
    return key > floor || (key == floor && id <= last);
  }
  __device__ float relative(unsigned key) const { return expf(value_of(key) - largest); }
  __device__ Sum weight(unsigned key) const { return static_cast<Sum>(relative(key) * kOne); }

  // visit(key, id) of every step-th from `begin` on; places are in order of ids.
  template <class Visit>
  __device__ __forceinline__ void each(int begin, int end, int step, Visit visit) const {
    if (gathered) {
      for (int i = begin; i < end; i += step)
        visit(low_of(shared.gathered[i]), high_of(shared.gathered[i]));
      return;
    }
    for (; begin < end; begin += kAtOnce * step) {
      float z[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i)
        z[i] = begin + i * step < end ? logits[begin + i * step] : 0.0f;
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i)
        if (begin + i * step < end) visit(key_of(z[i] / temperature), begin + i * step);
    }
  }

  // From here on there are no others than these; no more than kMostBest.
  __device__ void gather(unsigned lowest, unsigned last_of_lowest) {
    if (threadIdx.x == 0) shared.next = 0;
    __syncthreads();
    each(threadIdx.x, count, kThreads, [&](unsigned key, unsigned id) {
      if (key > lowest || (key == lowest && id <= last_of_lowest))
        shared.gathered[take_number(&shared.next)] = pair(id, key);
    });
    __syncthreads();
    gathered = true;
    count = static_cast<int>(shared.next);
    sort<kThreads>(shared.gathered, count);
  }

  // From the most likely one down, where the sum of the candidates' weights, or their number,
  // reaches limit_of(sum of all).
  template <bool kWeighted, class LimitOf>
  __device__ Selected select(LimitOf limit_of) {
    unsigned high = key_of(largest), low = floor, above = 0;
    Sum missing = 0;
    for (bool first = true;; first = false) {
      const int bits = 32 - __clz(static_cast<int>(high - low));
      const int shift = bits > kBits ? bits - kBits : 0;
      for (int bin = threadIdx.x; bin < kBins; bin += kThreads) {
        shared.counts[bin] = 0;
        if (kWeighted) shared.weights[bin] = {};
      }
      __syncthreads();
      each(threadIdx.x, count, kThreads, [&](unsigned key, unsigned) {
        if (key < low || key > high) return;
        const unsigned bin = (high - key) >> shift;
        add_to(&shared.counts[bin], 1u);
        if (kWeighted) add_to(&shared.weights[bin], weight(key));
      });
      __syncthreads();
      const unsigned bin = 2 * threadIdx.x;
      const unsigned counts[2] = {shared.counts[bin], shared.counts[bin + 1]};
      Sum sums[2] = {counts[0], counts[1]}, total;
      const Sum counted = block_scan(sums[0] + sums[1], shared.sums, total);
      Sum before = counted;
      if constexpr (kWeighted) {
        sums[0] = shared.weights[bin].value();
        sums[1] = shared.weights[bin + 1].value();
        before = block_scan(sums[0] + sums[1], shared.sums, total);
      }
      if (first) missing = limit_of(total);
      if (before < missing && missing <= before + sums[0] + sums[1]) {
        const bool second = missing > before + sums[0];
        shared.crossing = {missing - before - (second ? sums[0] : 0), bin + second,
                           second ? counts[1] : counts[0],
                           static_cast<unsigned>(counted) + counts[0] + (second ? counts[1] : 0)};
      }
      __syncthreads();
      const Crossing crossing = shared.crossing;
      missing = crossing.missing;
      high -= crossing.bin << shift;
      const unsigned width = (1u << shift) - 1;
      if (high - low > width) low = high - width;
      const unsigned through = above + crossing.through;
      if (!gathered && through <= kMostBest) gather(low, ~0u);
      above = through - crossing.count;
      if (shift == 0) return {high, missing, crossing.count};
    }
  }

  // The first in order of ids at which the sum of measure(key, id) reaches target_of(sum of all).
  template <class Measure, class TargetOf>
  __device__ unsigned id_at(Measure measure, TargetOf target_of) const {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    int begin = 0, end = count;
    Sum target = 0;
    bool first = true;
    do {  // a warp sums a piece
      const int piece = (end - begin + kWarps - 1) / kWarps;
      const int from = min(begin + warp * piece, end);
      Sum sum = 0;
      each(from + lane, min(from + piece, end), kWarp,
           [&](unsigned key, unsigned id) { sum += measure(key, id); });
      sum = warp_sum(sum);
      if (lane == 0) shared.sums[warp] = sum;
      __syncthreads();
      const Sum of_piece = lane < kWarps ? shared.sums[lane] : 0;
      const Sum through = warp_scan(of_piece);
      if (first) target = target_of(__shfl_sync(~0u, through, kWarp - 1));
      first = false;
      const int which = __ffs(static_cast<int>(__ballot_sync(~0u, through >= target))) - 1;
      target -= __shfl_sync(~0u, through - of_piece, which);
      begin += which * piece;
      end = min(begin + piece, end);
      __syncthreads();
    } while (end - begin > kThreads);
    Sum here = 0, total;
    unsigned found = 0;
    each(begin + threadIdx.x, end, kThreads, [&](unsigned key, unsigned id) {
      here = measure(key, id);
      found = id;
    });
    const Sum before = block_scan(here, shared.sums, total);
    if (before < target && target <= before + here) shared.found = found;
    __syncthreads();
    return static_cast<unsigned>(shared.found);
  }

  // Drops all below what select() found, and of those that have its key all but the first `kept`.
  __device__ void keep(const Selected& selected, Sum kept) {
    floor = selected.key;
    if (kept < selected.count)
      last = id_at([&](unsigned key, unsigned) { return Sum{key == floor}; },
                   [&](Sum) { return kept; });
  }

  __device__ void keep_top_k(int k) {
    floor = select<false>([&](Sum total) { return total < Sum(k) ? total : Sum(k); }).key;
  }

  __device__ void keep_top_p(double p) {
    const Selected selected = select<true>([&](Sum total) {
      const Sum limit = static_cast<Sum>(ceil(p * static_cast<double>(total)));
      return limit < 1 ? Sum{1} : limit > total ? total : limit;
    });
    const Sum each_has = weight(selected.key);
    keep(selected, (selected.missing + each_has - 1) / each_has);
  }

  // The candidate at `uniform` of the cumulative distribution, of those at least min_p as likely as
  // the most likely one.
  __device__ unsigned at(double uniform, double min_p) const {
    return id_at(
        [&](unsigned key, unsigned id) {
          const bool kept = keeps(key, id) && static_cast<double>(relative(key)) >= min_p;
          return kept ? weight(key) : Sum{0};
        },
        [&](Sum total) {
          const Sum passed = static_cast<Sum>(uniform * static_cast<double>(total));
          return (passed < total ? passed : total - 1) + 1;
        });
  }
};

// Rows of settings from `first` on. With kMany threads a row has kParts blocks.
template <int kThreads>
__global__ void __launch_bounds__(kThreads, 1)
    sample_tokens_kernel(SampleTokensArgs args, int64_t first) {
  take_turn();
  constexpr int kBlocks = kThreads == kMany ? kParts : 1;
  __shared__ Shared<kThreads> shared;
  const int n = static_cast<int>(blockIdx.x) / kBlocks;
  const int place = static_cast<int>(blockIdx.x) % kBlocks;
  const SampleSettings settings = args.settings.as<SampleSettings>()[first + n];
  const int classes = static_cast<int>(args.logits.cols());
  const float* logits = args.logits.f32() + int64_t{settings.row} * classes;
  const int share = (classes + kBlocks - 1) / kBlocks;
  Part part = part_of_row(logits, place * share, min((place + 1) * share, classes), shared);
  if (kBlocks > 1 && !join_parts(n, place, part)) return;
  const Summary row = part.summary();
  const float largest = row.largest / settings.temperature;

  ChoiceFailure failure = ChoiceFailure::kNone;
  if (row.damaged || row.largest == -INFINITY || largest == INFINITY)
    failure = ChoiceFailure::kNotFinite;
  else if (largest == -INFINITY)
    failure = ChoiceFailure::kNothingLeft;

  unsigned id = row.id;
  const bool greedy = settings.top_p <= 0.0 && settings.temperature == 1.0f;
  if (failure == ChoiceFailure::kNone && !greedy) {
    const float lowest = max(row.lowest / settings.temperature, -FLT_MAX);
    Candidates<kThreads> candidates{.shared = shared,
                                    .logits = logits,
                                    .count = classes,
                                    .temperature = settings.temperature,
                                    .largest = largest,
                                    .floor = key_of(lowest)};
    if (settings.top_k > 0 && settings.top_k < classes) candidates.keep_top_k(settings.top_k);
    if (settings.top_p < 1.0) candidates.keep_top_p(settings.top_p);
    id = candidates.at(settings.uniform, settings.min_p);
  }
  if (threadIdx.x > 0) return;
  args.choices.as<Choice>()[settings.place] = {
      .id = static_cast<int32_t>(id),
      .log_probability = failure == ChoiceFailure::kNone ? row.log_probability(logits[id]) : NAN,
      .failure = failure};
  if (args.ids) args.ids.as<int32_t>()[settings.place] = static_cast<int32_t>(id);
}

__global__ void fill_ids_kernel(FillIdsArgs args) {
  take_turn();
  const int64_t n = thread_index();
  if (n >= args.ids.numel()) return;
  const int32_t from = args.from.as<int32_t>()[n];
  if (from >= 0) args.ids.as<int32_t>()[n] = args.chosen.as<int32_t>()[from];
}

template <int kThreads>
__global__ void __launch_bounds__(kThreads, 1) best_tokens_kernel(BestTokensArgs args) {
  take_turn();
  __shared__ Shared<kThreads> shared;
  const int classes = static_cast<int>(args.logits.cols());
  const int count = static_cast<int>(args.choices.dim(1));
  const float* logits = args.logits.f32() + int64_t{blockIdx.x} * classes;
  Choice* choices = args.choices.as<Choice>() + int64_t{blockIdx.x} * count;
  const Summary row = part_of_row(logits, 0, classes, shared).summary();
  if (row.damaged || count == 1) {
    for (int i = threadIdx.x; i < count; i += kThreads)
      choices[i] = {.id = static_cast<int32_t>(row.id),
                    .log_probability = row.damaged ? NAN : row.log_probability(row.largest),
                    .failure = row.damaged ? ChoiceFailure::kNotFinite : ChoiceFailure::kNone};
    return;
  }

  Candidates<kThreads> candidates{.shared = shared,
                                  .logits = logits,
                                  .count = classes,
                                  .temperature = 1.0f,
                                  .largest = row.largest,
                                  .floor = key_of(row.lowest)};
  const Selected selected = candidates.template select<false>([&](Sum) { return Sum(count); });
  if (!candidates.gathered) {  // too many are as likely as the last one
    candidates.keep(selected, selected.missing);
    candidates.gather(candidates.floor, candidates.last);
  }
  for (int i = threadIdx.x; i < candidates.count; i += kThreads)
    shared.gathered[i] = pair(~low_of(shared.gathered[i]), high_of(shared.gathered[i]));
  __syncthreads();
  sort<kThreads>(shared.gathered, candidates.count);
  for (int i = threadIdx.x; i < count; i += kThreads)
    choices[i] = {.id = static_cast<int32_t>(low_of(shared.gathered[i])),
                  .log_probability = row.log_probability(value_of(~high_of(shared.gathered[i]))),
                  .failure = ChoiceFailure::kNone};
}

void best_tokens(const Context& context, const BestTokensArgs& args) {
  const bool few = args.logits.cols() <= kSmall;
  launch(context, few ? best_tokens_kernel<kFew> : best_tokens_kernel<kMany>,
         dim3(static_cast<unsigned>(args.logits.rows())), dim3(few ? kFew : kMany), 0, args);
}

void sample_tokens(const Context& context, const SampleTokensArgs& args) {
  const bool few = args.logits.cols() <= kSmall;
  const int64_t rows = args.settings.rows();
  for (int64_t first = 0; first < rows; first += kMostRows) {
    const int64_t blocks = std::min<int64_t>(rows - first, kMostRows) * (few ? 1 : kParts);
    launch(context, few ? sample_tokens_kernel<kFew> : sample_tokens_kernel<kMany>,
           dim3(static_cast<unsigned>(blocks)), dim3(few ? kFew : kMany), 0, args, first);
  }
}

void fill_ids(const Context& context, const FillIdsArgs& args) {
  launch_each(context, fill_ids_kernel, args.ids.numel(), args);
}

}  // namespace

extern const SamplingKernels sampling_kernels;
const SamplingKernels sampling_kernels = {
    .best_tokens = best_tokens, .sample_tokens = sample_tokens, .fill_ids = fill_ids};

}  // namespace llmcore::cuda
