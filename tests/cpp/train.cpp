// One training step of a tiny model, from a file of numbers into a file of numbers.
#include <cstdio>
#include <limits>
#include <memory>
#include <stdexcept>

#include "checking.h"
#include "nn/train_step.h"

namespace llmcore::checking {
namespace {

constexpr int64_t kRows = 3, kTokens = 11;

// The two models of tests/test_neon.py.
Config config_of(const std::string& model) {
  Config config{.vocab_size = 61,
                .hidden_size = 24,
                .num_decoder_layers = 2,
                .num_heads = 4,
                .num_kv_heads = 4,
                .head_dim = 6,
                .ffn_size = 52,
                .max_positions = 16,
                .attention_scale = 1.0f / std::sqrt(6.0f)};
  if (model == "gpt") {
    config.embedding_dropout = config.attention_dropout = 0.1f;
    config.residual_dropout = config.ffn_dropout = 0.2f;
  } else {
    config.num_kv_heads = 2;
    config.norm = NormKind::kRms;
    config.positions = PositionKind::kRope;
    config.rotary_dim = 6;
    config.sliding_window = 5;
    config.activation = Activation::kSilu;
    config.gated_ffn = true;
    config.attention_bias = config.attention_out_bias = config.ffn_bias = false;
    config.norm_bias = config.tie_embeddings = false;
  }
  return config;
}

using File = std::unique_ptr<std::FILE, int (*)(std::FILE*)>;

File open(const std::string& path, const char* mode) {
  File file(std::fopen(path.c_str(), mode), &std::fclose);
  if (!file) throw std::runtime_error("cannot open " + path);
  return file;
}

template <class T>
void read(const File& file, T* to, size_t count) {
  if (std::fread(to, sizeof(T), count, file.get()) != count)
    throw std::runtime_error("the input is too short: the two sides differ in the model");
}

template <class T>
void write(const File& file, const T* from, size_t count) {
  if (std::fwrite(from, sizeof(T), count, file.get()) != count)
    throw std::runtime_error("cannot write the results");
}

}  // namespace

// In: ids, targets (int32), weights, parameters. Out: loss and norm (double), gradients,
// parameters.
int train(const std::string& model, const std::string& input, const std::string& output) {
  Transformer transformer(config_of(model), Device{});
  const size_t count = static_cast<size_t>(transformer.params().size());
  Ints ids(kRows * kTokens), targets(kRows * kTokens);
  Floats weights(kRows * kTokens);
  const File in = open(input, "rb");
  read(in, ids.data(), ids.size());
  read(in, targets.data(), targets.size());
  read(in, weights.data(), weights.size());
  read(in, transformer.params().weights().f32(), count);
  if (std::fgetc(in.get()) != EOF)
    throw std::runtime_error("the input is too long: the two sides differ in the model");

  TrainStep step(transformer, 7);
  const Batch batch{.dec_ids = tensor(ids, kRows, kTokens),
                    .targets = tensor(targets, kRows * kTokens),
                    .weights = tensor(weights, kRows * kTokens),
                    .label_smoothing = 0.1f};
  // A large eps: with a small one the first update is the sign of each gradient, also of those that
  // are zero but for rounding.
  constexpr double kNoLimit = std::numeric_limits<double>::infinity();
  const StepSettings settings{.adamw = {.lr = 0.01, .beta2 = 0.99, .eps = 0.1, .weight_decay = 0.1},
                              .max_grad_norm = 1.0,
                              .max_loss = kNoLimit,
                              .max_norm = kNoLimit};
  const StepResult result = step.step({batch}, settings)->get();
  const File out = open(output, "wb");
  write(out, &result.loss, 1);
  write(out, &result.grad_norm, 1);
  write(out, transformer.params().gradients().f32(), count);
  write(out, transformer.params().weights().f32(), count);
  return 0;
}

}  // namespace llmcore::checking
