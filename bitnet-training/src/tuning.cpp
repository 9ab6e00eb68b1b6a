// The loop of tuning: windows in a shuffled order, KL divergence from the teacher, AdamW.
#include "bitnet/training/tuning.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>

#include "bitnet/core/rng.hpp"
#include "bitnet/training/distillation.hpp"
#include "bitnet/training/losses.hpp"
#include "bitnet/training/optimizer.hpp"
#include "bitnet/training/schedule.hpp"
#include "ops_common.hpp"

namespace bitnet::training {
namespace {

constexpr AdamWOptions kAdam{0.9f, 0.99f, 1e-8f};
constexpr float kClip = 1;

void check_windows(std::span<const std::vector<TokenId>> windows, std::int64_t batch) {
  BITNET_REQUIRE(!windows.empty() && windows[0].size() >= 2, "tuning",
                 "a text of two tokens at least is needed");
  const auto length = static_cast<std::int64_t>(windows[0].size());
  for (const auto& w : windows)
    BITNET_REQUIRE(
        static_cast<std::int64_t>(w.size()) == length, "tuning",
        "windows of " + std::to_string(length) + " and of " + std::to_string(w.size()) + " tokens");
  const auto there = static_cast<std::int64_t>(windows.size());
  BITNET_REQUIRE(there >= batch, "tuning",
                 "the text gives " + std::to_string(there * length) + " tokens; a step takes " +
                     std::to_string(batch) + " windows of " + std::to_string(length) + ", so that at least " +
                     std::to_string(batch * length) + " are needed");
}

/// Deals indices below n, each once before any comes again.
class Deck {
 public:
  Deck(std::size_t n, std::uint64_t seed) : rng_(seed), cards_(n), next_(n) {
    std::iota(cards_.begin(), cards_.end(), std::size_t{0});
  }
  std::size_t deal() {
    if (next_ == cards_.size()) {
      for (std::size_t i = cards_.size(); i > 1; --i) std::swap(cards_[i - 1], cards_[rng_.below(i)]);
      next_ = 0;
    }
    return cards_[next_++];
  }

 private:
  Rng rng_;
  std::vector<std::size_t> cards_;
  std::size_t next_;
};

class Tuning {
 public:
  Tuning(const ExecutionContext& context, TunedModel& model, std::unique_ptr<FrozenModel> teacher,
         std::span<const std::vector<TokenId>> windows, const TuningOptions& options)
      : context_(context),
        model_(model),
        windows_(windows),
        o_(options),
        distillation_(context, std::move(teacher), model.config(),
                      {.temperature = static_cast<float>(options.temperature)}),
        tape_(context),
        scoring_(context, false),
        optimizer_(context, model.parameters(), kAdam),
        row_losses_(windows[0].size() - 1) {}

  struct Score {
    double loss = 0, nll = 0;
  };
  /// Means over all windows.
  Score score() {
    tape_.release();
    Score sum;
    for (const auto& w : windows_) {
      const Variable logits = forward(scoring_, w);
      const Variable kl = distillation_.loss(scoring_, logits, inputs(w), layout(w), targets(w), mean());
      sum.loss += static_cast<double>(kl.value()[0]);
      cross_entropy(scoring_, logits, targets(w), mean(), row_losses_);
      sum.nll += std::accumulate(row_losses_.begin(), row_losses_.end(), 0.0) * static_cast<double>(mean());
      scoring_.reset();
    }
    scoring_.release();
    const auto n = static_cast<double>(windows_.size());
    sum.nll /= n;
    sum.loss = sum.loss / n + o_.text * sum.nll;
    return sum;
  }
  /// One step on the next windows.
  double step(std::int64_t index, const Schedule& schedule, Deck& deck) {
    double loss = 0;
    const float scale = mean() / static_cast<float>(o_.batch);
    for (std::int64_t i = 0; i < o_.batch; ++i) {
      const auto& w = windows_[deck.deal()];
      const Variable logits = forward(tape_, w);
      Variable l = distillation_.loss(tape_, logits, inputs(w), layout(w), targets(w), scale);
      if (o_.text > 0)
        l = add(tape_, l, cross_entropy(tape_, logits, targets(w), scale * static_cast<float>(o_.text)));
      loss += static_cast<double>(l.value()[0]);
      tape_.backward(l);
      tape_.reset();
    }
    const double norm =
        std::isfinite(loss)
            ? optimizer_.step(context_, static_cast<float>(schedule.learning_rate(index)), 0, kClip)
            : std::numeric_limits<double>::quiet_NaN();
    if (!std::isfinite(norm))
      throw Error(ErrorCode::kInvalidArgument, "tuning diverged at step " + std::to_string(index + 1) +
                                                   ": loss " + std::to_string(loss) +
                                                   "; a lower learning rate may help");
    model_.refresh(context_);
    return loss;
  }
  /// The model as it was.
  void take_back() {
    for (Parameter* p : model_.parameters()) std::fill(p->value().begin(), p->value().end(), 0.0f);
    model_.refresh(context_);
  }

