// The ranges of the options of generation.
#include "generate/options.h"

#include <cmath>

#include "core/error.h"

namespace llmcore {
namespace {

void check_ids(const char* name, const std::vector<int32_t>& ids, int64_t vocab_size) {
  for (size_t i = 0; i < ids.size(); ++i)
    CHECK(ids[i] >= 0 && ids[i] < vocab_size, IndexError, "generate: ", name, "[", i,
          "] = ", ids[i], " is outside the vocabulary of ", vocab_size, " tokens");
}

// Written so that NaN fails too.
void check_range(const char* name, double value, bool inside, const char* range) {
  CHECK(inside, ConfigError, "generate: ", name, " must be ", range, ", got ", value);
}

void check_count(const char* name, int64_t value, int64_t least) {
  CHECK(value >= least, ConfigError, "generate: ", name, " must be at least ", least, ", got ",
        value);
}

}  // namespace

void check_options(const GenerationOptions& options, int64_t vocab_size) {
  check_count("max_new_tokens", options.max_new_tokens, 1);
  check_count("min_new_tokens", options.min_new_tokens, 0);
  CHECK(options.min_new_tokens <= options.max_new_tokens, ConfigError,
        "generate: min_new_tokens must be at most max_new_tokens = ", options.max_new_tokens,
        ", got ", options.min_new_tokens);
  const double temperature = options.temperature;
  check_range("temperature", temperature, temperature > 0 && std::isfinite(temperature),
              "above 0 (do_sample=False always takes the most likely token)");
  check_count("top_k", options.top_k, 0);
  check_range("top_p", options.top_p, options.top_p > 0 && options.top_p <= 1, "in (0, 1]");
  check_range("min_p", options.min_p, options.min_p >= 0 && options.min_p <= 1, "in [0, 1]");
  const double repetition = options.repetition_penalty;
  check_range("repetition_penalty", repetition, repetition > 0 && std::isfinite(repetition),
              "above 0");
  check_range("presence_penalty", options.presence_penalty, std::isfinite(options.presence_penalty),
              "finite");
  check_range("frequency_penalty", options.frequency_penalty,
              std::isfinite(options.frequency_penalty), "finite");
  check_count("no_repeat_ngram_size", options.no_repeat_ngram_size, 0);
  check_ids("stop_ids", options.stop_ids, vocab_size);
  check_ids("banned_ids", options.banned_ids, vocab_size);
  check_ids("forced_ids", options.forced_ids, vocab_size);
}

}  // namespace llmcore
