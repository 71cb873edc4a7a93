// Checks of a batch against the model's config.
#include "nn/check_batch.h"

#include "core/error.h"

namespace llmcore {
namespace {

void check_stack(const Config& config, const char* name, int64_t layers, const Tensor& ids,
                 const Tensor& lengths) {
  if (layers == 0) {
    CHECK(!ids, ConfigError, "model: the batch has ", name, "_ids, but the model has no ", name,
          "oder");
    return;
  }
  CHECK(ids, ConfigError, "model: the batch has no ", name, "_ids, which the model's ", name,
        "oder needs");
  CHECK(ids.rank == 2, ShapeError, "model: ", name, "_ids must have shape [B, T], got ",
        shape_string(ids));
  const int64_t rows = ids.dim(0), length = ids.dim(1);
  CHECK(!has_bounded_positions(config) || length <= config.max_positions, ShapeError,
        "model: ", name, "_ids have ", length, " tokens, the model has positions for ",
        config.max_positions);
  check_optional("model", "lengths", lengths, "[B]", {rows}, DType::kInt32);
  for (int64_t b = 0; lengths && b < rows; ++b) {
    const int32_t count = lengths.as<int32_t>()[b];
    CHECK(count >= 0 && count <= length, ShapeError, "model: lengths[", b, "] must be from 0 to ",
          length, ", got ", count);
  }
}

void check_rows(const Batch& batch) {
  const int64_t count = batch.rows.numel();
  check_tensor("model", "rows", batch.rows, "[R]", {count}, DType::kInt32);
  for (int64_t r = 0; r < count; ++r) {
    const int32_t row = batch.rows.as<int32_t>()[r];
    CHECK(row >= 0 && row < batch.ids().numel(), IndexError, "model: rows[", r,
          "] must be from 0 to ", batch.ids().numel() - 1, ", got ", row);
    CHECK(r == 0 || row > batch.rows.as<int32_t>()[r - 1], ShapeError,
          "model: rows must be ascending, rows[", r, "] = ", row, " is not");
  }
}

}  // namespace

bool has_bounded_positions(const Config& config) {
  return config.positions != PositionKind::kNone && config.positions != PositionKind::kRelative;
}

void check_encoder_batch(const Config& config, const Batch& batch) {
  check_stack(config, "enc", config.num_encoder_layers, batch.enc_ids, batch.enc_lengths);
  if (config.num_encoder_layers == 0)
    check_stack(config, "dec", config.num_decoder_layers, batch.dec_ids, batch.dec_lengths);
  const Tensor& typed = batch.enc_ids ? batch.enc_ids : batch.dec_ids;
  check_optional("model", "types", batch.types, "[B, T]", {typed.dim(0), typed.dim(1)},
                 DType::kInt32);
}

void check_batch(const Config& config, const Batch& batch) {
  check_encoder_batch(config, batch);
  if (config.num_encoder_layers > 0)
    check_stack(config, "dec", config.num_decoder_layers, batch.dec_ids, batch.dec_lengths);
  if (batch.enc_ids && batch.dec_ids)
    CHECK(batch.enc_ids.dim(0) == batch.dec_ids.dim(0), ShapeError,
          "model: enc_ids and dec_ids must have the same number of rows, got ",
          batch.enc_ids.dim(0), " and ", batch.dec_ids.dim(0));
  check_optional("model", "prefix_lengths", batch.prefix_lengths, "[B]", {batch.ids().dim(0)},
                 DType::kInt32);
  CHECK(!batch.prefix_lengths || batch.dec_ids, ConfigError,
        "model: prefix_lengths are for a decoder, which the model does not have");
}

void check_targets(const Config& config, const Batch& batch) {
  if (batch.rows) check_rows(batch);
  const int64_t count = batch.rows ? batch.rows.numel() : batch.ids().numel();
  check_tensor("model", "targets", batch.targets, "[R]", {count}, DType::kInt32);
  check_tensor("model", "weights", batch.weights, "[R]", {count});
  if (batch.labels) check_labels(config, batch);
}

void check_labels(const Config& config, const Batch& batch) {
  CHECK(config.num_labels > 0, ConfigError,
        "model: labels need a classifier; set num_labels in the model's config");
  CHECK(batch.rows, ConfigError, "model: labels need rows: the positions the classifier reads");
  check_rows(batch);
}

}  // namespace llmcore
