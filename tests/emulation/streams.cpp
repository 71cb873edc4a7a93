// Queues, and the streams and events that are seen of them.
#include "streams.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <optional>

#include "device_memory.h"
#include "settings.h"

struct CUstream_st {
  std::shared_ptr<emulation::Queue> queue;
};

struct CUevent_st {
  bool timed;
  // The last record: where in which queue, and when it ran; or in which graph, after what.
  std::shared_ptr<emulation::Queue> queue{};
  uint64_t position = 0;
  std::shared_ptr<double> milliseconds{};
  std::shared_ptr<emulation::Capture> capture{};
  std::vector<int> after{};
};

namespace emulation {
namespace {

constexpr size_t kMaxQueued = 4096;

struct State {
  std::recursive_mutex mutex;
  std::shared_ptr<Queue> standard = std::make_shared<Queue>();
  std::vector<std::shared_ptr<Queue>> queues{standard};

  State() { std::atexit(drain_all); }
};

// Never destroyed: others may free what they hold at the very end.
State& state() {
  static State& state = *new State;
  return state;
}

void step(Queue& queue) {
  const Work work = std::move(queue.work.front());
  queue.work.pop_front();
  ++queue.done;
  work();
}

void advance(Queue& queue, uint64_t until) {
  if (queue.done >= until) return;
  const Access open;
  while (queue.done < until) step(queue);
}

// Steps of any queue, until there is none or `enough()`.
template <class Enough>
void run_any(Enough enough) {
  std::vector<Queue*> waiting;
  std::optional<Access> open;
  while (!enough()) {
    waiting.clear();
    for (const auto& queue : state().queues)
      if (!queue->work.empty()) waiting.push_back(queue.get());
    if (waiting.empty()) return;
    if (!open) open.emplace();
    step(*waiting[choose(static_cast<int>(waiting.size()))]);
  }
}

void push(Queue& queue, Work work) {
  queue.work.push_back(std::move(work));
  ++queue.queued;
  if (queue.work.size() > kMaxQueued) advance(queue, queue.done + 1);
}

void push_wait(Queue& queue, const std::shared_ptr<Queue>& other, uint64_t position) {
  if (other->done < position) push(queue, [other, position] { advance(*other, position); });
}

// The default stream and the blocking ones wait for each other.
void push_implicit_waits(Queue& queue) {
  const auto& standard = state().standard;
  if (&queue != standard.get()) {
    if (queue.blocking) push_wait(queue, standard, standard->queued);
    return;
  }
  for (const auto& other : state().queues)
    if (other != standard && other->blocking) push_wait(queue, other, other->queued);
}

double now() {
  const auto time = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double, std::milli>(time).count();
}

cudaError_t wait_captured(Queue& queue, const CUevent_st& event) {
  if (queue.capture == nullptr) {  // forks
    queue.capture = event.capture;
    queue.capture->members.push_back(&queue);
    queue.last.clear();
  } else if (queue.capture != event.capture) {
    queue.capture->valid = false;
    return cudaErrorStreamCaptureMerge;
  }
  for (const int node : event.after)
    if (std::ranges::find(queue.last, node) == queue.last.end()) queue.last.push_back(node);
  return cudaSuccess;
}

}  // namespace

Lock lock() {
  if (is_forked()) fail("this process was forked from one that uses the GPU");
  return Lock(state().mutex);
}

std::shared_ptr<Queue> queue_of(cudaStream_t stream) {
  return stream == nullptr ? state().standard : stream->queue;
}

cudaError_t outcome() {
  return remember(is_lost() ? cudaErrorIllegalAddress : cudaSuccess);
}

cudaError_t enqueue(cudaStream_t stream, Work work) {
  if (is_lost()) return cudaErrorIllegalAddress;
  Queue& queue = *queue_of(stream);
  queue.joined = {};
  if (queue.capture != nullptr) {
    if (!queue.capture->valid) return cudaErrorStreamCaptureInvalidated;
    Nodes& nodes = queue.capture->nodes;
    nodes.push_back({std::move(work), queue.last});
    queue.last = {static_cast<int>(nodes.size()) - 1};
    return cudaSuccess;
  }
  if (stream == nullptr)
    for (const auto& other : state().queues)
      if (other->blocking && other->capture != nullptr) {
        other->capture->valid = false;
        return cudaErrorStreamCaptureImplicit;
      }
  push_implicit_waits(queue);
  push(queue, std::move(work));
  if (is_eager()) advance(queue, queue.queued);
  return cudaSuccess;
}

void drain(Queue& queue, uint64_t until) {
  run_any([&] {
    if (choose(2) == 0) advance(queue, until);  // forward: nobody else's
    return queue.done >= until;
  });
}

void drain_all() {
  run_any([] { return false; });
  auto& queues = state().queues;  // those of streams that were destroyed go
  std::erase_if(queues, [](const auto& queue) {
    return queue.use_count() == 1 && queue->capture == nullptr;
  });
}

cudaError_t refuse_capture(const Queue* queue, bool whole_device) {
  bool refused = false;
  for (const auto& other : state().queues) {
    if (other->capture == nullptr) continue;
    const cudaStreamCaptureMode mode = other->capture->mode;
    const bool ours = other->capture->thread == std::this_thread::get_id();
    const bool forbids =
        mode == cudaStreamCaptureModeGlobal || (mode == cudaStreamCaptureModeThreadLocal && ours);
    const bool touched = queue == nullptr ? forbids || whole_device : queue == other.get();
    if (touched) other->capture->valid = false;
    refused |= touched;
  }
  return refused ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}

}  // namespace emulation

