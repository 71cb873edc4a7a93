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

// ---- Rows into panels and out of them

// Some outputs of a panel. The words of all its outputs for the same k are a line.
template <class Format>
struct Panel {
  static constexpr bool kInt8 = Format::kDType == DType::kPackedInt8;
  static constexpr bool kInt4 = Format::kDType == DType::kPackedInt4;

  uint32_t* words;
  int64_t depth, begin, end;  // outputs [begin, end) of the panel

  bool has(int64_t output) const { return begin <= output && output < end; }
  uint32_t* line(int64_t index) const { return words + index * kPanelOutputs; }
  // Where word `w` of each output's codes is, and of its scales.
  uint32_t* codes(int64_t w) const { return line(kInt4 ? w / 8 * 9 + w % 8 : w); }
  uint32_t* scales(int64_t w) const { return line(kInt4 ? 9 * w + 8 : ceil_div(depth, 4) + w); }
  int64_t code_words() const {
    return kInt4 ? ceil_div(depth, kChunk) * 8 : ceil_div(depth, kInt8 ? 4 : 2);
  }
  int64_t scale_words() const { return kInt4 ? ceil_div(depth, kChunk) : kInt8 ? 1 : 0; }

  void set(uint32_t* line, int64_t output, VecU lanes) const {
    if (has(output) && has(output + kLanes - 1))
      return stream(reinterpret_cast<float*>(line + output), as_floats(lanes));
    for (int i = 0; i < kLanes; ++i)
      if (has(output + i)) line[output + i] = lanes[i];
  }
};

// put(w, output, lanes) of all words w < count, the lanes being those of outputs from `output` on,
// of what read(row, w) gives: kLanes words of a row, from w on.
template <class Format, class Read, class Put>
LLMCORE_INLINE void rows_to_lines(const Panel<Format>& panel, int64_t count, Read read, Put put) {
  for (int64_t w = 0; w < count; w += kLanes)
    for (int64_t output = 0; output < kPanelOutputs; output += kLanes) {
      Vec block[kLanes] = {};
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i)
        if (panel.has(output + i)) block[i] = as_floats(read(output + i - panel.begin, w));
      transpose(block);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i)
        if (w + i < count) put(w + i, output, as_bits(block[i]));
    }
}

// The way back: write(row, w, words) of what get(w, output) gives.
template <class Format, class Get, class Write>
LLMCORE_INLINE void lines_to_rows(const Panel<Format>& panel, int64_t count, Get get, Write write) {
  for (int64_t w = 0; w < count; w += kLanes)
    for (int64_t output = 0; output < kPanelOutputs; output += kLanes) {
      Vec block[kLanes] = {};
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i)
        if (w + i < count) block[i] = as_floats(get(w + i, output));
      transpose(block);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i)
        if (panel.has(output + i)) write(output + i - panel.begin, w, as_bits(block[i]));
    }
}

// Half a byte is a code. Files have those of a word in order, 0 to 7; panels 0 4 1 5 2 6 3 7.
LLMCORE_INLINE VecU swap_bytes(VecU v) {
  const VecU changed = (v ^ (v >> 8)) & 0x0000ff00u;
  return v ^ changed ^ (changed << 8);
}
LLMCORE_INLINE VecU swap_halves(VecU v) {
  const VecU changed = (v ^ (v >> 4)) & 0x00f000f0u;
  return v ^ changed ^ (changed << 4);
}

// Words [first, first + count) of the codes, read(row, w) from `first` on, as files have them.
// Returns where a byte of int8 was -128.
template <class Format, class Read>
VecU put_codes(const Panel<Format>& panel, int64_t first, int64_t count, Read read) {
  VecU invalid = {};
  rows_to_lines(panel, count, read, [&](int64_t w, int64_t output, VecU lanes) {
    if constexpr (Panel<Format>::kInt8) {
      lanes ^= 0x80808080u;
      invalid |= (lanes - 0x01010101u) & ~lanes & 0x80808080u;  // a byte is zero
    }
    if constexpr (Panel<Format>::kInt4) lanes = swap_halves(swap_bytes(lanes));
    panel.set(panel.codes(first + w), output, lanes);
  });
  return invalid;
}

