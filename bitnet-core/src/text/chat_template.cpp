// The chat formats we know, each a function from messages to tokens. The text of a turn's head is encoded
// together with the message, as it is when a rendered template is tokenised; control tokens are ids, so that
// a message can never spell one unless the caller asks for it.
#include "bitnet/core/text/chat_template.hpp"

#include <algorithm>
#include <initializer_list>
#include <iterator>

#include "bitnet/core/error.hpp"
#include "text/template_reader.hpp"
#include "text/utf8.hpp"

namespace bitnet {
namespace {

// What the templates of these formats write besides role and content, in their order.
constexpr std::string_view kLlama3Text =
    "<|start_header_id|><|end_header_id|>\n\n<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n";
constexpr std::string_view kBitnetText = ": <|eot_id|>Assistant: ";
constexpr std::string_view kHowToChoose = "choose one with --chat-template NAME (";

std::string name_list() {
  std::string list;
  for (const std::string_view name : ChatTemplate::names())
    list += (list.empty() ? "" : ", ") + std::string(name);
  return list;
}

/// What a base model can do with --chat-template: only formats whose control tokens it has are named.
std::string choice(const Tokenizer& tokenizer) {
  std::string list;
  const ChatMessage message{"user", ""};
  for (const std::string_view name : ChatTemplate::names()) {
    try {
      static_cast<void>(ChatTemplate::by_name(name)->encode(tokenizer, {&message, 1}));
      list += (list.empty() ? "" : ", ") + std::string(name);
    } catch (const Error&) {  // lacks a control token
    }
  }
  if (!list.empty()) return ", or " + std::string(kHowToChoose) + list + ")";
  return "; --chat-template does not help, the vocabulary lacks the control tokens of " + name_list();
}

bool contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

// "bitnet-b1.58" in GGUF, "BitNetForCausalLM" in config.json.
bool is_bitnet(std::string_view architecture) {
  constexpr std::string_view kName = "bitnet";
  const auto same = [](char a, char b) { return a == b || (a >= 'A' && a <= 'Z' && a - 'A' + 'a' == b); };
  return architecture.size() >= kName.size() && std::equal(kName.begin(), kName.end(), architecture.begin(),
                                                           [&](char b, char a) { return same(a, b); });
}

// Whether a template is one loop over the messages that writes exactly `text`, through these filters. What
// else it mentions (tools, dates, conditions on roles, a default system message) would be rendered otherwise
// than we do, so such a template is not the format.
bool is_plain_loop(const text::TemplateContent& content, std::string_view text,
                   std::initializer_list<std::string_view> filters) {
  constexpr std::string_view kNames[] = {"set",
                                         "for",
                                         "in",
                                         "endfor",
                                         "if",
                                         "endif",
                                         "loop",
                                         "index0",
                                         "first",
                                         "messages",
                                         "message",
                                         "role",
                                         "0",
                                         "bos_token",
                                         "loop_messages",
                                         "content",
                                         "true",
                                         "True",
                                         "is",
                                         "defined",
                                         "and",
                                         "add_generation_prompt"};
  for (const std::string& name : content.names)
    if (std::find(std::begin(kNames), std::end(kNames), name) == std::end(kNames) &&
        std::find(filters.begin(), filters.end(), name) == filters.end())
      return false;
  for (const std::string_view filter : filters)
    if (!content.has(filter)) return false;
  std::string_view own = content.text;
  constexpr std::string_view kBos = "<|begin_of_text|>";
  if (own.substr(0, kBos.size()) == kBos) own.remove_prefix(kBos.size());
  return content.plain && own == text;
}

/// What the formats share: needed tokens, roles, encoding of plain text.
class Format : public ChatTemplate {
 public:
  std::string_view name() const noexcept override { return name_; }

  std::vector<TokenId> stop_tokens(const Tokenizer& tokenizer) const override {
    std::vector<TokenId> stop = {token(tokenizer, "<|eot_id|>")};
    for (const TokenId id : tokenizer.eos())
      if (std::find(stop.begin(), stop.end(), id) == stop.end()) stop.push_back(id);
    return stop;
  }

 protected:
  explicit Format(std::string_view name) : name_(name) {}

  TokenId token(const Tokenizer& tokenizer, std::string_view text) const {
    const auto id = tokenizer.find(text);
    if (!id || tokenizer.type(*id) == TokenType::kNormal)
      throw Error(ErrorCode::kUnsupported, "chat template '" + std::string(name_) +
                                               "' needs the control token '" + std::string(text) +
                                               "', which the vocabulary lacks");
    return *id;
  }
  TokenId bos(const Tokenizer& tokenizer) const {
    if (const auto id = tokenizer.bos()) return *id;
    return token(tokenizer, "<|begin_of_text|>");
  }
  void check_role(const ChatMessage& message) const {
    for (const std::string_view role : {"system", "user", "assistant"})
      if (message.role == role) return;
    throw Error(ErrorCode::kInvalidArgument,
                "unknown role '" + message.role + "' (expected system, user or assistant)");
  }
  static void append(const Tokenizer& tokenizer, std::string_view text, bool parse_special,
                     std::vector<TokenId>& ids) {
    EncodeOptions options;
    options.add_bos = false;
    options.parse_special = parse_special;
    const auto more = tokenizer.encode(text, options);
    ids.insert(ids.end(), more.begin(), more.end());
  }

