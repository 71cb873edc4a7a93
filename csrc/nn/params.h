// ParamStore: all parameters in one flat buffer, their gradients in another of the same layout.
//
// Layers register what they use through a scoped ParamBuilder, so names, shapes and initial values
// stand beside the layer; the order of registration is the order in memory. Zero-grad, AdamW, the
// gradient norm and a checkpoint then work on one array.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/buffer.h"
#include "core/context.h"
#include "core/tensor.h"
#include "ops/packed.h"

namespace llmcore {

enum class Init { kZeros, kOnes, kNormal };

struct ParamInfo {
  std::string name;
  std::vector<int64_t> shape;
  int64_t offset = 0;  // elements from the start of the flat buffers; -1 once packed
  int64_t size = 0;
  Init init = Init::kZeros;
  float std = 0.0f;
  bool decay = false;     // weight decay applies: matrices, not biases or norms
  bool trainable = true;  // a frozen one has a gradient of zero and is never updated
};

class ParamStore {
 public:
  explicit ParamStore(Device device = {}) : device_(device) {}
  Device device() const { return device_; }

  // Registration, until allocate(); the gradients take what the weights do.
  int add(ParamInfo info);
  void allocate(Backing backing = Backing::kMemory);

  // Draws initial values: parameter i from Philox stream i of `seed`.
  void initialise(uint64_t seed);

  const std::vector<ParamInfo>& table() const { return table_; }
  int64_t size() const { return size_; }
  int64_t weight_bytes() const { return weights_.bytes(); }
  Tensor weights() const { return on_device(f32_view(weights_.data(), size_)); }
  Tensor gradients();
  bool has_gradients() const { return gradients_.data() != nullptr; }

  // Whether any of `count` parameters is.
  bool trainable(int index, int count = 1) const;
  // Changes with what is trainable and with where weights are: what was captured before is no
  // longer the same.
  int64_t version() const { return version_; }
  // Throws ConfigError for a name that is not in the table.
  void set_trainable(const std::string& name, bool trainable);

  // Matrices that layers only multiply with, or look rows up in, may be packed (ops/packed.h).
  void declare_packable(int index, int count = 1);
  // From now on the model is for inference: these matrices are kept in `format` alone, rounded from
  // their weights, or zero until they are set. Throws ConfigError where that has been done before.
  void pack(const Context& context, DType format);
  void pack_zeros(DType format);
  // Those of a store of the same layout, on any device, packed as they are there.
  void take_weights(const ParamStore& other);
  bool packed() const { return format_ != DType::kFloat32; }
  DType format() const { return format_; }
  // Where the parameter's rows are once packed; no tensor for others.
  PackedRows packed_rows(int index) const;
  // Throws ConfigError for a name that is not in the table.
  int find(const std::string& name) const;

  // `count` consecutive parameters from `index` on, seen as one tensor [rows, cols] (or [rows]).
  Tensor weight(int index, int count = 1) const;
  // As products read it: of the context's rounded weights, where it has some.
  Tensor operand(const Context& context, int index, int count = 1) const;
  // All of them rounded to bfloat16, in the arena's keep end.
  Tensor rounded(const Context& context) const;
  Tensor gradient(int index, int count = 1);

  // A backward pass starts with stale gradients: whoever writes one first overwrites it, later
  // writers add, and finish_gradients() zeroes those nobody wrote.
  void begin_gradients();
  bool first_write(int index, int count = 1);
  // The gradient, zeroed if it is still stale: for kernels that can only add. Empty, and none to
  // compute, where all of the parameters are frozen.
  Tensor accumulating_gradient(const Context& context, int index, int count = 1);
  // gradient += dy^T x, of a matrix [out, in] that is not frozen whole.
  void add_gradient(const Context& context, const Tensor& dy, const Tensor& x, int index,
                    int count = 1);
  void finish_gradients(const Context& context);

 private:
  // A matrix that may be packed: `count` parameters from `index` on.
  struct Packable {
    int index, count;
    Tensor packed;
  };

  Tensor view(const Tensor& flat, int index, int count) const;
  Tensor on_device(Tensor tensor) const {
    tensor.device = device_;
    return tensor;
  }
  void check_packable() const;
  // Packed matrices and vectors of zeros take the place of the weights, which are returned.
  Buffer replace_weights(DType format);

  Device device_;
  std::vector<Packable> packables_;
  DType format_ = DType::kFloat32;
  std::vector<ParamInfo> table_;
  std::vector<char> stale_;
  Backing backing_ = Backing::kMemory;
  int64_t size_ = 0, version_ = 0;
  Buffer weights_, gradients_;
  Buffer packed_;  // the packed matrices, one after the other
};

// Several named parts, such as q, k and v, share one matrix: their outputs lie side by side.
struct LinearPart {
  std::string name;
  int64_t rows;
};

// A parameter, or consecutive ones used as one matrix, as a layer holds it.
struct Param {
  ParamStore* store = nullptr;
  int index = -1;
  int count = 1;

  explicit operator bool() const { return store != nullptr; }
  void declare_packable() const { store->declare_packable(index, count); }
  Tensor weight() const { return store == nullptr ? Tensor{} : store->weight(index, count); }
  Tensor operand(const Context& context) const { return store->operand(context, index, count); }
  Tensor accumulating_gradient(const Context& context) const {
    return store == nullptr ? Tensor{} : store->accumulating_gradient(context, index, count);
  }
  bool trainable() const { return store != nullptr && store->trainable(index, count); }
  // Empty where there is none to compute; whoever writes all of it asks first_write() whether to
  // overwrite or to add.
  Tensor gradient() const { return trainable() ? store->gradient(index, count) : Tensor{}; }
  bool first_write() const { return trainable() && store->first_write(index, count); }
  void add_gradient(const Context& context, const Tensor& dy, const Tensor& x) const {
    store->add_gradient(context, dy, x, index, count);
  }
};

class ParamBuilder {
 public:
  explicit ParamBuilder(ParamStore& store, std::string prefix = "")
      : store_(store), prefix_(std::move(prefix)) {}
  Device device() const { return store_.device(); }
  ParamBuilder scope(const std::string& name) const;

  // A weight matrix or table drawn from N(0, std) (0: zeros), a vector of ones, a vector of zeros.
  Param matrix(const std::string& name, int64_t rows, int64_t cols, float std) const;
  Param ones(const std::string& name, int64_t size) const;
  Param zeros(const std::string& name, int64_t size) const;

 private:
  std::string full(const std::string& name) const;

  ParamStore& store_;
  std::string prefix_;
};

}  // namespace llmcore
