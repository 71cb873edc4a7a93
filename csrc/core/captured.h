// Captured: work that a GPU is asked for again and again. The second time it looks the same it is
// captured as a graph, and from then on asked for in one call; the CPU just does it.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <vector>

#include "core/context.h"
#include "core/gpu.h"

namespace llmcore {

// What work looks like: addresses, sizes, and all else that decides which kernels run with what.
// What changes from one time to the next is read from inputs (core/inputs.h).
class Look {
 public:
  void add(const Tensor& tensor);
  void add(int64_t number) { numbers_.push_back(number); }
  bool operator==(const Look&) const = default;

 private:
  std::vector<int64_t> numbers_;
};

class Captured {
 public:
  // Keeps the latest so many looks apart.
  explicit Captured(size_t most) : most_(most) {}

  // `work` must not wait for the GPU, nor write inputs.
  void run(const Context& context, const Look& look,
           const std::function<void(const Context&)>& work);

 private:
  struct Entry {
    Look look;
    gpu::Graph graph;
  };
  size_t most_;
  std::list<Entry> entries_;  // the latest first
};

// How often this process has captured work, and asked again for what it had captured.
struct CapturedCounts {
  int64_t captures, replays;
};
CapturedCounts captured_counts();

}  // namespace llmcore
