// Attention for llmcore.ops.
#include <pybind11/stl.h>

#include <algorithm>
#include <limits>
#include <optional>

#include "bindings/exchange.h"
#include "bindings/py_tensor.h"
#include "core/error.h"
#include "ops/attention.h"
#include "ops/checks.h"

namespace llmcore::bindings {
namespace {

using Optional = std::optional<PyTensor>;

// What forward, backward and weights share: the arguments, and the tensors they point into.
struct Call {
  std::string op;
  bool rows_first;  // tensors are [B, T, H, D] rather than [B, H, T, D]
  bool bfloat16;    // products round their operands
  AttentionArgs args;
  std::vector<PyTensor> held;
};

// A tensor [B, H, T, D] (or [B, T, H, D]) of the given sizes as a HeadView.
HeadView head_view(const Call& call, const char* name, const PyTensor& tensor, const char* symbols,
                   int64_t heads, int64_t rows, int64_t width) {
  const int64_t batch = call.args.batch;
  void* data = tensor.view.data;
  if (call.rows_first) {
    check_tensor(call.op.c_str(), name, tensor.view, symbols, {batch, rows, heads, width},
                 call.args.dtype);
    return {data, rows * heads * width, heads * width, width};
  }
  check_tensor(call.op.c_str(), name, tensor.view, symbols, {batch, heads, rows, width},
               call.args.dtype);
  return {data, heads * rows * width, width, rows * width};
}

// A tensor broadcastable to [B, H, T, S] as NumPy does it: axes of size 1 get stride 0.
ScoreView score_view(const Call& call, const char* name, const Optional& tensor, DType dtype) {
  if (!tensor) return {};
  const AttentionArgs& args = call.args;
  const Tensor& view = tensor->view;
  const int64_t full[] = {args.batch, args.heads, args.queries, args.keys};
  CHECK(view.dtype == dtype, DTypeError, call.op, ": ", name, " must be ", dtype_name(dtype),
        ", got ", dtype_name(view.dtype));
  ScoreView scores{view.data, {}};
  bool fits = view.rank <= 4;
  for (int64_t stride = 1, axis = 3; fits && axis >= 4 - view.rank; --axis) {
    const int64_t size = view.shape[axis - (4 - view.rank)];
    fits = size == 1 || size == full[axis];
    scores.stride[axis] = size == 1 ? 0 : stride;
    stride *= size;
  }
  CHECK(fits, ShapeError, call.op, ": ", name, " must be broadcastable to [B, H, T, S] = [",
        full[0], ", ", full[1], ", ", full[2], ", ", full[3], "], got ", shape_string(view));
  return scores;
}

Tensor per_row(const Call& call, const char* name, const Optional& tensor) {
  if (!tensor) return {};
  check_tensor(call.op.c_str(), name, tensor->view, "[B]", {call.args.batch}, DType::kInt32);
  return tensor->view;
}

Call make_call(const std::string& op, const PyTensor& q, const PyTensor& k, const PyTensor& v,
               float scale, float softcap, bool causal, int64_t window_left, int64_t window_right,
               const Optional& bias, const Optional& mask, const Optional& kv_lengths,
               const Optional& prefix_lengths, const Optional& past, float dropout, uint64_t seed,
               uint64_t stream, bool rows_first, bool bfloat16) {
  check_one_device(op.c_str(), q, k, v, bias, mask, kv_lengths, prefix_lengths, past);
  Call call{.op = op, .rows_first = rows_first, .bfloat16 = bfloat16};
  const int row_axis = rows_first ? 1 : 2, head_axis = rows_first ? 2 : 1;
  const char* q_symbols = rows_first ? "[B, T, Hq, D]" : "[B, Hq, T, D]";
  const char* k_symbols = rows_first ? "[B, S, Hkv, D]" : "[B, Hkv, S, D]";
  const char* v_symbols = rows_first ? "[B, S, Hkv, Dv]" : "[B, Hkv, S, Dv]";
  const auto check_rank = [&](const char* name, const PyTensor& tensor, const char* symbols) {
    CHECK(tensor.view.rank == 4, ShapeError, op, ": ", name, " must have shape ", symbols, ", got ",
          shape_string(tensor.view));
  };
  check_rank("q", q, q_symbols);
  check_rank("k", k, k_symbols);
  check_rank("v", v, v_symbols);
  AttentionArgs& args = call.args;
  args = {.batch = q.view.dim(0),
          .queries = q.view.dim(row_axis),
          .keys = k.view.dim(row_axis),
          .heads = q.view.dim(head_axis),
          .kv_heads = k.view.dim(head_axis),
          .head_dim = q.view.dim(3),
          .value_dim = v.view.dim(3),
          .dtype = activation_dtype(op.c_str(), "q", op_context(q.view), q.view),
          .scale = scale,
          .softcap = softcap,
          .causal = causal,
          .window_left = window_left,
          .window_right = window_right,
          .dropout = {dropout, seed, stream}};
  args.q = head_view(call, "q", q, q_symbols, args.heads, args.queries, args.head_dim);
  args.k = head_view(call, "k", k, k_symbols, args.kv_heads, args.keys, args.head_dim);
  args.v = head_view(call, "v", v, v_symbols, args.kv_heads, args.keys, args.value_dim);
  args.bias = score_view(call, "bias", bias, DType::kFloat32);
  args.mask = score_view(call, "mask", mask, DType::kBool);
  args.kv_lengths = per_row(call, "kv_lengths", kv_lengths);
  args.prefix_lengths = per_row(call, "prefix_lengths", prefix_lengths);
  args.past = per_row(call, "past_length", past);
  call.held = {q, k, v};
  for (const Optional& tensor : {bias, mask, kv_lengths, prefix_lengths, past})
    if (tensor) call.held.push_back(*tensor);
  return call;
}

// A [B, H, T, 2]-shaped or [B, H, T, S]-shaped companion of the scores.
float* companion(const Call& call, const char* name, const PyTensor& tensor, bool by_key) {
  const AttentionArgs& args = call.args;
  if (by_key)
    check_tensor(call.op.c_str(), name, tensor.view, "[B, H, T, S]",
                 {args.batch, args.heads, args.queries, args.keys});
  else
    check_tensor(call.op.c_str(), name, tensor.view, "[B, H, T, 2]",
                 {args.batch, args.heads, args.queries, 2});
  return tensor.view.f32();
}

Context call_context(const Call& call, const PyTensor& on) {
  Context context = op_context(on.view);
  context.bfloat16 = call.bfloat16;
  return context;
}

HeadView out_view(const Call& call, const char* name, const PyTensor& tensor) {
  return head_view(call, name, tensor, call.rows_first ? "[B, T, Hq, Dv]" : "[B, Hq, T, Dv]",
                   call.args.heads, call.args.queries, call.args.value_dim);
}

void forward(const Call& call, const PyTensor& out, const Optional& softmax) {
  AttentionForwardArgs args{call.args};
  args.out = out_view(call, "out", out);
  if (softmax) args.softmax = companion(call, "softmax", *softmax, false);
  py::gil_scoped_release release;
  attention_forward(call_context(call, out), args);
}

void backward(const Call& call, const PyTensor& out, const PyTensor& softmax, const PyTensor& dout,
              const PyTensor& dq, const PyTensor& dk, const PyTensor& dv, const Optional& dbias) {
  AttentionBackwardArgs args{call.args};
  args.out = out_view(call, "out", out);
  args.dout = out_view(call, "dout", dout);
  args.softmax = companion(call, "softmax", softmax, false);
  const AttentionArgs& sizes = call.args;
  args.dq = head_view(call, "dq", dq, "like q", sizes.heads, sizes.queries, sizes.head_dim);
  args.dk = head_view(call, "dk", dk, "like k", sizes.kv_heads, sizes.keys, sizes.head_dim);
  args.dv = head_view(call, "dv", dv, "like v", sizes.kv_heads, sizes.keys, sizes.value_dim);
  args.dbias = score_view(call, "dbias", dbias, DType::kFloat32);
  py::gil_scoped_release release;
  attention_backward(call_context(call, out), args);
}

void weights(const Call& call, const PyTensor& out) {
  AttentionWeightsArgs args{call.args};
  args.weights = companion(call, "weights", out, true);
  py::gil_scoped_release release;
  attention_weights(call_context(call, out), args);
}

// Forward over keys and values that a cache keeps: those of token j of sequence b stand in its row
// rows[b, j]. What else is in the cache are NaNs.
void cached(const Call& call, const std::string& dtype, const PyTensor& rows, const PyTensor& out) {
  AttentionForwardArgs args{call.args};
  args.out = out_view(call, "out", out);
  check_tensor(call.op.c_str(), "rows", rows.view, "[B, S]", {args.batch, args.keys},
               DType::kInt32);
  const Device device = out.view.device;
  const PyTensor here = moved_to(rows, {});
  const int32_t* places = here.view.as<int32_t>();
  const int32_t last = *std::max_element(places, places + rows.view.numel());
  PyTensor storage[2];
  const auto tiles = [&](bool transposed, int64_t width) {
    KvTiles side{.dtype = dtype_from_name(dtype.c_str()),
                 .transposed = transposed,
                 .tokens = (args.keys + kTileTokens - 1) / kTileTokens * kTileTokens,
                 .heads = args.kv_heads,
                 .width = width};
    const PyTensor words = allocate({(last + 1) * side.row_words()}, DType::kFloat32, {});
    std::fill_n(words.view.f32(), words.view.numel(), std::numeric_limits<float>::quiet_NaN());
    storage[transposed] = moved_to(words, device);
    side.data = storage[transposed].view.f32();
    return side;
  };
  args.cache = {
      tiles(true, args.head_dim), tiles(false, args.value_dim), rows.view, {args.keys, 1}};
  PyTensor lengths = allocate({args.batch}, DType::kInt32, {});
  std::fill_n(lengths.view.as<int32_t>(), args.batch, static_cast<int32_t>(args.keys));
  lengths = moved_to(lengths, device);
  py::gil_scoped_release release;
  attention_append(op_context(out.view),
                   {.batch = args.batch,
                    .tokens = args.keys,
                    .k = args.k,
                    .v = args.v,
                    .kv_lengths = args.kv_lengths ? args.kv_lengths : lengths.view,
                    .cache = args.cache});
  attention_forward(op_context(out.view), args);
}

}  // namespace

void bind_attention(py::module_& module) {
  py::class_<Call>(module, "AttentionCall",
                   "The arguments of one attention, checked: what its three operations share.")
      .def(py::init(&make_call), py::kw_only(), py::arg("op"), py::arg("q"), py::arg("k"),
           py::arg("v"), py::arg("scale"), py::arg("softcap") = 0.0f, py::arg("causal") = false,
           py::arg("window_left") = -1, py::arg("window_right") = -1, py::arg("bias") = py::none(),
           py::arg("mask") = py::none(), py::arg("kv_lengths") = py::none(),
           py::arg("prefix_lengths") = py::none(), py::arg("past") = py::none(),
           py::arg("dropout") = 0.0f, py::arg("seed") = 0, py::arg("stream") = 0,
           py::arg("rows_first") = false, py::arg("bfloat16") = false);
  bind_operation(module, "attention_forward", &forward, py::arg("call"), py::kw_only(),
                 py::arg("out"), py::arg("softmax") = py::none());
  bind_operation(module, "attention_backward", &backward, py::arg("call"), py::kw_only(),
                 py::arg("out"), py::arg("softmax"), py::arg("dout"), py::arg("dq"), py::arg("dk"),
                 py::arg("dv"), py::arg("dbias") = py::none());
  bind_operation(module, "attention_cached", &cached, py::arg("call"), py::kw_only(),
                 py::arg("dtype"), py::arg("rows"), py::arg("out"));
  bind_operation(module, "attention_weights", &weights, py::arg("call"), py::kw_only(),
                 py::arg("weights"));
}

}  // namespace llmcore::bindings
