// The architecture of a model, whole: the plain-data twin of llmcore.ModelConfig.
//
// python/llmcore/config.py holds the defaults and says what is wrong with a config; what arrives
// here is complete and consistent. Weights must match it; nothing is inferred from their presence.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ops/activation.h"
#include "ops/norm.h"

namespace llmcore {

enum class NormPlacement { kPre, kPost };
enum class PositionKind { kLearned, kSinusoidal, kRope, kRelative, kNone };
enum class RopeScalingKind { kNone, kLinear, kLlama3, kYarn };

struct RopeScaling {
  RopeScalingKind kind = RopeScalingKind::kNone;
  double factor = 1.0;
  int64_t original_max_positions = 0;
  double low_freq_factor = 1.0, high_freq_factor = 4.0;
  double beta_fast = 32.0, beta_slow = 1.0;
  double attention_factor = 1.0;
};

// Low-rank adapters beside the linear layers of these names.
struct LoraOptions {
  int64_t rank = 0;  // 0: none
  double alpha = 0.0;
  float dropout = 0.0f;
  std::vector<std::string> targets;
};

struct Config {
  int64_t vocab_size = 0;          // V
  int64_t hidden_size = 0;         // C
  int64_t num_encoder_layers = 0;  // L of each stack
  int64_t num_decoder_layers = 0;
  int64_t num_heads = 0;     // H
  int64_t num_kv_heads = 0;  // Hkv
  int64_t head_dim = 0;      // D
  int64_t ffn_size = 0;      // F
  int64_t max_positions = 0;
  NormKind norm = NormKind::kLayer;
  float norm_eps = 1e-5f;
  NormPlacement norm_placement = NormPlacement::kPre;
  bool final_norm = true;
  bool embedding_norm = false;
  bool qk_norm = false;
  PositionKind positions = PositionKind::kLearned;
  int64_t position_offset = 0;
  int64_t type_vocab_size = 0;
  float embedding_scale = 1.0f;
  double rope_theta = 10000.0;
  RopeScaling rope_scaling;
  int64_t relative_buckets = 32, relative_max_distance = 128;
  int64_t rotary_dim = 0;
  bool rope_interleaved = false;
  float attention_scale = 0.0f;
  float attention_softcap = 0.0f;
  int64_t sliding_window = 0;
  Activation activation = Activation::kGeluTanh;
  bool gated_ffn = false;
  bool attention_bias = true;
  bool attention_out_bias = true;
  bool ffn_bias = true;
  bool norm_bias = true;
  bool tie_embeddings = true;
  bool head_bias = false;
  bool head_transform = false;
  float head_scale = 1.0f;
  bool pooler = false;
  int64_t num_labels = 0;
  float embedding_dropout = 0.0f;
  float attention_dropout = 0.0f;
  float residual_dropout = 0.0f;
  float ffn_dropout = 0.0f;
  float init_std = 0.02f;
  LoraOptions lora;
};

}  // namespace llmcore
