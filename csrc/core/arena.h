// Arena: the memory of a step, two stacks in one reserved range of addresses.
//
// keep grows from the bottom: what backward needs, last in, first out. scratch grows from the top,
// released by scope. Address space is reserved once and pages are touched as they are first used,
// so nothing ever moves: the first step grows the arena, later ones find the same addresses again.
//
// On a GPU there is a third stack, for what the CPU writes and a pass reads (core/inputs.h); it is
// released with keep.
#pragma once

#include <cstdint>
#include <optional>

#include "core/buffer.h"
#include "core/inputs.h"
#include "core/tensor.h"

namespace llmcore {

class Arena {
 public:
  // Reserves addresses for as much memory as this process may use or the GPU has, or, to plan, for
  // more than any has; throws OutOfMemory.
  explicit Arena(Device device = {}, Backing backing = Backing::kMemory);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // 64-byte aligned, contents undefined. Throws OutOfMemory where the two stacks would meet.
  void* keep_bytes(int64_t bytes);
  void* scratch_bytes(int64_t bytes);

  template <class... Sizes>
  Tensor keep(DType dtype, Sizes... sizes) {
    Tensor tensor = tensor_view(nullptr, dtype, sizes...);
    tensor.device = device_;
    tensor.data = keep_bytes(tensor.nbytes());
    return tensor;
  }
  template <class... Sizes>
  Tensor scratch(DType dtype, Sizes... sizes) {
    Tensor tensor = tensor_view(nullptr, dtype, sizes...);
    tensor.device = device_;
    tensor.data = scratch_bytes(tensor.nbytes());
    return tensor;
  }

  // Released with keep. The CPU writes host<T>(), then upload() before kernels read the tensor.
  template <class... Sizes>
  Tensor input(DType dtype, Sizes... sizes) {
    Tensor tensor = tensor_view(nullptr, dtype, sizes...);
    tensor.device = device_;
    take_input(tensor);
    return tensor;
  }
  void upload(Queue* queue) {
    if (inputs_) inputs_->upload(queue);
  }

  // Releases everything of one end that was taken after the mark.
  struct KeepMark {
    int64_t keep, inputs;
  };
  KeepMark keep_mark() const { return {keep_, inputs_ ? inputs_->mark() : 0}; }
  void release_keep(KeepMark mark);
  int64_t scratch_mark() const { return scratch_; }
  void release_scratch(int64_t mark);

  // Between the two calls scratch is taken and released; then all of it is in use again, until a
  // scope around both ends. For work that is still going on then (core/beside.h).
  void watch_scratch() { highest_scratch_ = scratch_; }
  void hold_scratch() { scratch_ = highest_scratch_; }

  // Bytes in use now and at most, both ends together.
  int64_t used_bytes() const { return keep_ + scratch_; }
  int64_t peak_bytes() const { return peak_keep_ + peak_scratch_; }
  // What inputs take of a GPU's memory besides.
  int64_t input_bytes() const { return inputs_ ? inputs_->bytes() : 0; }

  // Gives touched memory back; the stacks must be empty, and on a GPU its queue have come to an
  // end.
  void trim();
  // How often that has been done: what was captured before must not run again.
  int64_t trims() const { return trims_; }

 private:
  void take(int64_t& end, int64_t& peak, int64_t bytes);
  void take_input(Tensor& tensor);
  char* hand_out(char* data, int64_t bytes) const;
  void release(char* data, int64_t bytes) const;

  Device device_;  // addresses alone are the CPU's
  Backing backing_;
  std::optional<gpu::Range> range_;
  std::optional<Inputs> inputs_;
  char* base_ = nullptr;
  int64_t reserved_ = 0;
  int64_t keep_ = 0, scratch_ = 0, highest_scratch_ = 0;
  int64_t peak_keep_ = 0, peak_scratch_ = 0;
  int64_t trims_ = 0;
};

// Releases, at the end of a C++ scope, the scratch taken since its start.
class ScratchScope {
 public:
  explicit ScratchScope(Arena& arena) : arena_(arena), mark_(arena.scratch_mark()) {}
  ~ScratchScope() { arena_.release_scratch(mark_); }
  ScratchScope(const ScratchScope&) = delete;
  ScratchScope& operator=(const ScratchScope&) = delete;

 private:
  Arena& arena_;
  int64_t mark_;
};

// The same for keep: for passes that save nothing, such as inference.
class KeepScope {
 public:
  explicit KeepScope(Arena& arena) : arena_(arena), mark_(arena.keep_mark()) {}
  ~KeepScope() { arena_.release_keep(mark_); }
  KeepScope(const KeepScope&) = delete;
  KeepScope& operator=(const KeepScope&) = delete;

 private:
  Arena& arena_;
  Arena::KeepMark mark_;
};

}  // namespace llmcore
