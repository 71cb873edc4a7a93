// Inputs: small arrays that the CPU writes and a pass on a GPU reads, such as ids and lengths.
//
// Each is there twice, in pinned memory and on the device, so that checks read it without waiting.
// What has been written goes to the device in one copy. The first passes grow the blocks; from then
// on addresses are stable. To plan, there is one array for both, which nobody copies.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/buffer.h"
#include "core/gpu.h"

namespace llmcore {

class Inputs {
 public:
  Inputs(Device device, Backing backing) : device_(device), backing_(backing) {}
  ~Inputs();
  Inputs(const Inputs&) = delete;
  Inputs& operator=(const Inputs&) = delete;

  // The same array as the CPU and as the device sees it; 64-byte aligned.
  struct Place {
    void* host;
    void* device;
  };
  // Waits where a copy still reads what is to be written over.
  Place take(int64_t bytes);

  // Copies what was taken since the last upload.
  void upload(Queue* queue);

  // Releases all that was taken after the mark.
  int64_t mark() const { return used_; }
  void release(int64_t mark);

  // What they take of the device's memory.
  int64_t bytes() const;

 private:
  struct Block {
    char* host;
    Buffer device;
    int64_t begin, bytes;  // of all blocks' space, one after the other
  };
  void add_block(int64_t begin, int64_t bytes);
  void free_blocks();

  Device device_;
  Backing backing_;
  std::vector<Block> blocks_;
  size_t current_ = 0;     // the block that used_ lies in
  int64_t used_ = 0;       // of all blocks' space
  int64_t uploaded_ = 0;   // all before has been copied, or is about to be
  int64_t in_flight_ = 0;  // what is before may be being copied
  gpu::Event copied_;
};

}  // namespace llmcore
