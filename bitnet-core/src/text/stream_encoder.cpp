// See stream_encoder.hpp.
#include "bitnet/core/text/stream_encoder.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "bitnet/core/error.hpp"
#include "text/text_cuts.hpp"
#include "text/utf8.hpp"

namespace bitnet {
namespace {

[[noreturn]] void refuse_utf8(std::uint64_t at, SourceLocation where = SourceLocation::current()) {
  throw Error(ErrorCode::kInvalidArgument, fmt::format("invalid UTF-8 at byte {}", at), where);
}

}  // namespace

StreamEncoder::StreamEncoder(std::shared_ptr<const Tokenizer> tokenizer, const EncodeOptions& options,
                             const StreamLimits& limits)
    : tokenizer_(std::move(tokenizer)),
      pieces_(dynamic_cast<const text::PieceEncoder*>(tokenizer_.get())),
      options_(options),
      limits_(limits),
      target_(limits.piece) {
  if (limits.piece < 1 || limits.piece > limits.most)
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("expected pieces of 1 to {} bytes, got {}", limits.most, limits.piece));
}

void StreamEncoder::push(std::string_view bytes, std::vector<TokenId>& ids) {
  while (!bytes.empty()) {
    const std::size_t n = std::min(bytes.size(), target_ - pending_.size());
    pending_.append(bytes.substr(0, n));
    bytes.remove_prefix(n);
    check();
    if (pending_.size() < target_) return;
    const std::string_view whole = std::string_view(pending_).substr(0, checked_);
    const std::size_t cut =
        pieces_ != nullptr ? pieces_->last_cut(whole, options_.parse_special) : std::string_view::npos;
    if (cut != std::string_view::npos) {
      encode(cut, ids);
      // What is left has no such place but at its end: it is not looked through for each byte that comes.
      target_ = std::clamp(2 * pending_.size(), limits_.piece, limits_.most);
    } else if (target_ < limits_.most) {
      target_ = target_ > limits_.most / 2 ? limits_.most : 2 * target_;
    } else {
      throw Error(ErrorCode::kUnsupported,
                  fmt::format("the {} bytes from byte {} on have no place where a text of this vocabulary "
                              "may be cut (a space or a line end between words, where its rules are known), "
                              "and no more are encoded as one",
                              pending_.size(), done_));
    }
  }
}

void StreamEncoder::finish(std::vector<TokenId>& ids) {
  if (checked_ < pending_.size()) refuse_utf8(done_ + checked_);
  encode(pending_.size(), ids);
  if (options_.add_eos && tokenizer_->adds_eos()) ids.push_back(tokenizer_->eos().front());
}

/// Takes the first `bytes` of what is pending.
void StreamEncoder::encode(std::size_t bytes, std::vector<TokenId>& ids) {
  const std::string_view piece = std::string_view(pending_).substr(0, bytes);
  if (!begun_ && options_.add_bos && tokenizer_->adds_bos()) ids.push_back(*tokenizer_->bos());
  if (pieces_ != nullptr) {
    pieces_->encode_piece(piece, options_.parse_special, begun_, ids);
  } else {
    EncodeOptions options = options_;
    options.add_bos = options.add_eos = false;
    const std::vector<TokenId> all = tokenizer_->encode(piece, options);
    ids.insert(ids.end(), all.begin(), all.end());
  }
  begun_ = true;
  pending_.erase(0, bytes);
  checked_ -= bytes;
  done_ += bytes;
}

/// Moves checked_ to the last whole character.
void StreamEncoder::check() {
  const std::string_view rest = std::string_view(pending_).substr(checked_);
  const std::size_t at = text::find_invalid_utf8(rest);
  if (at == std::string_view::npos) {
    checked_ = pending_.size();
    return;
  }
  if (text::utf8_at(rest, at).kind != text::Utf8Unit::Kind::kCutOff) refuse_utf8(done_ + checked_ + at);
  checked_ += at;
}

}  // namespace bitnet