// A vector of bytes, those from `count` on `pad`.
LLMCORE_INLINE VecU load_bytes(const char* from, int64_t count, int pad) {
  VecU bytes;
  if (count >= kVecBytes) {
    __builtin_memcpy(&bytes, from, sizeof(bytes));
  } else {
    __builtin_memset(&bytes, pad, sizeof(bytes));
    __builtin_memcpy(&bytes, from, max(count, 0));
  }
  return bytes;
}

template <class Format>
bool set_panel(const Panel<Format>& panel, int64_t row, const StoredRowsArgs& args) {
  const int64_t depth = panel.depth;
  const int64_t code_bytes = stored_code_bytes(Format::kDType, depth);
  const int64_t scale_bytes = stored_scale_bytes(Format::kDType, depth);
  const char* codes = args.codes + row * args.row_stride;
  const char* scales = args.scales + row * scale_bytes;
  const VecU invalid = put_codes(panel, 0, panel.code_words(), [&](int64_t r, int64_t w) {
    return load_bytes(codes + r * args.row_stride + 4 * w, code_bytes - 4 * w,
                      Panel<Format>::kInt4 ? 0x88 : 0);
  });
  rows_to_lines(
      panel, panel.scale_words(),
      [&](int64_t r, int64_t w) {
        return load_bytes(scales + r * scale_bytes + 4 * w, scale_bytes - 4 * w, 0);
      },
      [&](int64_t w, int64_t o, VecU lanes) { panel.set(panel.scales(w), o, lanes); });
  if (Panel<Format>::kInt4 && depth % 2 == 1)  // half of the last byte is no weight
    for (int64_t o = panel.begin; o < panel.end; ++o) {
      uint32_t& word = panel.codes(depth / 8)[o];
      const int64_t shift = depth % 4 * 8 + depth / 4 % 2 * 4;
      word = (word & ~(15u << shift)) | 8u << shift;
    }
  uint32_t any = 0;
  for (int i = 0; i < kLanes; ++i) any |= invalid[i];
  return any == 0;
}

// bfloat16 whose columns lie in one piece: a line is two of them.
void set_columns(const Panel<BFloat16Format>& panel, int64_t row, const StoredRowsArgs& args) {
  const auto load = [&](int64_t k, int64_t output) {
    VecU lanes = {};
    if (k >= panel.depth) return lanes;
    const char* from = args.codes + k * args.col_stride + 2 * (row + output - panel.begin);
    if (panel.has(output) && panel.has(output + kLanes - 1))
      return load_half(reinterpret_cast<const uint16_t*>(from));
    for (int i = 0; i < kLanes; ++i)
      if (panel.has(output + i)) {
        uint16_t bits;
        __builtin_memcpy(&bits, from + 2 * i, sizeof(bits));
        lanes[i] = bits;
      }
    return lanes;
  };
  for (int64_t w = 0; w < panel.code_words(); ++w)
    for (int64_t output = 0; output < kPanelOutputs; output += kLanes)
      panel.set(panel.codes(w), output, load(2 * w, output) | load(2 * w + 1, output) << 16);
}

template <class Format>
void get_panel(const Panel<Format>& panel, int64_t row, const StoredRowsArgs& args) {
  const auto get = [&](int64_t bytes, int64_t stride, char* to, int64_t words, auto lanes) {
    lines_to_rows(panel, words, lanes, [&](int64_t r, int64_t w, VecU found) {
      __builtin_memcpy(to + (row + r) * stride + 4 * w, &found,
                       max(min(bytes - 4 * w, kVecBytes), 0));
    });
  };
  get(stored_code_bytes(Format::kDType, panel.depth), args.row_stride, args.codes,
      panel.code_words(), [&](int64_t w, int64_t output) {
        const VecU lanes = load_words(panel.codes(w) + output);
        if constexpr (Panel<Format>::kInt8) return lanes ^ 0x80808080u;
        if constexpr (Panel<Format>::kInt4) return swap_bytes(swap_halves(lanes));
        return lanes;
      });
  const int64_t scale_bytes = stored_scale_bytes(Format::kDType, panel.depth);
  get(scale_bytes, scale_bytes, args.scales, panel.scale_words(),
      [&](int64_t w, int64_t output) { return load_words(panel.scales(w) + output); });
}

