// Tokenised text and its order.
#include "bitnet/training/data.hpp"

#include <algorithm>
#include <limits>

#include "bitnet/core/error.hpp"
#include "bitnet/core/io/atomic_file.hpp"

namespace bitnet::training {
namespace {

constexpr std::size_t kPieceBytes = 1 << 16;

/// Ends of pieces, at least kPieceBytes apart where the text allows: places where Tokenizer::splits_at_lines
/// says that it may be cut, else the end only.
std::vector<std::size_t> piece_ends(std::string_view text, bool at_lines) {
  if (!at_lines) return {text.size()};
  std::vector<std::size_t> ends;
  std::size_t at = 0;
  while (at < text.size()) {
    std::size_t end = at + kPieceBytes;
    for (;; ++end) {
      if (end >= text.size()) {
        end = text.size();
        break;
      }
      const auto c = static_cast<unsigned char>(text[end]);
      if (text[end - 1] == '\n' && c > ' ' && c < 0x80) break;
    }
    ends.push_back(end);
    at = end;
  }
  return ends;
}

}  // namespace

std::vector<TokenId> tokenize_text(const ExecutionContext& context, const Tokenizer& tokenizer,
                                   std::string_view text) {
  const std::vector<std::size_t> ends = piece_ends(text, tokenizer.splits_at_lines());
  std::vector<std::vector<TokenId>> pieces(ends.size());
  context.parallel_for(ends.size(), 1, [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) {
      const std::size_t from = i ? ends[i - 1] : 0;
      with_context("text from byte " + std::to_string(from), [&] {
        pieces[i] = tokenizer.encode(text.substr(from, ends[i] - from), {.add_bos = false});
      });
    }
  });
  std::size_t count = 0;
  for (const auto& p : pieces) count += p.size();
  std::vector<TokenId> tokens;
  tokens.reserve(count);
  for (const auto& p : pieces) tokens.insert(tokens.end(), p.begin(), p.end());
  return tokens;
}

std::vector<TokenId> tokenize_file(const ExecutionContext& context, const Tokenizer& tokenizer,
                                   const std::filesystem::path& path) {
  const std::string text = read_file(path);
  return with_context("tokenising '" + path.string() + "'",
                      [&] { return tokenize_text(context, tokenizer, text); });
}

void append_window(std::span<const TokenId> tokens, std::int64_t at, std::int64_t length, std::int32_t bos,
                   Batch& batch) {
  const auto window = tokens.subspan(static_cast<std::size_t>(at));
  for (std::int64_t i = 0; i < length; ++i) {
    const auto t = static_cast<std::size_t>(i);
    if (bos >= 0) {
      batch.inputs.push_back(i == 0 ? bos : window[t - 1]);
      batch.targets.push_back(window[t]);
    } else {
      batch.inputs.push_back(window[t]);
      batch.targets.push_back(window[t + 1]);
    }
  }
}

void Batch::clear() noexcept {
  inputs.clear();
  targets.clear();
  positions.clear();
}

void Sampler::begin_epoch() {
  epoch_rng_ = rng_.state();
  const std::int64_t count = cut(rng_);
  if (count > std::numeric_limits<std::uint32_t>::max())
    throw Error(ErrorCode::kUnsupported, "more than 2^32 training sequences");
  order_.resize(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < order_.size(); ++i) order_[i] = static_cast<std::uint32_t>(i);
  for (std::size_t i = order_.size(); i > 1; --i) std::swap(order_[i - 1], order_[rng_.below(i)]);
  position_ = 0;
}

void Sampler::next(std::int64_t sequences, Batch& batch) {
  batch.clear();
  for (std::int64_t s = 0; s < sequences; ++s) {
    if (position_ == order_.size()) {
      ++epoch_;
      begin_epoch();
    }
    append(order_[position_++], batch);
  }
}

void Sampler::set_state(const SamplerState& state) {
  rng_.set_state(state.epoch_rng);
  begin_epoch();
  if (state.position > order_.size())
    throw Error(ErrorCode::kInvalidArgument, "position " + std::to_string(state.position) +
                                                 " is outside an epoch of " + std::to_string(order_.size()) +
                                                 " sequences: another training text");
  position_ = state.position;
  epoch_ = state.epoch;
}

WindowSampler::WindowSampler(std::span<const TokenId> tokens, std::int64_t length, std::int32_t bos,
                             std::uint64_t seed)
    : Sampler(seed), tokens_(tokens), length_(length), bos_(bos) {
  // One window is lost to the phase, and one token to the last target.
  if (length <= 0 || static_cast<std::int64_t>(tokens.size()) < 2 * length + 1)
    throw Error(ErrorCode::kInvalidArgument, "the training text has " + std::to_string(tokens.size()) +
                                                 " tokens; sequences of " + std::to_string(length) +
                                                 " need at least " + std::to_string(2 * length + 1));
  begin_epoch();
}

std::int64_t WindowSampler::cut(Rng& rng) {
  const auto phase = static_cast<std::int64_t>(rng.below(static_cast<std::uint64_t>(length_)));
  windows_.emplace(tokens_.first(tokens_.size() - 1), length_, phase);
  return windows_->size();
}

void WindowSampler::append(std::int64_t sequence, Batch& batch) const {
  append_window(tokens_, windows_->begin_of(sequence), length_, bos_, batch);
}

}  // namespace bitnet::training
