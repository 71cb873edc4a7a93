// What the core asks of a GPU: memory, copies, and the order of work. Linked from gpu_cuda.cu, or
// from gpu_no_cuda.cpp in a build without CUDA, where no device gets this far.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "core/device.h"

namespace llmcore::gpu {

// Memory of device `index`, filled with zeros. Throws OutOfMemory. What is released is kept for a
// while: who next asks for as much gets the same address. Nobody who allocates here goes without
// memory for that.
void* allocate(int index, int64_t bytes);
void release(int index, void* data, int64_t bytes);
// Bytes that nobody has, in this process or another.
int64_t free_memory(int index);

// Memory of the CPU that a GPU reads and writes by itself, kept likewise; no work may use it any
// more when it is released. Throws OutOfMemory.
void* allocate_pinned(int64_t bytes);
void release_pinned(void* data, int64_t bytes);

// Addresses for all memory of a device, backed from both ends as it is needed, so that nothing ever
// moves.
class Range {
 public:
  explicit Range(int index);
  ~Range();
  Range(const Range&) = delete;
  Range& operator=(const Range&) = delete;

  char* base() const { return base_; }
  int64_t bytes() const { return bytes_; }

  // Backs [0, low) and [bytes() - high, bytes()). Throws OutOfMemory.
  void back(int64_t low, int64_t high);
  // Gives the memory back; nobody may be using it.
  void trim();

 private:
  using Piece = uint64_t;
  void map(std::vector<Piece>& pieces, int64_t offset);
  void unmap(std::vector<Piece>& pieces, bool from_top);

  int index_;
  char* base_ = nullptr;
  int64_t bytes_ = 0, piece_bytes_ = 0;
  std::vector<Piece> low_, high_;
};

// The queue of a device, one for the whole process: its work is done in order, after the call that
// asked for it has returned.
Queue* queue_of(int index);

// Either side may be the CPU's memory; it must not change before the queue has come this far.
void copy(Queue* queue, void* to, const void* from, int64_t bytes);
void fill_zeros(Queue* queue, void* data, int64_t bytes);

// Until all is done. Throws DeviceError where work has failed.
void wait(Queue* queue);
// The same, and for what others in this process have asked of the device.
void wait_for_device(int index);

// What a queue was asked for, to be asked again in one call.
class Graph {
 public:
  Graph() = default;
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  explicit operator bool() const { return executable_ != nullptr; }

  // Keeps what `work` asks of the queue it is given, which stands for `queue`; nothing is done yet.
  void capture(Queue* queue, const std::function<void(Queue*)>& work);
  void launch(Queue* queue) const;
  void clear();

 private:
  void* executable_ = nullptr;
};

// A queue beside another: their work is done at the same time, but for what follow() and join()
// order. Its matrix products work in `workspace`.
class Side {
 public:
  Side(Queue* queue, void* workspace);
  ~Side();
  Side(const Side&) = delete;
  Side& operator=(const Side&) = delete;
  Queue* queue() const { return side_; }

  // What the side is asked for next begins when all the queue was asked for so far is done; and the
  // other way round.
  void follow();
  void join();

 private:
  Queue *queue_, *side_;
};

// What matrix products may work in, 256-byte aligned.
inline constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;

// A place in a queue that can be waited for.
class Event {
 public:
  Event() = default;
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  void record(Queue* queue);
  void wait();  // nothing where it was never recorded
  // The same where nobody may throw: of a failure the next call tells.
  void settle() noexcept;

 private:
  void* event_ = nullptr;
};

// While on, algorithms of products that no file of this machine names are timed when they are next
// asked for, on random data, and the file is told. What was captured before stays as it was.
// Returns how many were timed since the last call. Throws ConfigError where there can be no file.
int64_t tune_products(bool on);
// The products that a device was asked for so far, and which of the library's best few each is.
std::vector<std::pair<std::string, int>> product_choices(int index);

}  // namespace llmcore::gpu