 private:
  static std::span<const std::int32_t> inputs(const std::vector<TokenId>& w) {
    return std::span(w).first(w.size() - 1);
  }
  static std::span<const std::int32_t> targets(const std::vector<TokenId>& w) {
    return std::span(w).subspan(1);
  }
  static RowLayout layout(const std::vector<TokenId>& w) { return {static_cast<std::int64_t>(w.size()) - 1}; }
  Variable forward(Tape& tape, const std::vector<TokenId>& w) {
    return model_.forward(tape, inputs(w), layout(w));
  }
  float mean() const { return 1.0f / static_cast<float>(windows_[0].size() - 1); }

  const ExecutionContext& context_;
  TunedModel& model_;
  std::span<const std::vector<TokenId>> windows_;
  const TuningOptions& o_;
  Distillation distillation_;
  Tape tape_, scoring_;
  AdamW optimizer_;
  std::vector<float> row_losses_;
};

}  // namespace

void TuningOptions::validate() const {
  BITNET_REQUIRE(steps >= 1 && steps <= 1'000'000, "steps",
                 "from 1 to 1000000, got " + std::to_string(steps));
  BITNET_REQUIRE(learning_rate > 0 && learning_rate <= 1, "learning_rate", "must be above 0 and at most 1");
  BITNET_REQUIRE(batch >= 1 && batch <= 65536, "batch", "from 1 to 65536, got " + std::to_string(batch));
  BITNET_REQUIRE(temperature >= 1e-3 && temperature <= 1e6, "temperature", "must be from 1e-3 to 1e6");
  BITNET_REQUIRE(text >= 0 && text <= 1e6, "text", "must not be negative, and at most 1e6");
}

TuningResult tune(const ExecutionContext& context, TunedModel& model, std::unique_ptr<FrozenModel> teacher,
                  std::span<const std::vector<TokenId>> windows, const TuningOptions& options,
                  const TuningCallbacks& callbacks) {
  options.validate();
  check_windows(windows, options.batch);
  Tuning tuning(context, model, std::move(teacher), windows, options);
  TuningResult r;
  const Tuning::Score before = tuning.score();
  const Schedule schedule{
      ScheduleKind::kCosine, options.steps, options.steps / 10, options.learning_rate, 0, 0};
  Deck deck(windows.size(), options.seed);
  for (; r.steps < options.steps; ++r.steps) {
    const double loss = tuning.step(r.steps, schedule, deck);
    r.tokens += options.batch * static_cast<std::int64_t>(windows[0].size() - 1);
    if (callbacks.progress) callbacks.progress(r.steps + 1, loss);
  }
  Tuning::Score after = tuning.score();
  r.kept = !(after.loss < before.loss);
  if (r.kept) {
    tuning.take_back();
    after = before;
  }
  r.loss_before = before.loss;
  r.loss_after = after.loss;
  r.nll_before = before.nll;
  r.nll_after = after.nll;
  return r;
}

}  // namespace bitnet::training