 private:
  std::string_view name_;
};

/// BitNet b1.58 2B-4T: "System: …<|eot_id|>User: …<|eot_id|>Assistant: ", nothing between the turns.
class BitnetFormat final : public Format {
 public:
  BitnetFormat() : Format("bitnet") {}
  std::string_view source() const noexcept override {
    return "{{ bos_token }}{% for message in messages %}{{ message['role'] | capitalize }}: "
           "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
           "{% if add_generation_prompt %}Assistant: {% endif %}";
  }
  std::vector<TokenId> encode(const Tokenizer& tokenizer, std::span<const ChatMessage> messages,
                              bool add_generation_prompt, bool parse_special) const override {
    const TokenId end = token(tokenizer, "<|eot_id|>");
    std::vector<TokenId> ids = {bos(tokenizer)};
    for (const ChatMessage& m : messages) {
      check_role(m);
      std::string head = m.role;
      head[0] = static_cast<char>(head[0] - 'a' + 'A');
      append(tokenizer, head + ": " + std::string(text::trim(m.content)), parse_special, ids);
      ids.push_back(end);
    }
    if (add_generation_prompt) append(tokenizer, "Assistant: ", false, ids);
    return ids;
  }
};

/// Llama 3: "<|start_header_id|>role<|end_header_id|>\n\n…<|eot_id|>".
class Llama3Format final : public Format {
 public:
  Llama3Format() : Format("llama3") {}
  std::string_view source() const noexcept override {
    return "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] "
           "}}<|end_header_id|>"
           "{{ '\\n\\n' }}{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
           "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>{{ '\\n\\n' }}{% "
           "endif %}";
  }
  std::vector<TokenId> encode(const Tokenizer& tokenizer, std::span<const ChatMessage> messages,
                              bool add_generation_prompt, bool parse_special) const override {
    const TokenId end = token(tokenizer, "<|eot_id|>");
    const TokenId open = token(tokenizer, "<|start_header_id|>"),
                  close = token(tokenizer, "<|end_header_id|>");
    std::vector<TokenId> ids = {bos(tokenizer)};
    const auto header = [&](std::string_view role) {
      ids.push_back(open);
      append(tokenizer, role, false, ids);
      ids.push_back(close);
    };
    for (const ChatMessage& m : messages) {
      check_role(m);
      header(m.role);
      append(tokenizer, "\n\n" + std::string(text::trim(m.content)), parse_special, ids);
      ids.push_back(end);
    }
    if (!add_generation_prompt) return ids;
    header("assistant");
    append(tokenizer, "\n\n", false, ids);
    return ids;
  }
};

}  // namespace

std::vector<std::string_view> ChatTemplate::names() { return {"bitnet", "llama3"}; }

std::shared_ptr<const ChatTemplate> ChatTemplate::by_name(std::string_view name) {
  if (name == "bitnet") return std::make_shared<const BitnetFormat>();
  if (name == "llama3") return std::make_shared<const Llama3Format>();
  throw Error(ErrorCode::kNotFound,
              "no chat template is called '" + std::string(name) + "' (there are: " + name_list() + ")");
}

std::shared_ptr<const ChatTemplate> ChatTemplate::for_model(const Tokenizer& tokenizer,
                                                            std::string_view architecture) {
  const std::string_view own = tokenizer.chat_template();
  if (own.empty())
    throw Error(
        ErrorCode::kNotFound,
        "this is a base model without a chat template: use `run` to continue a text" + choice(tokenizer));
  const bool bitnet = is_bitnet(architecture);
  // The official 2B-4T GGUF carries a template of another model ("Human: … BITNETAssistant: ").
  if (bitnet && contains(own, "BITNETAssistant")) return by_name("bitnet");
  const text::TemplateContent content = text::read_template(own);
  if (is_plain_loop(content, kLlama3Text, {"trim"})) return by_name("llama3");
  if (is_plain_loop(content, kBitnetText, {"capitalize", "trim"})) return by_name("bitnet");
  if (contains(own, "<|start_header_id|>"))
    throw Error(ErrorCode::kUnsupported,
                "the model's chat template has more than Llama 3's (tools, a date or a system message of its "
                "own), which we do not render: --chat-template llama3 does without that, or use `run` with a "
                "prompt that is already formatted");
  throw Error(ErrorCode::kUnsupported,
              "the model's chat template is not one that we know: " + std::string(kHowToChoose) +
                  name_list() + "), or use `run` with a prompt that is already formatted");
}

}  // namespace bitnet
