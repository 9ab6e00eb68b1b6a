// From logits to a token: penalty, top-k, top-p, min-p, temperature, in this order. Sums are in double and
// ties go by id, so that a seed gives the same tokens everywhere.
#include "bitnet/inference/sampler.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "bitnet/core/error.hpp"

namespace bitnet::inference {
namespace {

void require(bool holds, const char* name, double value, const char* range) {
  if (!holds) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("sampling option {} = {}: expected {}", name, value, range));
  }
}

}  // namespace

void SamplerOptions::validate() const {
  // Comparisons with NaN are false, so NaN fails each of them.
  require(temperature >= 0 && std::isfinite(temperature), "temperature", temperature, "a number ≥ 0");
  require(top_p > 0 && top_p <= 1, "top_p", top_p, "a number in (0, 1]");
  require(min_p >= 0 && min_p <= 1, "min_p", min_p, "a number in [0, 1]");
  require(repeat_penalty > 0 && std::isfinite(repeat_penalty), "repeat_penalty", repeat_penalty,
          "a number > 0");
  require(repeat_last_n >= 0 && repeat_last_n <= kMaxRepeatLastN, "repeat_last_n", repeat_last_n,
          "a whole number from 0 to 1048576");
}

Sampler::Sampler(const SamplerOptions& options, std::int64_t vocab_size)
    : options_(options), rng_(options.seed) {
  options.validate();
  candidates_.resize(static_cast<std::size_t>(vocab_size));
  if (options.repeat_penalty != 1.0f) window_.resize(static_cast<std::size_t>(options.repeat_last_n));
}

void Sampler::accept(TokenId token) noexcept {
  if (window_.empty()) return;
  window_[window_next_] = token;
  window_next_ = (window_next_ + 1) % window_.size();
  window_size_ = std::min(window_size_ + 1, window_.size());
}

// Keskar et al. 2019 (CTRL), section 4.1, with llama.cpp's form for negative logits. Each token once, however
// often it occurs in the window.
void Sampler::penalise(std::span<const float> logits) {
  bool any_finite = false;
  for (std::size_t i = 0; i < n_; ++i) {
    const float logit = logits[i];
    if (std::isnan(logit) ||
        logit == HUGE_VALF)  // −∞ is a token that cannot come; these are a fault upstream
      throw Error(ErrorCode::kInternal, fmt::format("logit {} is {}", i, logit));
    any_finite = any_finite || std::isfinite(logit);
    candidates_[i] = {static_cast<TokenId>(i), logit, 0.0};
  }
  if (!any_finite) throw Error(ErrorCode::kInternal, "no logit is finite");
  for (std::size_t w = 0; w < window_size_; ++w) {
    const auto id = static_cast<std::size_t>(window_[w]);
    if (id >= n_) continue;
    const float logit = logits[id];
    candidates_[id].logit = logit <= 0 ? logit * options_.repeat_penalty : logit / options_.repeat_penalty;
  }
}

TokenId Sampler::greedy() const {
  std::size_t best = 0;
  for (std::size_t i = 1; i < n_; ++i)
    if (candidates_[i].logit > candidates_[best].logit) best = i;
  return candidates_[best].id;
}

// From here on the candidates are sorted: largest logit first, lowest id on ties, so that equal logits are
// cut the same way everywhere.
void Sampler::keep_top_k() {
  const auto before = [](const Candidate& a, const Candidate& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
  };
  const auto begin = candidates_.begin(), end = begin + static_cast<std::ptrdiff_t>(n_);
  const std::size_t k = options_.top_k <= 0 ? n_ : std::min(n_, static_cast<std::size_t>(options_.top_k));
  if (k == n_)
    std::sort(begin, end, before);  // partial_sort is a heap sort then, three times slower
  else
    std::partial_sort(begin, begin + static_cast<std::ptrdiff_t>(k), end, before);
  n_ = k;
}

void Sampler::keep_top_p() {
  if (options_.top_p >= 1) return;
  double sum = 0, cumulative = 0;
  for (std::size_t i = 0; i < n_; ++i) {
    candidates_[i].p = std::exp(static_cast<double>(candidates_[i].logit) - candidates_[0].logit);
    sum += candidates_[i].p;
  }
  for (std::size_t i = 0; i < n_; ++i) {
    cumulative += candidates_[i].p;
    if (cumulative >= options_.top_p * sum) {
      n_ = i + 1;
      return;
    }
  }
}

void Sampler::keep_min_p() {
  if (options_.min_p <= 0) return;
  const double least = candidates_[0].logit + std::log(static_cast<double>(options_.min_p));
  while (n_ > 1 && candidates_[n_ - 1].logit < least) --n_;
}

TokenId Sampler::draw() {
  double sum = 0;
  for (std::size_t i = 0; i < n_; ++i) {
    const double above = static_cast<double>(candidates_[i].logit) - candidates_[0].logit;
    candidates_[i].p = std::exp(above / options_.temperature);
    sum += candidates_[i].p;
  }
  double left = rng_.uniform() * sum;
  for (std::size_t i = 0; i < n_; ++i) {
    left -= candidates_[i].p;
    if (left < 0) return candidates_[i].id;
  }
  return candidates_[0].id;  // only by rounding: uniform() < 1
}

TokenId Sampler::sample(std::span<const float> logits) {
  if (logits.size() != candidates_.size()) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("{} logits for a sampler of {} tokens", logits.size(), candidates_.size()));
  }
  n_ = logits.size();
  penalise(logits);
  if (options_.temperature == 0) return greedy();
  keep_top_k();
  keep_top_p();
  keep_min_p();
  return draw();
}

}  // namespace bitnet::inference
