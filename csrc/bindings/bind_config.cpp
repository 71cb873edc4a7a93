// From the dict of llmcore.ModelConfig.to_dict() to the core's Config.
#include <pybind11/stl.h>

#include "bindings/py_model.h"
#include "core/error.h"

namespace llmcore::bindings {
namespace {

template <class Enum>
struct Choice {
  const char* name;
  Enum value;
};

template <class Enum, size_t kCount>
void read_choice(const py::dict& values, const char* field, const Choice<Enum> (&choices)[kCount],
                 Enum& into) {
  const std::string name = values[field].cast<std::string>();
  for (const Choice<Enum>& choice : choices) {
    if (name != choice.name) continue;
    into = choice.value;
    return;
  }
  throw ConfigError(str("ModelConfig: ", field, " '", name, "' is not known to the core"));
}

template <class T>
void read(const py::dict& values, const char* field, T& into) {
  into = values[field].cast<T>();
}

RopeScaling read_rope_scaling(const py::dict& values) {
  RopeScaling scaling;
  read_choice<RopeScalingKind>(values, "type",
                               {{"linear", RopeScalingKind::kLinear},
                                {"llama3", RopeScalingKind::kLlama3},
                                {"yarn", RopeScalingKind::kYarn}},
                               scaling.kind);
  read(values, "factor", scaling.factor);
  read(values, "original_max_positions", scaling.original_max_positions);
  read(values, "low_freq_factor", scaling.low_freq_factor);
  read(values, "high_freq_factor", scaling.high_freq_factor);
  read(values, "beta_fast", scaling.beta_fast);
  read(values, "beta_slow", scaling.beta_slow);
  read(values, "attention_factor", scaling.attention_factor);
  return scaling;
}

LoraOptions read_lora(const py::dict& values) {
  LoraOptions lora;
  read(values, "rank", lora.rank);
  read(values, "alpha", lora.alpha);
  read(values, "dropout", lora.dropout);
  read(values, "targets", lora.targets);
  return lora;
}

}  // namespace

Config config_from_dict(const py::dict& values) {
  Config c;
  read(values, "vocab_size", c.vocab_size);
  read(values, "hidden_size", c.hidden_size);
  read(values, "num_encoder_layers", c.num_encoder_layers);
  read(values, "num_decoder_layers", c.num_decoder_layers);
  read(values, "num_heads", c.num_heads);
  read(values, "num_kv_heads", c.num_kv_heads);
  read(values, "head_dim", c.head_dim);
  read(values, "ffn_size", c.ffn_size);
  read(values, "max_positions", c.max_positions);
  read_choice<NormKind>(values, "norm", {{"layer", NormKind::kLayer}, {"rms", NormKind::kRms}},
                        c.norm);
  read(values, "norm_eps", c.norm_eps);
  read_choice<NormPlacement>(values, "norm_placement",
                             {{"pre", NormPlacement::kPre}, {"post", NormPlacement::kPost}},
                             c.norm_placement);
  read(values, "final_norm", c.final_norm);
  read(values, "embedding_norm", c.embedding_norm);
  read(values, "qk_norm", c.qk_norm);
  read_choice<PositionKind>(values, "positions",
                            {{"learned", PositionKind::kLearned},
                             {"sinusoidal", PositionKind::kSinusoidal},
                             {"rope", PositionKind::kRope},
                             {"relative", PositionKind::kRelative},
                             {"none", PositionKind::kNone}},
                            c.positions);
  read(values, "position_offset", c.position_offset);
  read(values, "type_vocab_size", c.type_vocab_size);
  read(values, "embedding_scale", c.embedding_scale);
  read(values, "rope_theta", c.rope_theta);
  if (!values["rope_scaling"].is_none()) c.rope_scaling = read_rope_scaling(values["rope_scaling"]);
  read(values, "relative_buckets", c.relative_buckets);
  read(values, "relative_max_distance", c.relative_max_distance);
  read(values, "rotary_dim", c.rotary_dim);
  read(values, "rope_interleaved", c.rope_interleaved);
  read(values, "attention_scale", c.attention_scale);
  read(values, "attention_softcap", c.attention_softcap);
  read(values, "sliding_window", c.sliding_window);
  read_choice<Activation>(values, "activation",
                          {{"relu", Activation::kRelu},
                           {"gelu", Activation::kGelu},
                           {"gelu_tanh", Activation::kGeluTanh},
                           {"silu", Activation::kSilu}},
                          c.activation);
  read(values, "gated_ffn", c.gated_ffn);
  read(values, "attention_bias", c.attention_bias);
  read(values, "attention_out_bias", c.attention_out_bias);
  read(values, "ffn_bias", c.ffn_bias);
  read(values, "norm_bias", c.norm_bias);
  read(values, "tie_embeddings", c.tie_embeddings);
  read(values, "head_bias", c.head_bias);
  read(values, "head_transform", c.head_transform);
  read(values, "head_scale", c.head_scale);
  read(values, "pooler", c.pooler);
  read(values, "num_labels", c.num_labels);
  read(values, "embedding_dropout", c.embedding_dropout);
  read(values, "attention_dropout", c.attention_dropout);
  read(values, "residual_dropout", c.residual_dropout);
  read(values, "ffn_dropout", c.ffn_dropout);
  read(values, "init_std", c.init_std);
  if (!values["lora"].is_none()) c.lora = read_lora(values["lora"]);
  return c;
}

}  // namespace llmcore::bindings
