// See batch_prompts.hpp.
#include "batch_prompts.hpp"

#include <algorithm>
#include <mutex>
#include <ostream>
#include <utility>

#include "bitnet/core/text/utf8.hpp"
#include "chat_cutting.hpp"
#include "common.hpp"
#include "loading.hpp"

namespace bitnet::cli {

void BatchPrompts::begin(const inference::Model& model, std::int64_t n_ctx,
                         const std::vector<BatchItem>& items) {
  static_cast<void>(model.require_tokenizer());
  tokenizer_ = model.tokenizer();
  n_ctx_ = n_ctx;
  const auto is_chat = [](const BatchItem& item) { return !item.messages.empty(); };
  if (!values_.has(opt::kChatTemplate) && std::none_of(items.begin(), items.end(), is_chat)) return;
  try {
    chat_format_ = chat_template(values_, model);
  } catch (const Error& e) {
    chat_problem_ = e;
  }
}

std::vector<TokenId> BatchPrompts::encode(const BatchItem& item,
                                          inference::GenerationOptions& options) const {
  const bool special = values_.flag(opt::kSpecial);
  text::require_utf8(item.prompt, "the prompt");
  std::vector<ChatMessage> messages = item.messages;
  if (messages.empty() && values_.has(opt::kChatTemplate)) messages.push_back({"user", item.prompt});
  if (messages.empty()) {
    auto ids = tokenizer_->encode(item.prompt, {.add_bos = true, .parse_special = special});
    if (ids.empty()) throw Error(ErrorCode::kInvalidArgument, "the prompt is empty");
    return ids;
  }
  if (chat_problem_) throw *chat_problem_;
  if (values_.has(opt::kSystem) && messages.front().role != "system")
    messages.insert(messages.begin(), {"system", values_.text(opt::kSystem)});
  options.stop_tokens = chat_format_->stop_tokens(*tokenizer_);
  options.strip_leading_space = true;
  if (values_.text(opt::kTruncate) == "none")
    return chat_format_->encode(*tokenizer_, messages, true, special);
  CutChat chat = encode_chat_within(*chat_format_, *tokenizer_, std::move(messages), special,
                                    limit(options.max_tokens), cut_side());
  say_cut(item, chat.cut);
  return std::move(chat.ids);
}

SequenceSide BatchPrompts::cut_side() const {
  return values_.text(opt::kTruncate) == "left" ? SequenceSide::kLeft : SequenceSide::kRight;
}

/// --truncate: what leaves room for max_tokens, or for one where the context is not larger than that.
std::int64_t BatchPrompts::limit(std::int64_t max_tokens) const {
  return n_ctx_ - (max_tokens >= 1 && max_tokens < n_ctx_ - 1 ? max_tokens : 1);
}

/// --truncate of a plain prompt.
void BatchPrompts::cut_to_context(std::vector<TokenId>& ids, std::int64_t max_tokens,
                                  const BatchItem& item) const {
  if (values_.text(opt::kTruncate) == "none") return;
  const std::int64_t most = limit(max_tokens);
  const bool keep_bos = most > 1 && tokenizer_->bos() && ids.front() == *tokenizer_->bos();
  say_cut(item, truncate(ids, most, cut_side(), keep_bos ? 1 : 0));
}

void BatchPrompts::say_cut(const BatchItem& item, std::int64_t tokens) const {
  const std::lock_guard lock(output_mutex());
  if (tokens > 0)
    io_.err << "note: item " << quoted(item.id.text) << ": " << grouped(tokens)
            << " tokens of the prompt were cut off\n";
}

inference::Request BatchPrompts::request_of(const BatchItem& item, std::optional<std::int64_t>& seed) const {
  inference::Request request;
  request.options = generation_options(values_, io_);
  seed = choose_seed(values_);
  bool own_stops = false;
  for (const auto& [option, text] : item.overrides) {
    if (option == &opt::kStop && !std::exchange(own_stops, true)) request.options.stop.clear();
    apply_override(*option, text, request.options);
    if (option == &opt::kSeed) seed = parse_integer(text).value();
  }
  request.options.sampling.seed = static_cast<std::uint64_t>(*seed);
  request.prompt = encode(item, request.options);
  if (item.messages.empty() && !values_.has(opt::kChatTemplate))
    cut_to_context(request.prompt, request.options.max_tokens, item);
  return request;
}

}  // namespace bitnet::cli
