// Arena: the memory of a step, two stacks in one reserved range of addresses.
//
// keep grows from the bottom: what backward needs, last in, first out. scratch grows from the top,
// released by scope. Address space is reserved once and pages are touched as they are first used,
// so nothing ever moves: the first step grows the arena, later ones find the same addresses again.
#pragma once

#include <cstdint>

#include "core/buffer.h"
#include "core/tensor.h"

namespace llmcore {

class Arena {
 public:
  // Reserves addresses for as much memory as this process may use, or, to plan, for more than any
  // has; throws OutOfMemory.
  explicit Arena(Backing backing = Backing::kMemory);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // 64-byte aligned, contents undefined. Throws OutOfMemory where the two stacks would meet.
  void* keep_bytes(int64_t bytes);
  void* scratch_bytes(int64_t bytes);

  template <class... Sizes>
  Tensor keep(DType dtype, Sizes... sizes) {
    Tensor tensor = tensor_view(nullptr, dtype, sizes...);
    tensor.data = keep_bytes(tensor.nbytes());
    return tensor;
  }
  template <class... Sizes>
  Tensor scratch(DType dtype, Sizes... sizes) {
    Tensor tensor = tensor_view(nullptr, dtype, sizes...);
    tensor.data = scratch_bytes(tensor.nbytes());
    return tensor;
  }

  // Releases everything of one end that was taken after the mark.
  int64_t keep_mark() const { return keep_; }
  void release_keep(int64_t mark);
  int64_t scratch_mark() const { return scratch_; }
  void release_scratch(int64_t mark);

  // Bytes in use now and at most, both ends together.
  int64_t used_bytes() const { return keep_ + scratch_; }
  int64_t peak_bytes() const { return peak_keep_ + peak_scratch_; }

  // Gives the touched pages back to the operating system; both stacks must be empty.
  void trim();

 private:
  void take(int64_t& end, int64_t& peak, int64_t bytes);
  char* hand_out(char* data, int64_t bytes) const;
  void release(char* data, int64_t bytes) const;

  Backing backing_;
  char* base_ = nullptr;
  int64_t reserved_ = 0;
  int64_t keep_ = 0, scratch_ = 0;
  int64_t peak_keep_ = 0, peak_scratch_ = 0;
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
  int64_t mark_;
};

}  // namespace llmcore
