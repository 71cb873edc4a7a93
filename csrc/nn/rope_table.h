// Rotary tables: the angles of every position, with the ways to stretch them to longer contexts.
#pragma once

#include "core/buffer.h"
#include "nn/config.h"

namespace llmcore {

struct RopeTable {
  RopeTable() = default;
  explicit RopeTable(const Config& config, Device device);

  Tensor cos, sin;  // [max_positions, R/2]; empty without rotary positions

 private:
  Buffer storage_;
};

}  // namespace llmcore
