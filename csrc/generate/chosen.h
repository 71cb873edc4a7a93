// Chosen: the tokens that a GPU chooses while the CPU goes on.
//
// A pass leaves its choices in memory that the CPU reads too, and their ids on the device, where
// the next pass finds them: it can be asked for before anybody has seen them. So there is room for
// the choices of two passes, which take turns.
#pragma once

#include <cstdint>
#include <vector>

#include "core/buffer.h"
#include "core/gpu.h"
#include "core/tensor.h"
#include "ops/sampling.h"

namespace llmcore {

class Chosen {
 public:
  // Of up to `most` rows a pass.
  Chosen(Device device, int64_t most);
  ~Chosen();  // waits for the passes that are to write here
  Chosen(const Chosen&) = delete;
  Chosen& operator=(const Chosen&) = delete;

  Tensor choices() const;  // int8 [2 most, sizeof(Choice)]
  Tensor ids() const;      // [2 most] int32

  // Where the choice of a row of the next pass goes, and where that of the pass before it is.
  int64_t place(int64_t row) const { return asked_ % 2 * most_ + row; }
  int64_t place_before(int64_t row) const { return (asked_ + 1) % 2 * most_ + row; }

  // The next pass, of `rows` rows, has been asked of the queue.
  void asked(Queue* queue, int64_t rows);
  // Waits for the first pass whose choices nobody has seen.
  std::vector<Choice> collect();

 private:
  Device device_;
  int64_t most_;
  Choice* choices_;
  Buffer ids_;
  gpu::Event done_[2];
  int64_t rows_[2] = {};
  int64_t asked_ = 0, collected_ = 0;
};

}  // namespace llmcore