// 2 * kLanes floats, rounded; what follows the first `count` is zero.
LLMCORE_INLINE VecU round_pairs(const float* from, int64_t count) {
  uint16_t halves[2 * kLanes];
  store_half(halves, narrow_bfloat16(load_up_to(from, count)));
  store_half(halves + kLanes, narrow_bfloat16(load_up_to(from + kLanes, count - kLanes)));
  VecU words;
  __builtin_memcpy(&words, halves, sizeof(words));
  return words;
}

void pack_panel(const Panel<BFloat16Format>& panel, const float* rows) {
  put_codes(panel, 0, panel.code_words(), [&](int64_t r, int64_t w) {
    return round_pairs(rows + r * panel.depth + 2 * w, panel.depth - 2 * w);
  });
}

void pack_panel(const Panel<Int8Format>& panel, const float* rows) {
  Rounding rounding[kPanelOutputs];
  for (int64_t r = 0; r < panel.end - panel.begin; ++r) {
    rounding[r] = int8_rounding(rows + r * panel.depth, panel.depth);
    panel.scales(0)[panel.begin + r] = __builtin_bit_cast(uint32_t, rounding[r].scale);
  }
  put_codes(panel, 0, panel.code_words(), [&](int64_t r, int64_t w) {
    return int8_words(rows + r * panel.depth + 4 * w, panel.depth - 4 * w, rounding[r].inverse);
  });
}

// A chunk of all rows is rounded to what files hold, then moved.
void pack_panel(const Panel<Int4Format>& panel, const float* rows) {
  constexpr int64_t kWords = kChunk / 8;
  for (int64_t chunk = 0; chunk * kChunk < panel.depth; ++chunk) {
    const int64_t left = panel.depth - chunk * kChunk;
    alignas(64) int8_t codes[kPanelOutputs][kChunk];
    for (int64_t r = 0; r < panel.end - panel.begin; ++r) {
      const float* from = rows + r * panel.depth + chunk * kChunk;
      int8_t wide[kChunk];
      const BFloat16 first = int4_group(from, left, wide);
      const BFloat16 second = int4_group(from + kInt4Group, left - kInt4Group, wide + kInt4Group);
      for (int64_t i = 0; i < kChunk / 2; ++i)
        codes[r][i] = static_cast<int8_t>((wide[2 * i] + 8) | (wide[2 * i + 1] + 8) << 4);
      panel.scales(chunk)[panel.begin + r] = first.bits | static_cast<uint32_t>(second.bits) << 16;
    }
    put_codes(panel, chunk * kWords, kWords, [&](int64_t r, int64_t w) {
      return load_bytes(reinterpret_cast<const char*>(codes[r]) + 4 * w, 4 * (kWords - w), 0);
    });
  }
}

template <class F>
auto with_format(DType dtype, F f) {
  if (dtype == DType::kPackedBFloat16) return f(BFloat16Format{});
  if (dtype == DType::kPackedInt8) return f(Int8Format{});
  return f(Int4Format{});
}

// f(panel, row) on all threads for the panels of `count` outputs; `row` is the panel's first.
template <class F>
void for_each_panel(const PackedRows& rows, int64_t count, F f) {
  with_format(rows.packed.dtype, [&]<class Format>(Format) {
    const int64_t first = rows.first / kPanelOutputs, end = rows.first + count;
    const int64_t depth = rows.packed.dim(1), bytes = panel_bytes(Format::kDType, depth);
    parallel_for(packed_panels(end) - first, [&](int64_t i, int) {
      const int64_t origin = (first + i) * kPanelOutputs;
      const Panel<Format> panel{
          .words = reinterpret_cast<uint32_t*>(rows.packed.as<char>() + (first + i) * bytes),
          .depth = depth,
          .begin = max(rows.first - origin, 0),
          .end = min(end - origin, kPanelOutputs)};
      f(panel, origin + panel.begin - rows.first);
      end_streaming();
    });
  });
}

