// Blocks of pinned memory and their twins.
#include "core/inputs.h"

#include <algorithm>

namespace llmcore {
namespace {

constexpr int64_t kAlign = 64, kLeast = int64_t{1} << 20;

}  // namespace

Inputs::~Inputs() {
  copied_.settle();
  free_blocks();
}

void Inputs::free_blocks() {
  if (backing_ == Backing::kMemory)
    for (const Block& block : blocks_) gpu::release_pinned(block.host, block.bytes);
  blocks_.clear();
}

void Inputs::add_block(int64_t begin, int64_t bytes) {
  const int64_t size = std::max(kLeast, (bytes + kLeast - 1) / kLeast * kLeast);
  Block block{.device = Buffer(size, backing_, device_), .begin = begin, .bytes = size};
  block.host = static_cast<char*>(backing_ == Backing::kMemory ? gpu::allocate_pinned(size)
                                                               : block.device.data());
  blocks_.push_back(std::move(block));
}

Inputs::Place Inputs::take(int64_t bytes) {
  const int64_t size = (std::max<int64_t>(bytes, 1) + kAlign - 1) / kAlign * kAlign;
  if (used_ < in_flight_) {
    copied_.wait();
    in_flight_ = 0;
  }
  if (used_ == 0 && blocks_.size() > 1) {  // what the last passes needed, in one block
    const int64_t total = blocks_.back().begin + blocks_.back().bytes;
    free_blocks();
    add_block(0, total);
  }
  if (blocks_.empty()) add_block(0, size);
  const auto end = [&] { return blocks_[current_].begin + blocks_[current_].bytes; };
  while (used_ + size > end()) {
    if (current_ + 1 == blocks_.size()) add_block(end(), size);
    used_ = end();
    ++current_;
  }
  const Block& block = blocks_[current_];
  const int64_t offset = used_ - block.begin;
  used_ += size;
  return {block.host + offset, static_cast<char*>(block.device.data()) + offset};
}

void Inputs::upload(Queue* queue) {
  if (used_ == uploaded_ || backing_ == Backing::kAddresses) return;
  for (const Block& block : blocks_) {
    const int64_t begin = std::max(uploaded_, block.begin) - block.begin;
    const int64_t end = std::min(used_ - block.begin, block.bytes);
    auto* const to = static_cast<char*>(block.device.data()) + begin;
    if (begin < end) gpu::copy(queue, to, block.host + begin, end - begin);
  }
  uploaded_ = used_;
  in_flight_ = std::max(in_flight_, used_);
  copied_.record(queue);
}

void Inputs::release(int64_t mark) {
  used_ = mark;
  uploaded_ = std::min(uploaded_, mark);
  while (current_ > 0 && mark <= blocks_[current_].begin) --current_;
}

int64_t Inputs::bytes() const {
  return blocks_.empty() ? 0 : blocks_.back().begin + blocks_.back().bytes;
}

}  // namespace llmcore
