// Packed weights on the CPU: rounding, the order of panels, rows in and out of them, the product.
#include "core/parallel.h"
#include "ops/bfloat16_words.h"

namespace llmcore::LLMCORE_ISA {
namespace {

// Rows are read and written so many elements at a time: two groups of int4.
constexpr int64_t kChunk = 2 * kInt4Group;
// Panels that one task streams: some 5 microseconds.
constexpr int64_t kTaskBytes = 96 << 10;
// What the number of panels in a group is a multiple of.
constexpr int64_t kGroupStep = 2;

// ---- Rounding

// A chunk of a row as integers, zero beyond `count`.
void int8_chunk(const float* row, int64_t count, float inverse, int8_t (&codes)[kChunk]) {
  for (int64_t i = 0; i < kChunk; i += kLanes)
    store_bytes(codes + i, round_to_int(load_up_to(row + i, max(count - i, 0)) * inverse));
}

// The scale, of some around what takes the largest number to -8, with the smallest squared error;
// and its integers.
BFloat16 int4_group(const float* group, int64_t count, int8_t* codes) {
  constexpr int kVectors = kInt4Group / kLanes, kTries = 17;
  Vec x[kVectors];
  float extreme = 0.0f;
  float finite = 0.0f;  // or a NaN, which the scale becomes
  for (int64_t i = 0; i < min(count, kInt4Group); ++i) {
    if (group[i] * group[i] > extreme * extreme) extreme = group[i];
    finite += group[i] - group[i];
  }
  for (int v = 0; v < kVectors; ++v)
    x[v] = load_up_to(group + v * kLanes, max(count - v * kLanes, 0));
  BFloat16 best{};
  float least = 0.0f;
  for (int i = -1; i < kTries; ++i) {  // first a scale of zero: every integer is zero
    const BFloat16 candidate =
        i < 0 ? BFloat16{} : to_bfloat16(extreme / (-8.75f + 0.125f * static_cast<float>(i)));
    const float scale = to_float(candidate), inverse = scale == 0.0f ? 0.0f : 1.0f / scale;
    Vec error = {};
    VecI rounded[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      const Vec limited = min(max(x[v] * inverse, broadcast(-8.0f)), broadcast(7.0f));
      rounded[v] = round_to_int(limited);
      const Vec rest = x[v] - to_float(rounded[v]) * scale;
      error = fma(rest, rest, error);
    }
    const float sum = reduce_add(error);
    if (i >= 0 && !(sum < least)) continue;
    least = sum;
    best = candidate;
    for (int v = 0; v < kVectors; ++v) store_bytes(codes + v * kLanes, rounded[v]);
  }
  return finite == 0.0f ? best : to_bfloat16(finite);
}

// ---- One output's place in a panel

struct Lane {
  uint32_t* words;
  int64_t depth;
  DType format;

  Lane(const Tensor& packed, int64_t output)
      : words(reinterpret_cast<uint32_t*>(packed.as<char>() +
                                          output / kPanelOutputs *
                                              panel_bytes(packed.dtype, packed.dim(1))) +
              output % kPanelOutputs),
        depth(packed.dim(1)),
        format(packed.dtype) {}

  int64_t count(int64_t chunk) const { return min(depth - chunk * kChunk, kChunk); }
  float* int8_scale() const {
    return reinterpret_cast<float*>(words + ceil_div(depth, 4) * kPanelOutputs);
  }
  // Line `index` of the nine that a chunk takes.
  uint32_t& int4_line(int64_t chunk, int64_t index) const {
    return words[(9 * chunk + index) * kPanelOutputs];
  }
  BFloat16 int4_scale(int64_t group) const {
    return {static_cast<uint16_t>(int4_line(group / 2, 8) >> (group % 2 * 16))};
  }
  void set_int4_scales(int64_t chunk, BFloat16 first, BFloat16 second) const {
    int4_line(chunk, 8) = first.bits | static_cast<uint32_t>(second.bits) << 16;
  }

