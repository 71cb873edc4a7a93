// Finds work by its look, and captures it.
#include "core/captured.h"

#include <algorithm>
#include <atomic>

#include "core/queue.h"

namespace llmcore {
namespace {

std::atomic<int64_t> captures{0}, replays{0};

}  // namespace

void Look::add(const Tensor& tensor) {
  add(reinterpret_cast<int64_t>(tensor.data));
  for (int axis = 0; axis < tensor.rank; ++axis) add(tensor.shape[axis]);
}

void Captured::run(const Context& context, const Look& look,
                   const std::function<void(const Context&)>& work) {
  if (context.queue == nullptr) return work(context);
  const auto found = std::find_if(entries_.begin(), entries_.end(),
                                  [&](const Entry& entry) { return entry.look == look; });
  if (found == entries_.end()) {  // the first time, which also lets the arena grow
    if (entries_.size() == most_) {
      if (entries_.back().graph) wait(context.queue);  // it must not go while it runs
      entries_.pop_back();
    }
    entries_.emplace_front();
    entries_.front().look = look;
    try {
      return work(context);
    } catch (...) {  // which is still to come for the first time
      entries_.pop_front();
      throw;
    }
  }
  entries_.splice(entries_.begin(), entries_, found);
  gpu::Graph& graph = entries_.front().graph;
  if (!graph) {
    graph.capture(context.queue, [&](Queue* queue) {
      Context recorded = context;
      recorded.queue = queue;
      work(recorded);
    });
    ++captures;
  }
  graph.launch(context.queue);
  ++replays;
}

CapturedCounts captured_counts() {
  return {captures, replays};
}

}  // namespace llmcore
