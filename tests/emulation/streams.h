// Streams as queues of work that somebody must wait for, and the graphs that are captured of them.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "cuda_runtime.h"

namespace emulation {

using Work = std::function<void()>;

// Held by every call of the API.
using Lock = std::unique_lock<std::recursive_mutex>;
Lock lock();

// Remembers an error for cudaGetLastError, and returns it.
cudaError_t remember(cudaError_t error);

struct Node {
  Work work;
  std::vector<int> after;  // nodes that come before
};
using Nodes = std::vector<Node>;

// Runs a graph, its independent nodes in the order of set_order.
void run(const Nodes& nodes);

struct Queue;

// A graph in the making.
struct Capture {
  Nodes nodes;
  Queue* origin;
  std::vector<Queue*> members;
  cudaStreamCaptureMode mode;
  std::thread::id thread;  // which began it
  bool valid = true;
};

struct Queue {
  std::deque<Work> work;
  uint64_t queued = 0, done = 0;
  bool blocking = true;  // waits for the default stream, which waits for it
  std::shared_ptr<Capture> capture;
  std::vector<int> last;   // the nodes on which what is captured next depends
  std::thread::id joined;  // who has let it wait for an event, with no work behind that yet
};

// nullptr is the default stream.
std::shared_ptr<Queue> queue_of(cudaStream_t stream);

// Adds work to a stream, or to the graph that is captured of it.
cudaError_t enqueue(cudaStream_t stream, Work work);

// What each call returns: an error once a kernel has failed.
cudaError_t outcome();

// Runs a queue's work up to that number; others' before it, after it or never.
void drain(Queue& queue, uint64_t until);
void drain_all();

// What a call that waits or allocates must not do while a graph is captured; ends the capture. Of
// no stream: one that this thread began; of the whole device: any.
cudaError_t refuse_capture(const Queue* queue, bool whole_device = false);

}  // namespace emulation