void pack(const PackArgs& args) {
  for_each_panel(args.to, args.weight.dim(0), [&](const auto& panel, int64_t row) {
    pack_panel(panel, args.weight.f32() + row * panel.depth);
  });
}

void get_stored(const StoredRowsArgs& args) {
  for_each_panel(args.of, args.rows,
                 [&](const auto& panel, int64_t row) { get_panel(panel, row, args); });
}

bool set_stored(const StoredRowsArgs& args) {
  bool valid = true;
  for_each_panel(args.of, args.rows, [&]<class Format>(const Panel<Format>& panel, int64_t row) {
    if constexpr (Format::kDType == DType::kPackedBFloat16)
      if (args.row_stride == 0) return set_columns(panel, row, args);
    if (!set_panel(panel, row, args)) __atomic_store_n(&valid, false, __ATOMIC_RELAXED);
  });
  return valid;
}

// One output's place in a panel.
struct Lane {
  const uint32_t* words;
  int64_t depth;
  DType format;

  Lane(const Tensor& packed, int64_t output)
      : words(reinterpret_cast<const uint32_t*>(packed.as<char>() +
                                                output / kPanelOutputs *
                                                    panel_bytes(packed.dtype, packed.dim(1))) +
              output % kPanelOutputs),
        depth(packed.dim(1)),
        format(packed.dtype) {}

  uint32_t line(int64_t index) const { return words[index * kPanelOutputs]; }
  float bfloat16(int64_t k) const {
    return to_float(BFloat16{static_cast<uint16_t>(line(k / 2) >> (k % 2 * 16))});
  }
  float int8(int64_t k) const {
    return static_cast<float>(line(k / 4) >> (k % 4 * 8) & 255u) - 128.0f;
  }
  float int4(int64_t k) const {
    const int64_t chunk = k / kChunk, i = k % kChunk;
    return static_cast<float>(line(9 * chunk + i / 8) >> (i % 4 * 8 + i / 4 % 2 * 4) & 15u) - 8.0f;
  }
  float int4_scale(int64_t k) const {
    const uint32_t both = line(9 * (k / kChunk) + 8);
    return to_float(BFloat16{static_cast<uint16_t>(both >> (k / kInt4Group % 2 * 16))});
  }

  void unpack(float* row) const {
    if (format == DType::kPackedBFloat16)
      for (int64_t k = 0; k < depth; ++k) row[k] = bfloat16(k);
    else if (format == DType::kPackedInt8)
      for (int64_t k = 0; k < depth; ++k)
        row[k] = int8(k) * __builtin_bit_cast(float, line(ceil_div(depth, 4)));
    else
      for (int64_t k = 0; k < depth; ++k) row[k] = int4(k) * int4_scale(k);
  }
};

void unpack_rows(const Context&, const UnpackRowsArgs& args) {
  const int64_t depth = args.packed.dim(1);
  parallel_for(args.rows.numel(), [&](int64_t r, int) {
    Lane(args.packed, args.rows.as<int32_t>()[r]).unpack(args.out.f32() + r * depth);
  });
}

// ---- The product

// Where strips keep what, for depth K. Whole vectors are written: each part ends with room for one.
template <class Format>
struct StripLayout {
  static_assert(Format::kRows <= kLanes);
  int64_t words, groups, starts, scales, bytes;

  explicit StripLayout(int64_t depth) {
    words = Format::kDType == DType::kPackedBFloat16 ? ceil_div(depth, 2)
            : Format::kDType == DType::kPackedInt8   ? ceil_div(depth, 4)
                                                     : ceil_div(depth, kChunk) * kChunk / 4;
    groups = Format::kDType == DType::kPackedInt4 ? ceil_div(depth, kChunk) * 2 : 1;
    const auto space = [](int64_t lines, int64_t size) {
      return round_up((lines * Format::kRows + kLanes) * size, 64);
    };
    starts = space(words, sizeof(DotWord));
    scales = starts + space(groups, sizeof(int32_t));
    bytes = scales + space(1, sizeof(float));
  }

