#pragma once
// What a run trains, by its configuration: a whole model or an adapter, its optimiser and its teacher.
#include <memory>
#include <span>
#include <string>

#include "bitnet/core/text/tokenizer.hpp"
#include "bitnet/training/config.hpp"
#include "bitnet/training/distillation.hpp"
#include "bitnet/training/language_model.hpp"
#include "bitnet/training/lora.hpp"

namespace bitnet::training {

struct RunModel {
  std::unique_ptr<TextModel> model;
  LanguageModel* whole = nullptr;  ///< the model, where all of it is trained
  LoraModel* adapter = nullptr;    ///< the model, where an adapter is
  std::string base;                ///< what was made of a base, for people; empty: none
  bool grows = true;               ///< some linear's λ is the schedule's

  TextModel* operator->() const noexcept { return model.get(); }
  TextModel& operator*() const noexcept { return *model; }
};

/// With weights as at step 0. Throws Error(kInvalidArgument) when the tokenizer has more tokens than the
/// model, and what FrozenModel::load throws.
RunModel model_of(const TrainConfig& config, const ExecutionContext& context, const Tokenizer& tokenizer);
/// Of these of the model's parameters.
std::unique_ptr<Optimizer> optimizer_of(const TrainConfig& config, const ExecutionContext& context,
                                        const RunModel& model, std::span<Parameter* const> parameters);
/// Null where the configuration has no teacher. Throws what FrozenModel::load and Distillation throw, and
/// Error(kInvalidArgument) for a teacher whose token ids are other ones.
std::unique_ptr<Distillation> teacher_of(const TrainConfig& config, const ExecutionContext& context,
                                         const ModelConfig& student, const Tokenizer& tokenizer);

}  // namespace bitnet::training
