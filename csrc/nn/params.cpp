// Registration, initial values, and the state of gradients during a backward pass.
#include "nn/params.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/error.h"
#include "core/parallel.h"
#include "core/queue.h"
#include "ops/elementwise.h"
#include "ops/matmul.h"

namespace llmcore {
namespace {

// Elements [begin, end) of a parameter, two at a time (Box and Muller 1958).
void draw_normal(float* data, int64_t begin, int64_t end, uint64_t seed, uint64_t stream,
                 float std) {
  for (int64_t i = begin; i < end; i += 4) {
    const Philox4 words = philox(seed, stream, static_cast<uint64_t>(i / 4));
    for (int64_t pair = 0; pair < 4; pair += 2) {
      const double radius = std::sqrt(-2.0 * std::log((words.lane[pair] + 1.0) * 0x1p-32));
      const double angle = 2.0 * std::numbers::pi * words.lane[pair + 1] * 0x1p-32;
      if (i + pair < end) data[i + pair] = static_cast<float>(std * radius * std::cos(angle));
      if (i + pair + 1 < end)
        data[i + pair + 1] = static_cast<float>(std * radius * std::sin(angle));
    }
  }
}

}  // namespace

int ParamStore::add(ParamInfo info) {
  info.offset = size_;
  info.size = 1;
  for (int64_t size : info.shape) info.size *= size;
  size_ += info.size;
  table_.push_back(std::move(info));
  return static_cast<int>(table_.size()) - 1;
}

void ParamStore::allocate(Backing backing) {
  backing_ = backing;
  weights_ = Buffer(size_ * static_cast<int64_t>(sizeof(float)), backing, device_);
  stale_.assign(table_.size(), 1);
}

void ParamStore::initialise(uint64_t seed) {
  if (device_.type != DeviceType::kCpu) {  // drawn where every device gets the same
    ParamStore drawn = ParamStore();
    drawn.table_ = table_;
    drawn.size_ = size_;
    drawn.allocate();
    drawn.initialise(seed);
    return take_weights(drawn);
  }
  constexpr int64_t kGrain = 1 << 16;
  for (size_t index = 0; index < table_.size(); ++index) {
    const ParamInfo& info = table_[index];
    float* data = weight(static_cast<int>(index)).f32();
    if (info.init == Init::kNormal)
      parallel_chunks(info.size, kGrain, [&](int64_t begin, int64_t end, int) {
        draw_normal(data, begin, end, seed, index, info.std);
      });
    else
      std::fill_n(data, info.size, info.init == Init::kOnes ? 1.0f : 0.0f);
  }
}

Tensor ParamStore::view(const Tensor& flat, int index, int count) const {
  const ParamInfo& first = table_[index];
  int64_t size = 0;
  for (int i = index; i < index + count; ++i) size += table_[i].size;
  if (first.shape.size() == 1) return view_from(flat, first.offset, size);
  return view_from(flat, first.offset, size / first.shape[1], first.shape[1]);
}

void ParamStore::declare_packable(int index, int count) {
  packables_.push_back({.index = index, .count = count});
}

void ParamStore::check_packable() const {
  CHECK(!packed(), ConfigError, "the model's weights are ", dtype_name(format_),
        " already; load it again to store them otherwise");
  for (const Packable& each : packables_)
    CHECK(table_[each.index].shape[1] <= kMaxPackedDepth, ConfigError, table_[each.index].name,
          " has ", table_[each.index].shape[1], " columns; matrices of at most ", kMaxPackedDepth,
          " can be packed");
}

void ParamStore::pack(const Context& context, DType format) {
  CHECK(device_.type == DeviceType::kCpu, DeviceError,
        "weights are packed on the CPU: quantize the model there, then move it");
  std::vector<Tensor> matrices;
  for (const Packable& each : packables_) matrices.push_back(weight(each.index, each.count));
  const std::vector<ParamInfo> before = table_;
  const Buffer weights = replace_weights(format);
  for (size_t i = 0; i < packables_.size(); ++i)
    pack_weight(context, {.weight = matrices[i], .to = {packables_[i].packed}});
  for (size_t i = 0; i < table_.size(); ++i)
    if (table_[i].offset >= 0)
      std::copy_n(static_cast<const float*>(weights.data()) + before[i].offset, before[i].size,
                  weight(static_cast<int>(i)).f32());
}

void ParamStore::pack_zeros(DType format) {
  replace_weights(format);
}

void ParamStore::take_weights(const ParamStore& other) {
  if (other.packed() && !packed()) pack_zeros(other.format_);
  copy_tensor(other.weights(), weights());
  for (size_t i = 0; packed() && i < packables_.size(); ++i) {
    const Tensor &from = other.packables_[i].packed, &to = packables_[i].packed;
    const int64_t bytes = packed_bytes(format_, from.dim(0), from.dim(1));
    const auto as_bytes = [bytes](const Tensor& matrix) {
      Tensor view = tensor_view(matrix.data, DType::kInt8, bytes);
      view.device = matrix.device;
      return view;
    };
    copy_tensor(as_bytes(from), as_bytes(to));
  }
}

Buffer ParamStore::replace_weights(DType format) {
  check_packable();
  int64_t bytes = 0, kept = size_;
  for (const Packable& each : packables_) {
    const Tensor matrix = view({}, each.index, each.count);
    bytes += packed_bytes(format, matrix.dim(0), matrix.dim(1));
    kept -= matrix.numel();
  }
  Buffer packed(bytes, Backing::kMemory, device_);
  Buffer weights(kept * static_cast<int64_t>(sizeof(float)), Backing::kMemory, device_);
  // All memory is there: nothing below fails half-way.
  format_ = format;
  ++version_;
  packed_ = std::move(packed);
  std::swap(weights_, weights);
  gradients_ = Buffer();
  char* next = static_cast<char*>(packed_.data());
  for (Packable& each : packables_) {
    const Tensor matrix = view({}, each.index, each.count);
    each.packed = on_device(tensor_view(next, format, matrix.dim(0), matrix.dim(1)));
    next += packed_bytes(format, matrix.dim(0), matrix.dim(1));
    for (int i = each.index; i < each.index + each.count; ++i) table_[i].offset = -1;
  }
  size_ = 0;
  for (ParamInfo& info : table_)
    if (info.offset >= 0) {
      info.offset = size_;
      size_ += info.size;
    }
  return weights;
}

PackedRows ParamStore::packed_rows(int index) const {
  for (const Packable& each : packables_) {
    if (!packed() || index < each.index || index >= each.index + each.count) continue;
    PackedRows rows{each.packed};
    for (int i = each.index; i < index; ++i) rows.first += table_[i].shape[0];
    return rows;
  }
  return {};
}

int ParamStore::find(const std::string& name) const {
  const auto found = std::find_if(table_.begin(), table_.end(),
                                  [&](const ParamInfo& info) { return info.name == name; });
  CHECK(found != table_.end(), ConfigError, "there is no parameter ", name);
  return static_cast<int>(found - table_.begin());
}

Tensor ParamStore::weight(int index, int count) const {
  if (table_[index].offset < 0) return packed_rows(index).packed;
  return view(weights(), index, count);
}

Tensor ParamStore::operand(const Context& context, int index, int count) const {
  return context.rounded_weights ? view(context.rounded_weights, index, count)
                                 : weight(index, count);
}

Tensor ParamStore::rounded(const Context& context) const {
  const Tensor rounded = context.arena->keep(DType::kBFloat16, size_);
  cast(context, {.x = weights(), .y = rounded});
  return rounded;
}

Tensor ParamStore::gradients() {
  CHECK(!packed(), ConfigError, "the model's weights are ", dtype_name(format_),
        ", for inference: they have no gradients; load it as float32 to train it");
  if (!has_gradients())
    gradients_ = Buffer(size_ * static_cast<int64_t>(sizeof(float)), backing_, device_);
  return on_device(f32_view(gradients_.data(), size_));
}

Tensor ParamStore::gradient(int index, int count) {
  return view(gradients(), index, count);
}

void ParamStore::begin_gradients() {
  gradients();  // before a pass begins, where there are none to have
  stale_.assign(table_.size(), 1);
}

bool ParamStore::first_write(int index, int count) {
  const bool stale = stale_[index] != 0;
  for (int i = index; i < index + count; ++i) stale_[i] = 0;
  return stale;
}

bool ParamStore::trainable(int index, int count) const {
  return std::any_of(table_.begin() + index, table_.begin() + index + count,
                     [](const ParamInfo& info) { return info.trainable; });
}

Tensor ParamStore::accumulating_gradient(const Context& context, int index, int count) {
  if (!trainable(index, count)) return {};
  const Tensor tensor = gradient(index, count);
  if (first_write(index, count)) fill(context, {.value = 0.0f, .y = tensor});
  return tensor;
}

void ParamStore::add_gradient(const Context& context, const Tensor& dy, const Tensor& x, int index,
                              int count) {
  if (!trainable(index, count)) return;
  matmul(context, {.a = dy,
                   .b = x,
                   .c = gradient(index, count),
                   .transpose_a = true,
                   .accumulate = !first_write(index, count)});
}

// A frozen parameter that is one matrix with a trainable one was written with it.
void ParamStore::finish_gradients(const Context& context) {
  for (int index = 0; index < static_cast<int>(table_.size()); ++index)
    if (table_[index].trainable)
      accumulating_gradient(context, index);
    else if (!stale_[index])
      fill(context, {.value = 0.0f, .y = gradient(index)});
}

void ParamStore::set_trainable(const std::string& name, bool trainable) {
  const int index = find(name);
  ParamInfo& info = table_[index];
  // What an earlier pass left there; memory that none has touched stays so.
  if (!trainable && info.trainable && has_gradients()) fill_zeros(gradient(index));
  version_ += info.trainable != trainable;
  info.trainable = trainable;
}

std::string ParamBuilder::full(const std::string& name) const {
  return prefix_.empty() ? name : prefix_ + "." + name;
}

ParamBuilder ParamBuilder::scope(const std::string& name) const {
  return ParamBuilder(store_, full(name));
}

Param ParamBuilder::matrix(const std::string& name, int64_t rows, int64_t cols, float std) const {
  return {&store_, store_.add({.name = full(name),
                               .shape = {rows, cols},
                               .init = std > 0.0f ? Init::kNormal : Init::kZeros,
                               .std = std,
                               .decay = true})};
}

Param ParamBuilder::ones(const std::string& name, int64_t size) const {
  return {&store_, store_.add({.name = full(name), .shape = {size}, .init = Init::kOnes})};
}

Param ParamBuilder::zeros(const std::string& name, int64_t size) const {
  return {&store_, store_.add({.name = full(name), .shape = {size}})};
}

}  // namespace llmcore
