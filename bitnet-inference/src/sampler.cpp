// From logits to a token: penalty, top-k, top-p, min-p, temperature, in this order. Sums are in double and
// ties go by id, so that a seed gives the same tokens everywhere.
#include "bitnet/inference/sampler.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "bitnet/core/error.hpp"

namespace bitnet::inference {
namespace {

void require(bool holds, const char* name, double value, const char* range,
             SourceLocation where = SourceLocation::current()) {
  if (!holds) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("sampling option {} = {}: expected {}", name, value, range), where);
  }
}

/// Logits of a block: what is below the best ones so far is skipped a block at a time.
constexpr std::size_t kBlock = 64;

/// A float's place in the order of floats, as an integer: the compiler makes vectors of integer comparisons.
/// −0 comes before +0; NaNs lie beyond the infinities on either side.
std::int32_t order_key(float x) noexcept {
  const auto bits = std::bit_cast<std::int32_t>(x);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}

std::int32_t largest_key(const float* x, std::size_t n) noexcept {
  std::int32_t largest = std::numeric_limits<std::int32_t>::min();
  for (std::size_t i = 0; i < n; ++i) largest = std::max(largest, order_key(x[i]));
  return largest;
}

std::int32_t least_key(const float* x, std::size_t n) noexcept {
  std::int32_t least = std::numeric_limits<std::int32_t>::max();
  for (std::size_t i = 0; i < n; ++i) least = std::min(least, order_key(x[i]));
  return least;
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
    : options_(options), rng_(options.seed), vocab_size_(static_cast<std::size_t>(vocab_size)) {
  options.validate();
  const auto top_k = static_cast<std::size_t>(std::max<std::int64_t>(options.top_k, 0));
  if (options.temperature > 0) candidates_.resize(top_k == 0 ? vocab_size_ : std::min(vocab_size_, top_k));
  block_max_.resize((vocab_size_ + kBlock - 1) / kBlock);
  if (options.repeat_penalty != 1.0f) {
    window_.resize(static_cast<std::size_t>(options.repeat_last_n));
    penalised_.resize(vocab_size_);
  }
}

void Sampler::accept(TokenId token) noexcept {
  if (window_.empty()) return;
  window_[window_next_] = token;
  window_next_ = (window_next_ + 1) % window_.size();
  window_size_ = std::min(window_size_ + 1, window_.size());
}

// Looks at every logit once: the largest of each block, and that all are numbers.
void Sampler::scan(std::span<const float> logits) {
  const std::int32_t infinity = order_key(HUGE_VALF), minus_infinity = order_key(-HUGE_VALF);
  std::int32_t largest = std::numeric_limits<std::int32_t>::min();
  for (std::size_t b = 0; b < block_max_.size(); ++b) {
    const float* const block = logits.data() + b * kBlock;
    const std::size_t n = std::min(kBlock, vocab_size_ - b * kBlock);
    block_max_[b] = largest_key(block, n);
    largest = std::max(largest, block_max_[b]);
    // −∞ is a token that cannot come; +∞ and NaN are a fault upstream.
    if (block_max_[b] < infinity && least_key(block, n) >= minus_infinity) continue;
    for (std::size_t i = b * kBlock;; ++i) {
      if (std::isnan(logits[i]) || logits[i] == HUGE_VALF)
        throw Error(ErrorCode::kInternal, fmt::format("logit {} is {}", i, logits[i]));
    }
  }
  if (largest <= minus_infinity) throw Error(ErrorCode::kInternal, "no logit is finite");
  logits_ = logits;
}

// Keskar et al. 2019 (CTRL), section 4.1, with llama.cpp's form for negative logits. Each token once, however
// often it occurs in the window.
void Sampler::penalise() {
  if (window_size_ == 0) return;
  std::copy(logits_.begin(), logits_.end(), penalised_.begin());
  for (std::size_t w = 0; w < window_size_; ++w) {
    const auto id = static_cast<std::size_t>(window_[w]);
    if (id >= vocab_size_) continue;
    const float logit = logits_[id];
    penalised_[id] = logit <= 0 ? logit * options_.repeat_penalty : logit / options_.repeat_penalty;
  }
  for (std::size_t w = 0; w < window_size_; ++w) {
    const std::size_t b = static_cast<std::size_t>(window_[w]) / kBlock;
    if (b >= block_max_.size()) continue;
    block_max_[b] = largest_key(penalised_.data() + b * kBlock, std::min(kBlock, vocab_size_ - b * kBlock));
  }
  logits_ = penalised_;
}

TokenId Sampler::greedy() const {
  std::size_t best = 0;
  for (std::size_t b = 0; b < block_max_.size(); ++b) {
    if (block_max_[b] <= order_key(logits_[best])) continue;
    const std::size_t end = std::min(vocab_size_, (b + 1) * kBlock);
    for (std::size_t i = b * kBlock; i < end; ++i)
      if (logits_[i] > logits_[best]) best = i;
  }
  return static_cast<TokenId>(best);
}

// From here on the candidates are sorted: largest logit first, lowest id on ties, so that equal logits are
// cut the same way everywhere.
void Sampler::keep_top_k() {
  const auto before = [](const Candidate& a, const Candidate& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
  };
  const auto candidate = [&](std::size_t i) { return Candidate{static_cast<TokenId>(i), logits_[i], 0.0}; };
  const auto begin = candidates_.begin(), end = candidates_.end();
  n_ = candidates_.size();
  for (std::size_t i = 0; i < n_; ++i) candidates_[i] = candidate(i);
  if (n_ < vocab_size_) {
    // A heap whose top is the worst of the best; a later id replaces it only with a larger logit.
    std::make_heap(begin, end, before);
    for (std::size_t b = n_ / kBlock; b < block_max_.size(); ++b) {
      if (block_max_[b] <= order_key(begin->logit)) continue;
      const std::size_t last = std::min(vocab_size_, (b + 1) * kBlock);
      for (std::size_t i = std::max(n_, b * kBlock); i < last; ++i) {
        if (!(logits_[i] > begin->logit)) continue;
        std::pop_heap(begin, end, before);
        candidates_.back() = candidate(i);
        std::push_heap(begin, end, before);
      }
    }
  }
  std::sort(begin, end, before);
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

// A penalty above 1 lowers logits: of the largest top_k + |window|, top_k at least are not in the window and
// stay above everything that is not among them.
std::int64_t Sampler::needed_logits() const noexcept {
  if (options_.repeat_penalty < 1) return 0;
  const std::int64_t kept = options_.temperature == 0 ? 1 : options_.top_k;
  return kept <= 0 ? 0 : kept + static_cast<std::int64_t>(window_.size());
}

TokenId Sampler::sample(std::span<const float> logits) {
  if (logits.size() != vocab_size_) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("{} logits for a sampler of {} tokens", logits.size(), vocab_size_));
  }
  scan(logits);
  penalise();
  if (options_.temperature == 0) return greedy();
  keep_top_k();
  keep_top_p();
  keep_min_p();
  return draw();
}

}  // namespace bitnet::inference
