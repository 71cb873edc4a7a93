// Checks of attention's arguments.
#include "ops/attention.h"

#include "ops/checks.h"
#include "ops/kernels.h"

namespace llmcore {
namespace {

void check_range(const Context& context, const char* op, const char* name, const Tensor& tensor,
                 const AttentionArgs& args, int64_t most, const char* why) {
  if (!tensor) return;
  const HostInts values(context, tensor);
  for (int64_t b = 0; b < args.batch; ++b)
    CHECK(values[b] >= 0 && values[b] <= most, ShapeError, op, ": ", name, "[", b,
          "] must be in [0, ", most, "]", why, ", got ", values[b]);
}

void check_arguments(const Context& context, const char* op, const AttentionArgs& args) {
  CHECK(args.batch >= 0 && args.queries >= 0 && args.keys >= 0, ShapeError, op,
        ": B, T and S must not be negative, got ", args.batch, ", ", args.queries, " and ",
        args.keys);
  CHECK(args.heads > 0 && args.kv_heads > 0 && args.heads % args.kv_heads == 0, ShapeError, op,
        ": query heads must be a positive multiple of kv heads, got ", args.heads, " and ",
        args.kv_heads);
  CHECK(args.head_dim > 0 && args.value_dim > 0, ShapeError, op,
        ": head widths D and Dv must be positive, got ", args.head_dim, " and ", args.value_dim);
  CHECK(args.softcap >= 0.0f, ConfigError, op, ": softcap must be 0 (none) or above, got ",
        args.softcap);
  CHECK(args.dropout.p >= 0.0f && args.dropout.p < 1.0f, ConfigError, op,
        ": dropout must be in [0, 1), got ", args.dropout.p);
  check_range(context, op, "kv_lengths", args.kv_lengths, args, args.keys, ", S");
  check_range(context, op, "prefix_lengths", args.prefix_lengths, args, args.keys, ", S");
  check_range(context, op, "past_length", args.past, args, INT32_MAX, "");
}

void check_cache(const char* op, const KvCacheView& cache, int64_t tokens) {
  for (const KvTiles& tiles : {cache.k, cache.v})
    CHECK(tiles.dtype == DType::kFloat32 || tiles.dtype == DType::kBFloat16 ||
              tiles.dtype == DType::kInt8,
          DTypeError, op, ": a cache is float32, bfloat16 or int8, got ", dtype_name(tiles.dtype));
  CHECK(tokens <= cache.k.tokens && tokens <= cache.v.tokens, ShapeError, op, ": ", tokens,
        " keys are more than the cache has room for");
}

void check_no_cache(const char* op, const AttentionArgs& args) {
  CHECK(args.cache.k.data == nullptr, ConfigError, op, ": a cache must not be given");
}

void check_given(const char* op, const char* name, const void* data) {
  CHECK(data != nullptr, ShapeError, op, ": ", name, " is missing");
}

bool any_keys(const AttentionArgs& args) {
  return args.batch * args.keys > 0;
}
bool any_queries(const AttentionArgs& args) {
  return args.batch * args.queries > 0;
}

}  // namespace

void attention_forward(const Context& context, const AttentionForwardArgs& args) {
  const char* op = "attention";
  check_arguments(context, op, args);
  if (!any_queries(args)) return;
  check_given(op, "q", args.q.data);
  check_given(op, "out", args.out.data);
  if (args.cache.k.data != nullptr) {
    check_cache(op, args.cache, args.keys);
  } else if (any_keys(args)) {
    check_given(op, "k", args.k.data);
    check_given(op, "v", args.v.data);
  }
  ScratchScope scope(*context.arena);
  AttentionForwardArgs call = args;
  const AttentionKernels& kernels = *context.kernels->attention;
  call.append = args.append && args.apart && kernels.appends != nullptr && kernels.appends(args);
  if (args.append && !call.append)
    attention_append(context, {.batch = args.batch,
                               .tokens = args.queries,
                               .k = args.k,
                               .v = args.v,
                               .kv_lengths = args.kv_lengths,
                               .past = args.past,
                               .cache = args.cache});
  call.scratch = context.arena->scratch(DType::kInt8, kernels.forward_scratch(args));
  kernels.forward(context, call);
}

void attention_backward(const Context& context, const AttentionBackwardArgs& args) {
  const char* op = "attention_backward";
  check_arguments(context, op, args);
  check_no_cache(op, args);
  CHECK(args.dbias.data == nullptr || args.bias.data != nullptr, ConfigError, op,
        ": dbias is the gradient of a bias, which is missing");
  if (any_queries(args)) {
    check_given(op, "q", args.q.data);
    check_given(op, "out", args.out.data);
    check_given(op, "dout", args.dout.data);
    check_given(op, "softmax", args.softmax);
    check_given(op, "dq", args.dq.data);
  }
  if (any_keys(args)) {
    check_given(op, "k", args.k.data);
    check_given(op, "v", args.v.data);
    check_given(op, "dk", args.dk.data);
    check_given(op, "dv", args.dv.data);
  }
  if (!any_queries(args) && !any_keys(args)) return;
  ScratchScope scope(*context.arena);
  AttentionBackwardArgs call = args;
  const AttentionKernels& kernels = *context.kernels->attention;
  call.scratch = context.arena->scratch(DType::kInt8, kernels.backward_scratch(args));
  kernels.backward(context, call);
}

void attention_weights(const Context& context, const AttentionWeightsArgs& args) {
  const char* op = "attention_weights";
  check_arguments(context, op, args);
  check_no_cache(op, args);
  if (!any_queries(args) || !any_keys(args)) return;
  check_given(op, "q", args.q.data);
  check_given(op, "k", args.k.data);
  check_given(op, "weights", args.weights);
  ScratchScope scope(*context.arena);
  AttentionWeightsArgs call = args;
  const AttentionKernels& kernels = *context.kernels->attention;
  call.scratch = context.arena->scratch(DType::kInt8, kernels.forward_scratch(args));
  kernels.weights(context, call);
}

void attention_append(const Context& context, const AttentionAppendArgs& args) {
  const char* op = "attention_append";
  check_given(op, "k", args.k.data);
  check_given(op, "v", args.v.data);
  const HostInts lengths(context, args.kv_lengths);
  for (int64_t b = 0; b < args.batch; ++b) check_cache(op, args.cache, lengths[b]);
  context.kernels->attention->append(context, args);
}

}  // namespace llmcore
