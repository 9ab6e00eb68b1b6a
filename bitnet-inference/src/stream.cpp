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
  pending_ += text;
  // `hold`: where the earliest stop string begins that is there, or that the end of the text might be the
  // begin of.
  std::size_t hold = pending_.size();
  for (const std::string& stop : stops_) {
    for (std::size_t i = 0; i < hold; ++i) {
      const std::size_t n = std::min(stop.size(), pending_.size() - i);
      if (pending_.compare(i, n, stop, 0, n) == 0) hold = i;
    }
  }
  for (const std::string& stop : stops_)
    if (pending_.compare(hold, stop.size(), stop) == 0) matched_ = true;
  std::string out = pending_.substr(0, hold);
  pending_.erase(0, matched_ ? pending_.size() : hold);
  return out;
}

std::string StopMatcher::finish() {
  std::string out = std::exchange(pending_, {});
  return matched_ ? std::string() : out;
}

TextStream::TextStream(std::shared_ptr<const Tokenizer> tokenizer, std::vector<std::string> stops,
                       bool special)
    : matcher_(std::move(stops)) {
  if (tokenizer != nullptr) decoder_.emplace(std::move(tokenizer), special);
}

std::string TextStream::push(TokenId token) {
  return decoder_ ? matcher_.push(decoder_->push(token)) : std::string();
}

std::string TextStream::finish() {
  if (!decoder_) return {};
  std::string out = matcher_.push(decoder_->finish());
  return out + matcher_.finish();
}

}  // namespace bitnet::inference