  void set_codes(int64_t chunk, const int8_t (&codes)[kChunk]) const {
    const auto word = [&](int64_t w, int offset) {
      uint32_t value = 0;
      for (int i = 0; i < 4; ++i)
        value |= static_cast<uint32_t>(codes[4 * w + i] + offset) << (8 * i);
      return value;
    };
    if (format == DType::kPackedInt4) {
      for (int64_t line = 0; line < 8; ++line)
        int4_line(chunk, line) = word(2 * line, 8) | word(2 * line + 1, 8) << 4;
    } else {
      for (int64_t w = 0; w < ceil_div(count(chunk), 4); ++w)
        words[(chunk * kChunk / 4 + w) * kPanelOutputs] = word(w, 128);
    }
  }

  void get_codes(int64_t chunk, int8_t (&codes)[kChunk]) const {
    for (int64_t i = 0; i < count(chunk); ++i) {
      if (format == DType::kPackedInt4)
        codes[i] =
            static_cast<int8_t>((int4_line(chunk, i / 8) >> (i % 4 * 8 + i / 4 % 2 * 4) & 15u) - 8);
      else
        codes[i] = static_cast<int8_t>(
            (words[(chunk * kChunk + i) / 4 * kPanelOutputs] >> (i % 4 * 8) & 255u) - 128);
    }
  }

  void pack(const float* row) const {
    if (format == DType::kPackedBFloat16) {
      for (int64_t k = 0; k < depth; k += 2)
        words[k / 2 * kPanelOutputs] =
            to_bfloat16(row[k]).bits |
            (k + 1 < depth ? static_cast<uint32_t>(to_bfloat16(row[k + 1]).bits) << 16 : 0);
      return;
    }
    int8_t codes[kChunk];
    const Rounding rounding = int8_rounding(row, depth);
    for (int64_t chunk = 0; chunk * kChunk < depth; ++chunk) {
      const float* from = row + chunk * kChunk;
      if (format == DType::kPackedInt8) {
        int8_chunk(from, count(chunk), rounding.inverse, codes);
      } else {
        const BFloat16 first = int4_group(from, count(chunk), codes);
        const BFloat16 second =
            int4_group(from + kInt4Group, count(chunk) - kInt4Group, codes + kInt4Group);
        set_int4_scales(chunk, first, second);
      }
      set_codes(chunk, codes);
    }
    if (format == DType::kPackedInt8) *int8_scale() = rounding.scale;
  }

