// Softmax in double, and two sources side by side.
#include "bitnet/quant/logit_metrics.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "bitnet/core/error.hpp"

namespace bitnet::quant {
namespace {

/// log Σ exp(x)
double log_sum(std::span<const float> x) {
  const double most = static_cast<double>(*std::max_element(x.begin(), x.end()));
  double sum = 0;
  for (const float v : x) sum += std::exp(static_cast<double>(v) - most);
  return most + std::log(sum);
}

[[noreturn]] void refuse(std::string message, SourceLocation where = SourceLocation::current()) {
  throw Error(ErrorCode::kInvalidArgument, "comparing logits: " + std::move(message), where);
}

/// Positions that a source gave and nobody took yet.
class Queue {
 public:
  explicit Queue(LogitSource& source)
      : source_(source), width_(static_cast<std::size_t>(source.vocab_size())) {}

  /// False at the end.
  bool fill() {
    if (at_ < targets_.size()) return true;
    at_ = 0;
    do {
      if (!source_.next(rows_, targets_)) return false;
      if (rows_.size() != targets_.size() * width_)
        refuse(fmt::format("{} logits for {} positions of {}", rows_.size(), targets_.size(), width_));
    } while (targets_.empty());
    return true;
  }
  std::span<const float> row() const { return std::span(rows_).subspan(at_ * width_, width_); }
  std::int32_t target() const { return targets_[at_]; }
  void pop() { ++at_; }

 private:
  LogitSource& source_;
  std::size_t width_, at_ = 0;
  std::vector<float> rows_;
  std::vector<std::int32_t> targets_;
};

}  // namespace

void LogitMetrics::add(std::span<const float> original, std::span<const float> other, std::int32_t target) {
  if (original.empty() || original.size() != other.size() || target < 0 ||
      static_cast<std::size_t>(target) >= original.size())
    refuse(fmt::format("{} and {} logits, token {}", original.size(), other.size(), target));
  const auto bad = [](float v) { return !std::isfinite(v); };
  if (std::any_of(original.begin(), original.end(), bad) || std::any_of(other.begin(), other.end(), bad))
    refuse(fmt::format("a logit of position {} is not finite", positions));
  const double a = log_sum(original), b = log_sum(other);
  double sum = 0;
  for (std::size_t i = 0; i < original.size(); ++i) {
    const double p = static_cast<double>(original[i]) - a, q = static_cast<double>(other[i]) - b;
    sum += std::exp(p) * (p - q);
  }
  sum = std::max(sum, 0.0);  // roundings alone make it negative
  const auto top = [](std::span<const float> x) { return std::max_element(x.begin(), x.end()) - x.begin(); };
  const auto t = static_cast<std::size_t>(target);
  ++positions;
  kl += sum;
  largest_kl = std::max(largest_kl, sum);
  same_top += top(original) == top(other) ? 1 : 0;
  nll_original += a - static_cast<double>(original[t]);
  nll_other += b - static_cast<double>(other[t]);
}

double LogitMetrics::mean_kl() const noexcept {
  return positions > 0 ? kl / static_cast<double>(positions) : 0;
}

double LogitMetrics::top1_agreement() const noexcept {
  return positions > 0 ? static_cast<double>(same_top) / static_cast<double>(positions) : 1;
}

double LogitMetrics::perplexity_original() const noexcept {
  return positions > 0 ? std::exp(nll_original / static_cast<double>(positions)) : 1;
}

double LogitMetrics::perplexity_other() const noexcept {
  return positions > 0 ? std::exp(nll_other / static_cast<double>(positions)) : 1;
}

LogitMetrics compare_logits(LogitSource& original, LogitSource& other) {
  if (original.vocab_size() != other.vocab_size() || original.vocab_size() < 1)
    refuse(fmt::format("vocabularies of {} and {}", original.vocab_size(), other.vocab_size()));
  LogitMetrics metrics;
  Queue a(original), b(other);
  for (;;) {
    const bool more = a.fill();
    if (more != b.fill())
      refuse(fmt::format("one source ends after {} positions, the other goes on", metrics.positions));
    if (!more) return metrics;
    if (a.target() != b.target())
      refuse(
          fmt::format("position {}: the texts differ, {} and {}", metrics.positions, a.target(), b.target()));
    metrics.add(a.row(), b.row(), a.target());
    a.pop();
    b.pop();
  }
}

}  // namespace bitnet::quant
