#pragma once
// Steps that must not count: losses that jump, values that are not finite. Whose state it is is
// checkpoint.hpp.
#include <cstdint>
#include <span>
#include <string>

#include "bitnet/training/checkpoint.hpp"
#include "bitnet/training/text_model.hpp"

namespace bitnet::training {

/// Whether `loss` lies more than `deviations` standard deviations above the losses of late; if not, it
/// becomes one of them. Mean and variance are moving ones over about 50 steps, and judge from the 20th loss
/// on. Ten spikes in a row are a new level.
bool is_spike(LossLevel& level, double loss, double deviations);

/// In words where the first value that is not finite comes up: a weight, the attention of a layer, the logits
/// of these sequences; empty where there is none.
std::string first_not_finite(TextModel& model, Tape& tape, std::span<const std::int32_t> ids,
                             const RowLayout& layout);
/// The same of the gradients, the last parameter first.
std::string gradient_not_finite(TextModel& model);

}  // namespace bitnet::training