  void unpack(float* row) const {
    if (format == DType::kPackedBFloat16) {
      for (int64_t k = 0; k < depth; ++k)
        row[k] =
            to_float(BFloat16{static_cast<uint16_t>(words[k / 2 * kPanelOutputs] >> (k % 2 * 16))});
      return;
    }
    int8_t codes[kChunk];
    for (int64_t chunk = 0; chunk * kChunk < depth; ++chunk) {
      get_codes(chunk, codes);
      for (int64_t i = 0; i < count(chunk); ++i)
        row[chunk * kChunk + i] = static_cast<float>(codes[i]) *
                                  (format == DType::kPackedInt8
                                       ? *int8_scale()
                                       : to_float(int4_scale((chunk * kChunk + i) / kInt4Group)));
    }
  }
};

// f(lane, row) for `count` rows, threads by panels: their outputs share cache lines.
template <class F>
void for_each_row(const PackedRows& rows, int64_t count, F f) {
  const int64_t first = rows.first / kPanelOutputs, end = rows.first + count;
  parallel_for(packed_panels(end) - first, [&](int64_t panel, int) {
    const int64_t begin = (first + panel) * kPanelOutputs;
    for (int64_t i = max(begin, rows.first); i < min(begin + kPanelOutputs, end); ++i)
      f(Lane(rows.packed, i), i - rows.first);
  });
}

void pack(const PackArgs& args) {
  const int64_t depth = args.weight.dim(1);
  for_each_row(args.to, args.weight.dim(0),
               [&](const Lane& lane, int64_t row) { lane.pack(args.weight.f32() + row * depth); });
}

void get_codes(const CodesArgs& args) {
  const int64_t depth = args.codes.dim(1), groups = ceil_div(depth, kInt4Group);
  for_each_row(args.of, args.codes.dim(0), [&](const Lane& lane, int64_t output) {
    int8_t codes[kChunk];
    for (int64_t chunk = 0; chunk * kChunk < depth; ++chunk) {
      lane.get_codes(chunk, codes);
      __builtin_memcpy(args.codes.as<int8_t>() + output * depth + chunk * kChunk, codes,
                       lane.count(chunk));
    }
    if (lane.format == DType::kPackedInt8)
      args.scales.f32()[output] = *lane.int8_scale();
    else
      for (int64_t g = 0; g < groups; ++g)
        args.scales.f32()[output * groups + g] = to_float(lane.int4_scale(g));
  });
}

void set_codes(const CodesArgs& args) {
  const int64_t depth = args.codes.dim(1), groups = ceil_div(depth, kInt4Group);
  for_each_row(args.of, args.codes.dim(0), [&](const Lane& lane, int64_t output) {
    const float* scales = args.scales.f32() + output * groups;
    for (int64_t chunk = 0; chunk * kChunk < depth; ++chunk) {
      int8_t codes[kChunk] = {};
      __builtin_memcpy(codes, args.codes.as<int8_t>() + output * depth + chunk * kChunk,
                       lane.count(chunk));
      lane.set_codes(chunk, codes);
      if (lane.format == DType::kPackedInt4)
        lane.set_int4_scales(
            chunk, to_bfloat16(scales[2 * chunk]),
            2 * chunk + 1 < groups ? to_bfloat16(scales[2 * chunk + 1]) : BFloat16{});
    }
    if (lane.format == DType::kPackedInt8) *lane.int8_scale() = args.scales.f32()[output];
  });
}

void unpack_rows(const UnpackRowsArgs& args) {
  const int64_t depth = args.packed.dim(1);
  parallel_for(args.rows.numel(), [&](int64_t r, int) {
    Lane(args.packed, args.rows.as<int32_t>()[r]).unpack(args.out.f32() + r * depth);
  });
}

// ---- The product

// Where strips of `rows` rows keep what, for depth K.
template <class Format>
struct StripLayout {
  int64_t words, groups, bytes;

  explicit StripLayout(int64_t depth) {
    words = Format::kDType == DType::kPackedBFloat16 ? ceil_div(depth, 2)
            : Format::kDType == DType::kPackedInt8   ? ceil_div(depth, 4)
                                                     : ceil_div(depth, kChunk) * kChunk / 4;
    groups = Format::kDType == DType::kPackedInt4 ? ceil_div(depth, kChunk) * 2 : 1;
    const int64_t row = words * static_cast<int64_t>(sizeof(DotWord)) + groups * 4 + 4;
    bytes =
        round_up(row * Format::kRows + kVecBytes * kDotParts, 64);  // copy_bfloat16's last vector
  }

