// The GPU of a build that knows none: no device of that type exists, so nobody comes here.
#include "core/error.h"
#include "core/gpu.h"

namespace llmcore::gpu {
namespace {

[[noreturn]] void fail() {
  throw DeviceError("this build of llmcore has no CUDA back end; use device='cpu'");
}

}  // namespace

void* allocate(int, int64_t) {
  fail();
}
void release(int, void*, int64_t) {}
int64_t free_memory(int) {
  fail();
}
void* allocate_pinned(int64_t) {
  fail();
}
void release_pinned(void*, int64_t) {}

Range::Range(int index) : index_(index) {
  fail();
}
Range::~Range() = default;
void Range::back(int64_t, int64_t) {}
void Range::trim() {}

Queue* queue_of(int) {
  fail();
}
void copy(Queue*, void*, const void*, int64_t) {}
void fill_zeros(Queue*, void*, int64_t) {}
void wait(Queue*) {}
void wait_for_device(int) {}

Graph::~Graph() = default;
void Graph::capture(Queue*, const std::function<void(Queue*)>&) {}
void Graph::launch(Queue*) const {}
void Graph::clear() {}

Side::Side(Queue* queue, void*) : queue_(queue), side_(nullptr) {
  fail();
}
Side::~Side() = default;
void Side::follow() {}
void Side::join() {}

Event::~Event() = default;
void Event::record(Queue*) {}
void Event::wait() {}
void Event::settle() noexcept {}

int64_t tune_products(bool) {
  fail();
}
std::vector<std::pair<std::string, int>> product_choices(int) {
  fail();
}

}  // namespace llmcore::gpu