using namespace emulation;

// --------------------------------------------------------------------------------------- streams

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  return cudaStreamCreateWithFlags(stream, cudaStreamDefault);
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int) {
  return cudaStreamCreateWithFlags(stream, flags);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  const Lock held = lock();
  if (flags > cudaStreamNonBlocking) return remember(cudaErrorInvalidValue);
  auto queue = std::make_shared<Queue>();
  queue->blocking = flags == cudaStreamDefault;
  state().queues.push_back(queue);
  *stream = new CUstream_st{std::move(queue)};
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const Lock held = lock();
  if (stream == nullptr) return remember(cudaErrorInvalidResourceHandle);
  delete stream;  // what is queued still runs
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const Lock held = lock();
  const auto queue = queue_of(stream);
  if (const cudaError_t error = refuse_capture(queue.get())) return remember(error);
  if (stream == nullptr) push_implicit_waits(*queue);
  drain(*queue, queue->queued);
  return outcome();
}

cudaError_t cudaDeviceSynchronize() {
  const Lock held = lock();
  if (const cudaError_t error = refuse_capture(nullptr, true)) return remember(error);
  drain_all();
  return outcome();
}

// Asking moves the work on, or who asks until it is done would never end.
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  const Lock held = lock();
  const auto queue = queue_of(stream);
  if (const cudaError_t error = refuse_capture(queue.get())) return remember(error);
  if (queue->work.empty()) return cudaSuccess;
  advance(*queue, queue->done + 1);
  return cudaErrorNotReady;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const Lock held = lock();
  if (event == nullptr) return remember(cudaErrorInvalidResourceHandle);
  const auto queue = queue_of(stream);
  queue->joined = std::this_thread::get_id();
  if (event->capture != nullptr) return remember(wait_captured(*queue, *event));
  if (queue->capture != nullptr && event->queue != nullptr) {
    queue->capture->valid = false;
    return remember(cudaErrorStreamCaptureIsolation);
  }
  if (event->queue != nullptr) push_wait(*queue, event->queue, event->position);
  return cudaSuccess;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, void (*function)(void*), void* data) {
  const Lock held = lock();
  return remember(enqueue(stream, [=] { function(data); }));
}

// ---------------------------------------------------------------------------------------- events

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return cudaEventCreateWithFlags(event, cudaEventDefault);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  const Lock held = lock();
  *event = new CUevent_st{.timed = (flags & cudaEventDisableTiming) == 0};
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  const Lock held = lock();
  if (event == nullptr) return remember(cudaErrorInvalidResourceHandle);
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const Lock held = lock();
  if (event == nullptr) return remember(cudaErrorInvalidResourceHandle);
  const auto queue = queue_of(stream);
  *event = {.timed = event->timed};
  if (queue->capture != nullptr) {
    event->capture = queue->capture;
    event->after = queue->last;
    return cudaSuccess;
  }
  event->milliseconds = std::make_shared<double>(0.0);
  const std::thread::id joined = queue->joined;
  const auto error = enqueue(stream, [at = event->milliseconds] { *at = now(); });
  queue->joined = joined;
  event->queue = queue;
  event->position = queue->queued;
  return remember(error);
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const Lock held = lock();
  if (event == nullptr) return remember(cudaErrorInvalidResourceHandle);
  if (event->capture != nullptr) {
    event->capture->valid = false;
    return remember(cudaErrorCapturedEvent);
  }
  if (event->queue != nullptr) drain(*event->queue, event->position);
  return outcome();
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  const Lock held = lock();
  if (event == nullptr) return remember(cudaErrorInvalidResourceHandle);
  if (event->capture != nullptr) {
    event->capture->valid = false;
    return remember(cudaErrorCapturedEvent);
  }
  if (event->queue == nullptr || event->queue->done >= event->position) return cudaSuccess;
  advance(*event->queue, event->queue->done + 1);
  return cudaErrorNotReady;
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  const Lock held = lock();
  for (const cudaEvent_t event : {start, end}) {
    if (event == nullptr || !event->timed || event->queue == nullptr)
      return remember(cudaErrorInvalidResourceHandle);
    if (event->queue->done < event->position) return cudaErrorNotReady;
  }
  *milliseconds = static_cast<float>(*end->milliseconds - *start->milliseconds);
  return cudaSuccess;
}

// --------------------------------------------------------------------------------------- capture

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  const Lock held = lock();
  const auto queue = queue_of(stream);
  if (stream == nullptr) return remember(cudaErrorStreamCaptureUnsupported);
  if (queue->capture != nullptr) return remember(cudaErrorInvalidValue);
  queue->capture = std::make_shared<Capture>();
  queue->capture->origin = queue.get();
  queue->capture->members = {queue.get()};
  queue->capture->mode = mode;
  queue->capture->thread = std::this_thread::get_id();
  queue->last.clear();
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  const Lock held = lock();
  const auto& capture = queue_of(stream)->capture;
  *status = capture == nullptr ? cudaStreamCaptureStatusNone
            : capture->valid   ? cudaStreamCaptureStatusActive
                               : cudaStreamCaptureStatusInvalidated;
  return cudaSuccess;
}
