// Work beside a queue, and its memory.
#include "core/beside.h"

#include "core/error.h"

namespace llmcore {

Beside::Beside(const Context& context) {
  constexpr int64_t kAlign = 256;
  auto* workspace = static_cast<char*>(context.arena->keep_bytes(gpu::kWorkspaceBytes + kAlign));
  workspace += -reinterpret_cast<intptr_t>(workspace) & (kAlign - 1);
  if (context.queue != nullptr) side_.emplace(context.queue, workspace);
}

Beside::~Beside() {
  try {
    join();
  } catch (const Error&) {  // of which the next call tells
  }
}

void Beside::run(const Context& context, const std::function<void(const Context&)>& work) {
  Context beside = context;
  beside.beside = nullptr;
  if (side_) {
    beside.queue = side_->queue();
    side_->follow();
  }
  busy_ = true;
  context.arena->watch_scratch();
  work(beside);
  context.arena->hold_scratch();
}

void Beside::join() {
  if (busy_ && side_) side_->join();
  busy_ = false;
}

}  // namespace llmcore
