// Text out of tokens as it comes: whole characters only, and nothing that may yet become a stop string.
#include "bitnet/inference/stream.hpp"

#include <algorithm>
#include <utility>

#include "bitnet/core/error.hpp"

namespace bitnet::inference {

StopMatcher::StopMatcher(std::vector<std::string> stops) : stops_(std::move(stops)) {
  for (const std::string& stop : stops_)
    if (stop.empty()) throw Error(ErrorCode::kInvalidArgument, "a stop string is empty");
}

std::string StopMatcher::push(std::string_view text) {
  if (matched_) return {};
  if (stops_.empty()) return std::string(text);
  const std::size_t before = pending_.size();
  pending_ += text;
  if (const auto begin = find_completed(before)) {
    matched_ = true;
    std::string out = pending_.substr(0, *begin);
    pending_.clear();
    return out;
  }
  // The longest end that begins a stop string stays.
  std::size_t hold = 0;
  for (const std::string& stop : stops_) {
    for (std::size_t n = std::min(stop.size() - 1, pending_.size()); n > hold; --n)
      if (pending_.compare(pending_.size() - n, n, stop, 0, n) == 0) hold = n;
  }
  std::string out = pending_.substr(0, pending_.size() - hold);
  pending_.erase(0, pending_.size() - hold);
  return out;
}

std::optional<std::size_t> StopMatcher::find_completed(std::size_t from) const {
  for (std::size_t end = from + 1; end <= pending_.size(); ++end) {
    std::optional<std::size_t> begin;
    for (const std::string& stop : stops_) {
      if (stop.size() > end || pending_.compare(end - stop.size(), stop.size(), stop) != 0) continue;
      begin = std::min(begin.value_or(end), end - stop.size());
    }
    if (begin) return begin;
  }
  return std::nullopt;
}

std::string StopMatcher::finish() { return std::exchange(pending_, {}); }

TextStream::TextStream(std::shared_ptr<const Tokenizer> tokenizer, std::vector<std::string> stops,
                       bool special, bool at_start)
    : matcher_(std::move(stops)) {
  if (tokenizer == nullptr) return;
  vocab_size_ = tokenizer->vocab_size();
  decoder_.emplace(std::move(tokenizer), special, at_start);
}

std::string TextStream::push(TokenId token) {
  return token < vocab_size_ ? matcher_.push(decoder_->push(token)) : std::string();
}

std::string TextStream::finish() {
  if (!decoder_) return {};
  std::string out = matcher_.push(decoder_->finish());
  return out + matcher_.finish();
}

}  // namespace bitnet::inference