  Strip at(char* scratch, int64_t strip) const {
    char* from = scratch + strip * bytes;
    return {.words = reinterpret_cast<DotWord*>(from),
            .starts = reinterpret_cast<int32_t*>(from + starts),
            .scales = reinterpret_cast<float*>(from + scales)};
  }
};

// x [valid, K] as a strip of `rows` rows; what those beyond hold is multiplied and dropped.
template <class Format>
void fill_strip(const Strip& strip, const StripLayout<Format>& layout, int64_t rows,
                const Tensor& x) {
  const int64_t valid = x.dim(0), depth = x.dim(1);
  if constexpr (Format::kDType == DType::kPackedBFloat16) {
    copy_bfloat16({x.f32(), depth, true}, 0, valid, valid, 0, depth, strip.words, rows);
  } else {
    constexpr bool kInt4 = Format::kDType == DType::kPackedInt4;
    const DotLanes ones = int8_lanes(0x01010101u - VecU{});
    float inverse[kLanes] = {};
    for (int64_t r = 0; r < valid; ++r) {
      const Rounding rounding = int8_rounding(x.f32() + r * depth, depth);
      strip.scales[r] = rounding.scale;
      inverse[r] = rounding.inverse;
    }
    VecI sum = {};  // of each row's integers
    const auto start = [&](int64_t group) {
      const VecI from = -(sum << (kInt4 ? 3 : 7));
      __builtin_memcpy(strip.starts + group * rows, &from, sizeof(from));
      sum = VecI{};
    };
    VecU words[kLanes] = {};
    for (int64_t w = 0; w < layout.words; w += kLanes) {
      const auto round = [&](int64_t left) {
        for (int64_t r = 0; r < valid; ++r)
          words[r] = int8_words(x.f32() + r * depth + 4 * w, left, inverse[r]);
      };
      const int64_t left = depth - 4 * w, count = min(layout.words - w, kLanes);
      if (left >= 4 * kLanes)
        round(4 * kLanes);
      else
        round(left);
      const auto is_last = [&](int64_t i) { return kInt4 && (w + i) % 8 == 7; };
      if (rows == 1) {
        const DotLanes lanes = signed_lanes(words[0]);
        store_words(strip.words + w, lanes);
        const VecI sums = dot_int8(VecI{}, ones, lanes);
        for (int64_t i = 0; i < count; ++i) {
          sum[0] += sums[i];
          if (is_last(i)) start((w + i) / 8);
        }
        continue;
      }
      Vec block[kLanes];
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) block[r] = as_floats(words[r]);
      transpose(block);
      for (int64_t i = 0; i < count; ++i) {
        const DotLanes lanes = signed_lanes(as_bits(block[i]));
        store_words(strip.words + (w + i) * rows, lanes);
        sum = dot_int8(sum, ones, lanes);
        if (is_last(i)) start((w + i) / 8);
      }
    }
    if (!kInt4) start(0);
  }
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

int64_t scratch_bytes(const MatmulArgs& args) {
  return with_format(args.b.dtype, [&]<class Format>(Format) -> int64_t {
    return ceil_div(args.c.dim(0), Format::kRows) * StripLayout<Format>(args.a.dim(1)).bytes;
  });
}

void matmul(const Context&, const MatmulArgs& args) {
  with_format(args.b.dtype, [&]<class Format>(Format) { multiply<Format>(args); });
}

}  // namespace

extern const PackedKernels packed_kernels;
const PackedKernels packed_kernels = {.pack = pack,
                                      .get_stored = get_stored,
                                      .set_stored = set_stored,
                                      .unpack_rows = unpack_rows,
                                      .scratch_bytes = scratch_bytes,
                                      .matmul = matmul};

}  // namespace llmcore::LLMCORE_ISA
