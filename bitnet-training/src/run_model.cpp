// TrainConfig → model, optimiser, teacher.
#include "run_model.hpp"

#include <algorithm>
#include <string>
#include <vector>

#include "bitnet/core/error.hpp"
#include "bitnet/core/rng.hpp"
#include "bitnet/training/sub_norms.hpp"

namespace bitnet::training {

namespace {

/// Whose tokenizer run_data.cpp takes.
const char* tokenizer_name(const TrainConfig& c) {
  const bool own = !c.tokenizer.empty() || c.lora || !c.base.empty();
  return c.distillation && !own ? "the teacher's tokenizer" : "the tokenizer";
}

/// "base 'x': linears that are ternary and begin with their trits: 14; …; scales by row"
std::string describe(const BaseLinears& b, const TrainConfig& c) {
  std::string text = "base '" + c.base.string() + "': ";
  const auto add = [&](std::int64_t n, const char* what) {
    if (n > 0) text += "linears that " + std::string(what) + ": " + std::to_string(n) + "; ";
  };
  if (!c.original.empty()) {
    text += "latent weights of all linears are those of '" + c.original.string() + "'; ";
  } else {
    add(b.trits, "are ternary and begin with their trits");
    add(b.dequantised,
        "are of two planes, int8 or with other scales and begin as the floats that they stand for");
    add(b.floats, b.latent ? "are latent weights" : "are in full precision");
  }
  const int bits = c.quantizer.activation_bits;
  add(b.other_activations(bits), "have other activations there");
  return text + "scales by " + std::string(to_string(c.quantizer.granularity)) +
         (bits == 8 ? "" : ", activations of " + std::to_string(bits) + " bits");
}

/// Weights of the base, and of the original where there is one.
void begin_with_base(const TrainConfig& c, const ExecutionContext& context, LanguageModel& model,
                     RunModel& run) {
  const auto base = quant::ModelReader::open(c.base, quant::FloatLinears::kKeep);
  const auto original =
      c.original.empty() ? nullptr : quant::ModelReader::open(c.original, quant::FloatLinears::kKeep);
  load_weights(context, model, *base, original.get());
  if (c.quantization != Quantization::kTernary) return;
  const BaseLinears linears = base_linears(*base, c.quantizer.granularity);
  run.base = describe(linears, c);
  run.grows = original || linears.dequantised + linears.floats > 0;
}

}  // namespace

RunModel model_of(const TrainConfig& c, const ExecutionContext& context, const Tokenizer& tokenizer) {
  if (tokenizer.vocab_size() > c.model.vocab_size)
    throw Error(ErrorCode::kInvalidArgument,
                std::string(tokenizer_name(c)) + " has " + std::to_string(tokenizer.vocab_size()) +
                    " tokens, " + (c.lora || !c.base.empty() ? "the base" : "model.vocab_size") + " allows " +
                    std::to_string(c.model.vocab_size));
  const std::filesystem::path& base = c.lora ? c.lora->base : c.base;
  if (!base.empty() && !c.tokenizer.empty()) check_vocabulary("the base", base, tokenizer, false);
  if (!c.original.empty()) check_vocabulary("the original", c.original, tokenizer, false);
  RunModel run;
  if (c.lora) {
    auto model = std::make_unique<LoraModel>(context, FrozenModel::load(context, c.lora->base, c.length),
                                             c.lora->options, c.seed);
    model->set_recompute(c.activation_checkpointing);
    run.adapter = model.get();
    run.model = std::move(model);
    return run;
  }
  ModelConfig m = c.model;
  // A student's predictions are compared with a teacher's token by token, unused ones included.
  if (!c.distillation && c.base.empty()) m.vocab_size = tokenizer.vocab_size();
  m.bos_id = tokenizer.bos().value_or(-1);
  m.eos_ids.assign(tokenizer.eos().begin(), tokenizer.eos().end());
  auto model = std::make_unique<LanguageModel>(context, m, c.quantization, c.quantizer);
  Rng rng(c.seed);
  model->initialize(rng, static_cast<float>(c.init_deviation));
  if (!c.base.empty())
    with_context("'" + c.base.string() + "'", [&] { begin_with_base(c, context, *model, run); });
  model->set_recompute(c.activation_checkpointing);
  run.whole = model.get();
  run.model = std::move(model);
  return run;
}

std::unique_ptr<Optimizer> optimizer_of(const TrainConfig& c, const ExecutionContext& context,
                                        const RunModel& model, std::span<Parameter* const> parameters) {
  switch (c.optimizer) {
    case OptimizerKind::kAdamW:
      break;
    case OptimizerKind::kAdamW8:
      return std::make_unique<AdamW8>(context, parameters, c.adamw);
    case OptimizerKind::kSgd:
      return std::make_unique<Sgd>(context, parameters, SgdOptions{c.momentum, false});
    case OptimizerKind::kMuon: {
      std::vector<Parameter*> matrices;
      if (model.whole)
        for (const TensorId id : model.whole->tensor_ids())
          if (Linear* l = model.whole->linear(id)) matrices.push_back(&l->weight());
      return std::make_unique<Muon>(context, parameters, matrices, MuonOptions{c.momentum, 5, c.adamw});
    }
  }
  return std::make_unique<AdamW>(context, parameters, c.adamw);
}

std::unique_ptr<Distillation> teacher_of(const TrainConfig& c, const ExecutionContext& context,
                                         const ModelConfig& student, const Tokenizer& tokenizer) {
  if (!c.distillation) return nullptr;
  const DistillationRun& d = *c.distillation;
  DistillationOptions options;
  options.temperature = static_cast<float>(d.temperature);
  options.logits = static_cast<float>(d.logits);
  options.attention = static_cast<float>(d.attention);
  options.layer = d.layer;
  options.teacher_layer = d.teacher_layer;
  options.relation_heads = d.relation_heads;
  auto distillation = std::make_unique<Distillation>(context, FrozenModel::load(context, d.teacher, c.length),
                                                     student, options);
  check_vocabulary("the teacher", d.teacher, tokenizer, true);
  return distillation;
}

}  // namespace bitnet::training
