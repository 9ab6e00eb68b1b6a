// What all tokenizers share: decoding, the streaming decoder, tokenizer_config.json, well-known names.
// Finding the files is tokenizer_load.cpp.
#include "bitnet/core/text/tokenizer.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "bitnet/core/error.hpp"
#include "text/spec.hpp"
#include "text/utf8.hpp"

namespace bitnet {

namespace text {

std::string byte_token(unsigned char byte) {
  constexpr char kHex[] = "0123456789ABCDEF";
  return {'<', '0', 'x', kHex[byte >> 4], kHex[byte & 15], '>'};
}

std::optional<unsigned char> parse_byte_token(std::string_view token) noexcept {
  if (token.size() != 6 || token.substr(0, 3) != "<0x" || token[5] != '>') return std::nullopt;
  unsigned value = 0;
  for (const char c : token.substr(3, 2)) {
    const bool digit = c >= '0' && c <= '9';
    if (!digit && !(c >= 'A' && c <= 'F')) return std::nullopt;
    value = value * 16 + static_cast<unsigned>(digit ? c - '0' : c - 'A' + 10);
  }
  return static_cast<unsigned char>(value);
}

void find_well_known_tokens(TokenizerSpec& spec) {
  const auto control = [&](std::string_view name) -> std::optional<TokenId> {
    for (std::size_t i = 0; i < spec.tokens.size(); ++i)
      if (spec.types[i] == TokenType::kControl && spec.tokens[i] == name) return static_cast<TokenId>(i);
    return std::nullopt;
  };
  for (const std::string_view name : {"<|begin_of_text|>", "<s>", "<bos>", "<|startoftext|>"})
    if (!spec.bos) spec.bos = control(name);
  const auto add_eos = [&](std::string_view name) {
    const auto id = control(name);
    if (id && std::find(spec.eos.begin(), spec.eos.end(), *id) == spec.eos.end()) spec.eos.push_back(*id);
  };
  if (spec.eos.empty()) add_eos("</s>");
  for (const std::string_view name : {"<|end_of_text|>", "<|endoftext|>", "<eos>", "<|eot_id|>", "<|eom_id|>",
                                      "<|im_end|>", "<|end|>", "<end_of_turn>"})
    add_eos(name);
}

}  // namespace text

std::string Tokenizer::decode(std::span<const TokenId> ids, bool special) const {
  std::string bytes;
  for (const TokenId id : ids) bytes += token_bytes(id, special);
  std::string_view view = bytes;
  if (strips_leading_space() && view.substr(0, 1) == " ") view.remove_prefix(1);
  std::string out;
  out.reserve(view.size());
  text::append_repaired(out, view, true);
  return out;
}

std::string Tokenizer::config_json() const {
  nlohmann::ordered_json config;
  config["add_bos_token"] = adds_bos_;
  if (adds_eos_) config["add_eos_token"] = true;
  if (bos_) config["bos_token"] = std::string(token(*bos_));
  if (!eos_.empty()) config["eos_token"] = std::string(token(eos_.front()));
  if (!chat_template_.empty()) config["chat_template"] = chat_template_;
  config["clean_up_tokenization_spaces"] = false;
  config["tokenizer_class"] = "PreTrainedTokenizerFast";
  return config.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

StreamDecoder::StreamDecoder(std::shared_ptr<const Tokenizer> tokenizer, bool special, bool at_start)
    : tokenizer_(std::move(tokenizer)), special_(special), at_start_(at_start) {}

std::string StreamDecoder::push(TokenId id) {
  std::string bytes = tokenizer_->token_bytes(id, special_);
  if (at_start_ && !bytes.empty()) {
    if (tokenizer_->strips_leading_space() && bytes.front() == ' ') bytes.erase(0, 1);
    at_start_ = false;
  }
  pending_ += bytes;
  std::string out;
  const std::size_t rest = text::append_repaired(out, pending_, false);
  pending_.erase(0, pending_.size() - rest);
  return out;
}

std::string StreamDecoder::finish() {
  std::string out;
  text::append_repaired(out, pending_, true);
  pending_.clear();
  return out;
}

}  // namespace bitnet
