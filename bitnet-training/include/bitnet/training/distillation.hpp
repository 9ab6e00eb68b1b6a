#pragma once
// Learning from a teacher: its predictions (Hinton et al. 2015) and the relations within one late layer's
// attention (MiniLMv2, Wang et al. 2020, arXiv:2012.15828; for ternary students BitDistill,
// arXiv:2510.13998).
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <vector>

#include "bitnet/core/text/tokenizer.hpp"
#include "bitnet/training/frozen_model.hpp"
#include "bitnet/training/text_model.hpp"

namespace bitnet::training {

/// scale / heads · Σ over heads and rows i of KL(P_i ‖ Q_i), where Q_i = softmax over the rows j of i's
/// document of x_i·x_j / √d within the head's d = cols / heads columns, and P_i the same of `teacher` [rows,
/// cols of its own]. Rows of padding are left out. The teacher gets no gradient. Throws
/// Error(kInvalidArgument) when heads do not divide the columns or rows disagree.
Variable attention_relations(Tape& tape, Variable x, Variable teacher, std::int64_t heads,
                             const RowLayout& layout, float scale);

/// Ids must mean the same to a base or a teacher as to `ours`: all of them to a teacher (`all`), whose
/// predictions are compared id by id, else those that both know. Nothing can be compared where the files
/// `model` have no tokenizer. `who` begins the message. Throws Error(kInvalidArgument) naming the first token
/// that differs, and what Tokenizer::load throws. Thread-safe.
void check_vocabulary(const char* who, const std::filesystem::path& model, const Tokenizer& ours, bool all);

struct DistillationOptions {
  float temperature = 5;
  float logits = 1;                 ///< weight of the predictions' KL
  float attention = 0;              ///< weight of the relations' KL, of q, k and v together
  std::int64_t layer = -1;          ///< of the student; −1: the last but one, or the only one
  std::int64_t teacher_layer = -1;  ///< of the teacher, in the same way
  std::int64_t relation_heads = 0;  ///< 0: the student's key-value heads
};

/// A teacher and what is asked of it. Not thread-safe.
class Distillation {
 public:
  /// Throws Error(kInvalidArgument) when the vocabularies differ, a layer is not there or heads do not divide
  /// a width, of student or teacher.
  Distillation(const ExecutionContext& context, std::unique_ptr<FrozenModel> teacher,
               const ModelConfig& student, const DistillationOptions& options);

  /// What to ask the student's forward pass to keep, or null where its logits are enough.
  AttentionStates* states() noexcept { return options_.attention > 0 ? &states_ : nullptr; }
  /// The sum of both terms, over the rows whose target is not below 0 (relations: all rows of documents),
  /// times `scale`. A cross-entropy of the same logits must come after it.
  Variable loss(Tape& tape, Variable logits, std::span<const std::int32_t> ids, const RowLayout& layout,
                std::span<const std::int32_t> targets, float scale);
  const FrozenModel& teacher() const noexcept { return *teacher_; }
  /// Gives the memory of the teacher's passes back.
  void release() noexcept { tape_.release(); }

 private:
  std::unique_ptr<FrozenModel> teacher_;
  DistillationOptions options_;
  Tape tape_;  ///< of the teacher, records nothing
  AttentionStates states_, teacher_states_;
  std::vector<std::uint8_t> mask_;
};

}  // namespace bitnet::training
