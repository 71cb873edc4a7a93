// Beside: what a GPU does at the same time as what it is asked for next, such as gradients of
// weights, which nobody waits for before the optimizer.
#pragma once

#include <functional>
#include <optional>

#include "core/context.h"
#include "core/gpu.h"

namespace llmcore {

class Beside {
 public:
  // Takes what products work in from the arena's keep end. `context` may be that of a plan, which
  // has no queue; on the CPU there is none of this.
  explicit Beside(const Context& context);
  // Joins: where a pass was broken off, as when memory runs out, the next one takes the same
  // places.
  ~Beside();
  Beside(const Beside&) = delete;
  Beside& operator=(const Beside&) = delete;

  // `work` asks the context it is given for what may begin when all that `context` was asked for so
  // far is done. Until join() nobody may change what it reads, read what it writes, or end a
  // ScratchScope that is open now and take scratch again.
  void run(const Context& context, const std::function<void(const Context&)>& work);
  void join();

 private:
  std::optional<gpu::Side> side_;
  bool busy_ = false;
};

// What follows begins when all work beside is done.
inline void join(const Context& context) {
  if (context.beside != nullptr) context.beside->join();
}

}  // namespace llmcore
