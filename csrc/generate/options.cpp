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

void check_beams(const GenerationOptions& options, int64_t vocab_size) {
  const int64_t beams = options.num_beams, groups = options.num_beam_groups;
  check_count("num_beams", beams, 1);
  CHECK(beams <= vocab_size, ConfigError,
        "generate: num_beams must be at most the vocabulary's size V = ", vocab_size, ", got ",
        beams);
  CHECK(beams == 1 || !options.do_sample, ConfigError,
        "generate: beam search with num_beams = ", beams,
        " does not sample; set do_sample to False, or num_beams to 1");
  check_count("num_beam_groups", groups, 1);
  CHECK(beams % groups == 0, ConfigError,
        "generate: num_beam_groups must divide num_beams = ", beams, " evenly, got ", groups);
  const double diversity = options.diversity_penalty;
  check_range("diversity_penalty", diversity, diversity >= 0 && std::isfinite(diversity),
              "at least 0 and finite");
  CHECK((groups > 1) == (diversity > 0), ConfigError,
        "generate: num_beam_groups above 1 and diversity_penalty above 0 need each other, got ",
        groups, " and ", diversity);
  check_range("length_penalty", options.length_penalty, std::isfinite(options.length_penalty),
              "finite");
  check_count("num_return_sequences", options.num_return_sequences, 1);
  CHECK(options.num_return_sequences <= beams, ConfigError,
        "generate: num_return_sequences must be at most num_beams = ", beams, ", got ",
        options.num_return_sequences);
}

}  // namespace

DType cache_dtype_from_name(const std::string& name) {
  CHECK(name == "float32" || name == "bfloat16" || name == "int8", ConfigError,
        "generate: cache_dtype must be 'float32', 'bfloat16' or 'int8', got '", name, "'");
  return dtype_from_name(name.c_str());
}

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
  CHECK(options.forced_eos_id >= -1 && options.forced_eos_id < vocab_size, IndexError,
        "generate: forced_eos_id = ", options.forced_eos_id, " is outside the vocabulary of ",
        vocab_size, " tokens, and not -1 for none");
  check_beams(options, vocab_size);
  CHECK(options.num_beams == 1 || options.speculate == Speculate::kNo, ConfigError,
        "generate: beam search with num_beams = ", options.num_beams,
        " does not speculate; set num_beams to 1, or leave out speculate");
  check_count("num_draft_tokens", options.num_draft_tokens, 1);
  check_count("draft_ngram", options.draft_ngram, 1);
}

}  // namespace llmcore
