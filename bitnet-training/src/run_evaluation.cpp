// Sequences of a text → loss, perplexity, bits per byte.
#include "run_evaluation.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <optional>
#include <string>

#include "bitnet/core/recovery.hpp"
#include "bitnet/training/losses.hpp"

namespace bitnet::training {

Evaluator::Evaluator(const TrainConfig& config, const TrainCallbacks& callbacks,
                     const ExecutionContext& context, const Tokenizer& tokenizer, const RunModel& model)
    : c_(config),
      callbacks_(callbacks),
      tokenizer_(tokenizer),
      model_(model),
      bos_(bos_of(tokenizer)),
      tape_(context, false, config.precision()) {}

/// The losses of batch_.
void Evaluator::score_batch() {
  losses_.resize(batch_.targets.size());
  tape_.reset();
  try {
    const Variable logits = model_->forward(tape_, batch_.inputs, {c_.length, batch_.positions});
    cross_entropy(tape_, logits, batch_.targets, 1.0f, losses_);
  } catch (...) {
    tape_.release();
    throw;
  }
}

Evaluation Evaluator::score(const TrainingText& text, std::int64_t most_tokens, std::int64_t at_once) {
  Evaluation e;
  std::uint64_t bytes = 0;
  double nll = 0;
  const std::span<const TokenId> tokens = text.documents.tokens;
  const TokenWindows windows(tokens.first(tokens.size() - 1), c_.length);
  std::optional<PackedRows> rows;
  if (text.packs) rows.emplace(text.documents, c_.length, bos_);
  const std::int64_t all = rows ? rows->size() : windows.size();
  const std::int64_t count = std::max<std::int64_t>(1, std::min(most_tokens / c_.length, all));
  Recovery scoring({shrink(at_once)}, nullptr, callbacks_.message);
  for (std::int64_t done = 0, next = 0; done < count; done = next) {
    static_cast<void>(scoring.run("scoring sequences from " + std::to_string(done), [&] {
      next = std::min(count, done + at_once);
      batch_.clear();
      for (std::int64_t i = done; i < next; ++i) {
        if (rows)
          rows->append(i, batch_);
        else
          append_window(tokens, windows.begin_of(i), c_.length, bos_, batch_);
      }
      score_batch();
    }));
    for (std::size_t i = 0; i < losses_.size(); ++i) {
      const std::int32_t target = batch_.targets[i];
      if (target < 0) continue;
      nll += losses_[i];
      ++e.tokens;
      // The end-of-text tokens between documents are none of its bytes.
      const auto eos = tokenizer_.eos();
      if (!text.packs || std::find(eos.begin(), eos.end(), target) == eos.end())
        bytes += tokenizer_.token_bytes(target).size();
    }
  }
  tape_.release();
  e.nll = nll / static_cast<double>(e.tokens);
  e.perplexity = std::exp(e.nll);
  e.bits_per_byte = nll / std::numbers::ln2 / static_cast<double>(std::max<std::uint64_t>(bytes, 1));
  return e;
}

}  // namespace bitnet::training
