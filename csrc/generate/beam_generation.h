// BeamGeneration: continues a batch of prompts by beam search, the beams of all of them together.
#pragma once

#include <vector>

#include "generate/beam.h"
#include "generate/decode_state.h"

namespace llmcore {

class BeamGeneration {
 public:
  // What the decoder begins with, and with an encoder what each text is about. Throws what
  // decode_room() and BeamSearch throw.
  BeamGeneration(Transformer& model, const std::vector<TokenIds>& prompts,
                 const std::vector<TokenIds>& sources, const GenerationOptions& options);

  bool done() const;

  // Grows every beam by a token.
  void step();

  // What was found for a prompt, best first.
  std::vector<BeamHypothesis> best(int64_t prompt) const { return searches_[prompt].best(); }

 private:
  Transformer& model_;
  std::vector<TokenIds> prompts_;
  int64_t num_beams_;
  DecodeState state_;  // beam b of prompt i is its sequence i * num_beams + b
  std::vector<BeamSearch> searches_;
  bool started_ = false;
};

}  // namespace llmcore
