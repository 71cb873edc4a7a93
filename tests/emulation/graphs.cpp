// Graphs: what a capture recorded, checked when it ends and run as often as it is launched.
#include <algorithm>

#include "streams.h"

struct CUgraph_st {
  std::shared_ptr<const emulation::Nodes> nodes;
};

struct CUgraphExec_st {
  std::shared_ptr<const emulation::Nodes> nodes;
};

namespace emulation {
namespace {

// Whether the nodes in `last` and those before them are all there are.
bool joined(const Nodes& nodes, std::vector<int> last) {
  std::vector<bool> found(nodes.size());
  while (!last.empty()) {
    const int node = last.back();
    last.pop_back();
    if (found[node]) continue;
    found[node] = true;
    last.insert(last.end(), nodes[node].after.begin(), nodes[node].after.end());
  }
  return std::ranges::find(found, false) == found.end();
}

}  // namespace

void run(const Nodes& nodes) {
  std::vector<int> missing(nodes.size()), ready;
  for (size_t i = 0; i < nodes.size(); ++i) missing[i] = static_cast<int>(nodes[i].after.size());
  std::vector<std::vector<int>> next(nodes.size());
  for (size_t i = 0; i < nodes.size(); ++i) {
    for (const int before : nodes[i].after) next[before].push_back(static_cast<int>(i));
    if (missing[i] == 0) ready.push_back(static_cast<int>(i));
  }
  while (!ready.empty()) {
    std::ranges::sort(ready);
    const auto chosen = ready.begin() + choose(static_cast<int>(ready.size()));
    const int node = *chosen;
    ready.erase(chosen);
    nodes[node].work();
    for (const int i : next[node])
      if (--missing[i] == 0) ready.push_back(i);
  }
}

}  // namespace emulation

using namespace emulation;

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const Lock held = lock();
  *graph = nullptr;
  const auto queue = queue_of(stream);
  const auto capture = queue->capture;
  if (capture == nullptr) return remember(cudaErrorInvalidValue);
  if (capture->origin != queue.get()) {
    capture->valid = false;
    return remember(cudaErrorStreamCaptureUnmatched);
  }
  for (Queue* member : capture->members) member->capture = nullptr;
  if (!capture->valid) return remember(cudaErrorStreamCaptureInvalidated);
  if (!joined(capture->nodes, queue->last)) return remember(cudaErrorStreamCaptureUnjoined);
  *graph = new CUgraph_st{std::make_shared<Nodes>(std::move(capture->nodes))};
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  const Lock held = lock();
  if (graph == nullptr) return remember(cudaErrorInvalidValue);
  *exec = new CUgraphExec_st{graph->nodes};
  return cudaSuccess;
}

cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t) {
  return remember(exec == nullptr ? cudaErrorInvalidValue : cudaSuccess);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  const Lock held = lock();
  if (exec == nullptr) return remember(cudaErrorInvalidValue);
  return remember(enqueue(stream, [nodes = exec->nodes] { run(*nodes); }));
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}

// Nodes have no handles: only how many there are is told.
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  const Lock held = lock();
  if (graph == nullptr || nodes != nullptr) return remember(cudaErrorNotSupported);
  *count = graph->nodes->size();
  return cudaSuccess;
}
