// The optimizer step.
#include "nn/train_step.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "core/beside.h"
#include "core/error.h"
#include "ops/idle.h"
#include "ops/optimizer.h"

namespace llmcore {
namespace {

double total_weight(const std::vector<Batch>& batches) {
  double total = 0.0;
  for (const Batch& batch : batches)
    for (int64_t r = 0; r < batch.weights.numel(); ++r) total += batch.weights.f32()[r];
  CHECK(total > 0.0, ConfigError, "train step: the batch has no targets with a weight above zero");
  return total;
}

void run_passes(Transformer& model, Context context, const std::vector<Transformer::Pass>& passes,
                StepState* state) {
  KeepScope scope(*context.arena);
  if (context.activations == DType::kBFloat16)
    context.rounded_weights = model.params().rounded(context);
  std::optional<Beside> beside;
  if (context.training && context.device.type != DeviceType::kCpu)
    context.beside = &beside.emplace(context);
  begin_step(context, state);
  model.params().begin_gradients();
  for (const Transformer::Pass& pass : passes) {
    model.add_gradients(context, pass, state);
    ++context.micro_batch;
  }
  model.params().finish_gradients(context);
}

// Each micro-batch is divided by the weight of all, so that any split gives one mean.
std::vector<Transformer::Pass> prepare(Transformer& model, const Context& context,
                                       const std::vector<Batch>& batches) {
  const double weight = total_weight(batches);
  std::vector<Transformer::Pass> passes;
  for (const Batch& batch : batches)
    passes.push_back(model.prepare_gradients(context, batch, weight));
  return passes;
}

void accumulate(Transformer& model, const Context& context, const std::vector<Batch>& batches,
                StepState* state) {
  KeepScope scope(*context.arena);
  run_passes(model, context, prepare(model, context, batches), state);
}

Look look_of(Transformer& model, const std::vector<Transformer::Pass>& passes) {
  Look look;
  look.add(model.recompute);
  look.add(model.params().version());
  look.add(model.arena().trims());
  look.add(model.arena().keep_mark().keep);
  for (const Transformer::Pass& pass : passes) {
    const Batch& batch = pass.batch;
    for (const Tensor& tensor :
         {batch.enc_ids, batch.enc_lengths, batch.dec_ids, batch.dec_lengths, batch.prefix_lengths,
          batch.types, batch.rows, batch.targets, batch.weights, pass.row_scale,
          pass.encoder.positions, pass.encoder.buckets, pass.decoder.positions,
          pass.decoder.buckets})
      look.add(tensor);
    look.add(__builtin_bit_cast(int32_t, batch.label_smoothing));
    look.add(batch.labels);
  }
  return look;
}

// The trainable parameters, cut where weight decay changes and to the length a device takes.
std::vector<FlatPart> trainable_parts(const ParamStore& params, Device device) {
  std::vector<FlatPart> runs, parts;
  for (const ParamInfo& info : params.table()) {
    if (!info.trainable) continue;
    const int64_t end = info.offset + info.size;
    if (runs.empty() || runs.back().end < info.offset || runs.back().decay != info.decay)
      runs.push_back({.begin = info.offset, .end = end, .decay = info.decay});
    else
      runs.back().end = end;
  }
  if (device.type == DeviceType::kCpu) return runs;
  for (const FlatPart& run : runs)
    for (int64_t begin = run.begin; begin < run.end; begin += kFlatPart)
      parts.push_back({begin, std::min(begin + kFlatPart, run.end), run.decay});
  return parts;
}

}  // namespace

TrainStep::TrainStep(Transformer& model, uint64_t dropout_seed, bool bfloat16)
    : dropout_seed(dropout_seed),
      model_(model),
      bfloat16_(bfloat16),
      size_(model.params().size()),
      m_(size_ * static_cast<int64_t>(sizeof(float)), Backing::kMemory, model.device()),
      v_(size_ * static_cast<int64_t>(sizeof(float)), Backing::kMemory, model.device()),
      state_(sizeof(StepState), Backing::kMemory, model.device()) {
  model.params().gradients();
}

Tensor TrainStep::moment(const Buffer& buffer) const {
  Tensor tensor = f32_view(buffer.data(), size_);
  tensor.device = model_.device();
  return tensor;
}

int64_t TrainStep::updates() const {
  return read_state(model_.context(), state()).updates;
}

void TrainStep::set_updates(int64_t count) {
  const StepState fresh{.updates = count};
  const Context context = model_.context();
  copy_bytes(context.queue, state(), &fresh, sizeof(fresh));
  wait(context.queue);
}

// A processor with dot products of bfloat16 rounds operands as it reads them; a GPU keeps
// activations in it.
void use_bfloat16(Context& context) {
  if (context.device.type == DeviceType::kCpu)
    context.bfloat16 = true;
  else
    context.activations = DType::kBFloat16;
}

std::shared_ptr<StepReport> TrainStep::step(const std::vector<Batch>& micro_batches,
                                            const StepSettings& settings) {
  find_parts();
  CHECK(part_count_ > 0, ConfigError,
        "train step: every parameter is frozen; unfreeze those to be trained");
  check_adamw(settings.adamw, 1);
  Context context = model_.context();
  KeepScope scope(*context.arena);
  if (bfloat16_) use_bfloat16(context);
  context.training = true;
  context.dropout_seed = dropout_seed;
  context.step = static_cast<uint32_t>(calls++);
  const Tensor told = context.arena->input(DType::kInt8, sizeof(StepSettings));
  *told.host<StepSettings>() = settings;
  told.host<StepSettings>()->dropout_stream = Context::dropout_stream(context.step);
  if (context.queue != nullptr) context.step_stream = &told.as<StepSettings>()->dropout_stream;
  const std::vector<Transformer::Pass> passes = prepare(model_, context, micro_batches);

  Look look = look_of(model_, passes);
  look.add(told);
  look.add(static_cast<int64_t>(dropout_seed));
  captured_.run(context, look, [&](const Context& where) { run(where, passes, told); });
  const std::shared_ptr<StepReport> report = free_report();
  report->take(context, state());
  return report;
}

std::shared_ptr<StepReport> TrainStep::free_report() {
  if (model_.device().type == DeviceType::kCpu) return std::make_shared<StepReport>();
  for (const std::shared_ptr<StepReport>& report : reports_)
    if (report.use_count() == 1) return report;
  return reports_.emplace_back(std::make_shared<StepReport>());
}

StepReport::~StepReport() {
  if (pinned_ == nullptr) return;
  done_.settle();
  gpu::release_pinned(pinned_, sizeof(StepState));
}

void StepReport::take(const Context& context, const StepState* state) {
  if (context.queue == nullptr) {
    found_ = *state;
    return;
  }
  if (pinned_ == nullptr)
    pinned_ = static_cast<StepState*>(gpu::allocate_pinned(sizeof(StepState)));
  gpu::copy(context.queue, pinned_, state, sizeof(StepState));
  done_.record(context.queue);
}

StepResult StepReport::get() {
  if (pinned_ != nullptr) {
    done_.wait();
    found_ = *pinned_;
  }
  return {.loss = found_.loss_sum / found_.weight,
          .grad_norm = std::sqrt(found_.square_sum),
          .targets = found_.weight,
          .skipped = found_.skipped != 0};
}

// All that kernels do in a step.
void TrainStep::run(const Context& context, const std::vector<Transformer::Pass>& passes,
                    const Tensor& told) {
  run_passes(model_, context, passes, state());
  ParamStore& params = model_.params();
  const FlatParts parts{static_cast<const FlatPart*>(parts_.data()), part_count_};
  add_square_sum(context, {.x = params.gradients(), .parts = parts, .sum = &state()->square_sum});
  decide_step(context, {.settings = told.as<StepSettings>(), .state = state()});
  // Moments of frozen parameters are not touched: they take no memory.
  adamw(context, {.state = state(),
                  .parts = parts,
                  .param = params.weights(),
                  .m = first_moment(),
                  .v = second_moment(),
                  .grad = params.gradients()});
}

// Again where what is trainable has changed, and then no step is captured any more.
void TrainStep::find_parts() {
  if (parts_version_ == model_.params().version()) return;
  const std::vector<FlatPart> parts = trainable_parts(model_.params(), model_.device());
  const auto bytes = static_cast<int64_t>(parts.size() * sizeof(FlatPart));
  Queue* const queue = model_.context().queue;
  wait(queue);  // for who reads the old ones
  parts_ = Buffer(bytes, Backing::kMemory, model_.device());
  copy_bytes(queue, parts_.data(), parts.data(), bytes);
  wait(queue);
  part_count_ = static_cast<int64_t>(parts.size());
  parts_version_ = model_.params().version();
}

int64_t planned_bytes(Transformer& model, const std::vector<Batch>& micro_batches, bool bfloat16) {
  Context context = model.context();
  const IdleKernels idle(*context.kernels);
  context.kernels = &idle.table;
  if (bfloat16) use_bfloat16(context);
  context.training = true;
  StepState state{};
  KeepScope scope(*context.arena);
  if (context.device.type != DeviceType::kCpu)
    context.arena->input(DType::kInt8, sizeof(StepSettings));
  accumulate(model, context, micro_batches, &state);
  const std::vector<FlatPart> parts = trainable_parts(model.params(), context.device);
  add_square_sum(context, {.x = model.params().gradients(),
                           .parts = {parts.data(), static_cast<int64_t>(parts.size())},
                           .sum = &state.square_sum});
  return model.arena().peak_bytes() + model.arena().input_bytes();
}

LossSum loss_and_gradients(Transformer& model, const Batch& batch) {
  const Context context = model.context();
  ScratchScope scope(*context.arena);
  auto* state = static_cast<StepState*>(context.arena->scratch_bytes(sizeof(StepState)));
  accumulate(model, context, {batch}, state);
  const StepState found = read_state(context, state);
  return {.sum = found.loss_sum, .weight = found.weight};
}

}  // namespace llmcore