  Strip at(char* scratch, int64_t strip) const {
    Strip result;
    result.words = reinterpret_cast<DotWord*>(scratch + strip * bytes);
    result.starts = reinterpret_cast<int32_t*>(result.words + words * Format::kRows);
    result.scales = reinterpret_cast<float*>(result.starts + groups * Format::kRows);
    return result;
  }
};

// Row `r` of the `rows` of a strip, rounded to int8.
template <class Format>
void fill_row(const Strip& strip, const StripLayout<Format>& layout, int64_t r, int64_t rows,
              const float* x, int64_t depth) {
  DotWord* to = strip.words + r;
  const Rounding rounding = int8_rounding(x, depth);
  strip.scales[r] = rounding.scale;
  int32_t whole = 0;
  for (int64_t chunk = 0; chunk * kChunk < depth; ++chunk) {
    alignas(64) int8_t codes[kChunk];
    int8_chunk(x + chunk * kChunk, depth - chunk * kChunk, rounding.inverse, codes);
    const int64_t count = min(layout.words - chunk * kChunk / 4, kChunk / 4);
    for (int64_t w = 0; w < count; ++w, to += rows) {
      uint32_t word;
      __builtin_memcpy(&word, codes + 4 * w, sizeof(word));
      *to = int8_word(word);
    }
    for (int64_t half = 0; half < 2; ++half) {
      int32_t sum = 0;
      for (int64_t i = 0; i < kInt4Group; ++i) sum += codes[half * kInt4Group + i];
      if constexpr (Format::kDType == DType::kPackedInt4)
        strip.starts[(2 * chunk + half) * rows + r] = -8 * sum;
      whole += sum;
    }
  }
  if constexpr (Format::kDType == DType::kPackedInt8) strip.starts[r] = -128 * whole;
}

// x [valid, K] as a strip of `rows` rows; what those beyond hold is multiplied and dropped.
template <class Format>
void fill_strip(const Strip& strip, const StripLayout<Format>& layout, int64_t rows,
                const Tensor& x) {
  const int64_t valid = x.dim(0), depth = x.dim(1);
  if constexpr (Format::kDType == DType::kPackedBFloat16)
    copy_bfloat16({x.f32(), depth, true}, 0, valid, 0, depth, strip.words, rows);
  else
    for (int64_t r = 0; r < rows; ++r)
      fill_row<Format>(strip, layout, r, rows, x.f32() + min(r, valid - 1) * depth, depth);
}

template <class Format>
void multiply(const MatmulArgs& args) {
  const Output out = make_output(args, args.c.f32());
  const int64_t depth = args.a.dim(1), outputs = args.c.dim(1);
  const int64_t panels = packed_panels(outputs), bytes = panel_bytes(Format::kDType, depth);
  const Tiles<Format> tiles{.out = out,
                            .rows = args.c.dim(0),
                            .outputs = outputs,
                            .depth = depth,
                            .panel_words = bytes / 4,
                            .add = args.accumulate};
  const StripLayout<Format> layout(depth);
  const int64_t strips = ceil_div(tiles.rows, Format::kRows);
  const auto strip_at = [&](int64_t i) { return layout.at(args.scratch.as<char>(), i); };
  const auto fill = [&](int64_t i, int) {
    const int64_t row = i * Format::kRows;
    fill_strip<Format>(strip_at(i), layout, Tiles<Format>::tile_rows(tiles.rows - row),
                       row_slice(args.a, row, min(Format::kRows, tiles.rows - row)));
  };
  if (strips == 1)
    fill(0, 0);
  else
    parallel_for(strips, fill);

  const int64_t tasks = strips == 1 ? ceil_div(panels * bytes, kTaskBytes)
                                    : min(panels, args.workers * kTasksPerThread);
  const int64_t grain = round_up(ceil_div(panels, tasks), kGroupStep);
  const int64_t group = strips == 1 ? grain : round_up(max(kGroupBytes / bytes, 1), kGroupStep);
  parallel_chunks(panels, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t panel = begin; panel < end; panel += group)
      for (int64_t i = 0; i < strips; ++i)
        tiles.multiply(strip_at(i), i * Format::kRows,
                       args.b.as<uint32_t>() + panel * tiles.panel_words, min(group, end - panel),
                       panel * kPanelOutputs);
  });
}

template <class F>
auto with_format(DType dtype, F f) {
  if (dtype == DType::kPackedBFloat16) return f(BFloat16Format{});
  if (dtype == DType::kPackedInt8) return f(Int8Format{});
  return f(Int4Format{});
}

int64_t scratch_bytes(const MatmulArgs& args) {
  return with_format(args.b.dtype, [&]<class Format>(Format) -> int64_t {
    return ceil_div(args.c.dim(0), Format::kRows) * StripLayout<Format>(args.a.dim(1)).bytes;
  });
}

void matmul(const MatmulArgs& args) {
  with_format(args.b.dtype, [&]<class Format>(Format) { multiply<Format>(args); });
}

}  // namespace

extern const PackedKernels packed_kernels;
const PackedKernels packed_kernels = {.pack = pack,
                                      .get_codes = get_codes,
                                      .set_codes = set_codes,
                                      .unpack_rows = unpack_rows,
                                      .scratch_bytes = scratch_bytes,
                                      .matmul = matmul};

}  // namespace llmcore::LLMCORE_ISA
