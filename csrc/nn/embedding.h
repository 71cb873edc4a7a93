// Embedding: tokens, positions and segment types added up, then normalised where the config says
// so. Encoder and decoder share the token table; the rest each has for itself.
#pragma once

#include <optional>
#include <string>

#include "nn/batch.h"
#include "nn/config.h"
#include "nn/norm.h"
#include "nn/params.h"

namespace llmcore {

class Embedding {
 public:
  struct Saved {
    Tensor ids;           // [N]
    Tensor position_ids;  // [N], or empty without a position table
    Tensor type_ids;      // [N], or empty: all 0
    Norm::Saved norm;
  };

  struct Options {
    Param tokens;           // [V, C]
    std::string norm_name;  // of its norm, below `builder`
    bool types;             // whether it has segments, if the config has
    uint32_t site;          // numbers its dropout
  };
  Embedding(const ParamBuilder& builder, const Config& config, const Options& options);

  const Param& tokens() const { return tokens_; }

  // out [N, C] from ids [N], positions [N] and types [N] (empty: all 0), all int32. Throws
  // IndexError.
  void forward(const Context& context, const Tensor& ids, const Tensor& positions,
               const Tensor& types, const Tensor& out, Saved& saved) const;

  // Parameter gradients; `gradient` [N, C] is that of the output and is overwritten.
  void backward(const Context& context, const Saved& saved, const Tensor& gradient) const;

 private:
  Tensor position_table() const;

  const Config& config_;
  uint32_t site_;
  Param tokens_, positions_, types_;
  Buffer sinusoids_;
  std::optional<Norm> norm_;
};

}  // namespace llmcore
