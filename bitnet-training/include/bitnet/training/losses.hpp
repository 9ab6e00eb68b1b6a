#pragma once
// Losses: what a backward pass starts from. Each is a scalar [1, 1], summed over rows in order, so that its
// bits do not depend on the number of threads. All throw Error(kInvalidArgument) when shapes disagree. Not
// thread-safe, as their tape is not.
#include <cstdint>
#include <span>

#include "bitnet/training/tape.hpp"

namespace bitnet::training {

/// scale · Σ over rows of −Σ_c q_c · log softmax(logits)_c, where q is 1 − label_smoothing at the target plus
/// label_smoothing / vocab everywhere (Szegedy et al. 2016); rows with a target below 0 are left out. The
/// logits' storage is overwritten by their gradient: another loss of the same logits must come before. Rows'
/// own losses go to `row_losses` (unscaled) if it is not empty.
Variable cross_entropy(Tape& tape, Variable logits, std::span<const std::int32_t> targets, float scale,
                       std::span<float> row_losses = {}, float label_smoothing = 0);

/// scale · temperature² · Σ over rows of KL(softmax(teacher / temperature) ‖ softmax(logits / temperature))
/// (Hinton et al. 2015). `teacher` [rows, vocab] gets no gradient. Rows where `mask` (empty: all count) is 0
/// are left out.
Variable kl_divergence(Tape& tape, Variable logits, std::span<const float> teacher, float temperature,
                       float scale, std::span<const std::uint8_t> mask = {});

/// scale · Σ (x − target)²; `target` [rows, cols] gets no gradient.
Variable squared_error(Tape& tape, Variable x, std::span<const float> target, float scale);

}  // namespace bitnet::training
