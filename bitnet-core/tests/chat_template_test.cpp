// Chat formats: the ids of whole conversations, which format a model's own template means, refusals.
#include "bitnet/core/text/chat_template.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/testing/testing.hpp"

namespace bitnet {
namespace {

using Ids = std::vector<TokenId>;

std::shared_ptr<const Tokenizer> tokenizer(const std::string& chat_template = "") {
  const std::string json = read_file(testing::source_path("tests/data/tokenizers/llama3.json"));
  return Tokenizer::from_json(json, nlohmann::json{{"chat_template", chat_template}}.dump());
}

// What the rendered template would give when it is tokenised with special tokens parsed.
Ids rendered(const Tokenizer& t, const std::string& text) {
  EncodeOptions options;
  options.add_bos = false;
  options.parse_special = true;
  return t.encode(text, options);
}

const std::vector<ChatMessage> kTalk = {
    {"system", "Be brief. "}, {"user", "\n Hi <|eot_id|>"}, {"assistant", "Yes?"}, {"user", "Why"}};

TEST(ChatTemplate, Bitnet) {
  const auto t = tokenizer();
  const auto chat = ChatTemplate::by_name("bitnet");
  const std::vector<ChatMessage> talk = {{"system", " Be brief.\n"}, {"user", "Hi"}, {"assistant", "Yes?"}};
  const std::string text =
      "<|begin_of_text|>System: Be brief.<|eot_id|>User: Hi<|eot_id|>Assistant: Yes?<|eot_id|>";
  EXPECT_EQ(chat->encode(*t, talk), rendered(*t, text + "Assistant: "));
  EXPECT_EQ(chat->encode(*t, talk, false), rendered(*t, text));
  EXPECT_THAT(chat->stop_tokens(*t), ::testing::UnorderedElementsAre(4, 1));
}

TEST(ChatTemplate, Llama3) {
  const auto t = tokenizer();
  const auto chat = ChatTemplate::by_name("llama3");
  const std::vector<ChatMessage> talk = {{"user", " Hi "}, {"assistant", "Yes?"}};
  const std::string text =
      "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
      "<|start_header_id|>assistant<|end_header_id|>\n\nYes?<|eot_id|>";
  EXPECT_EQ(chat->encode(*t, talk, false), rendered(*t, text));
  EXPECT_EQ(chat->encode(*t, talk), rendered(*t, text + "<|start_header_id|>assistant<|end_header_id|>\n\n"));
}

TEST(ChatTemplate, MessagesCannotSpellControlTokensUnlessAsked) {
  const auto t = tokenizer();
  for (const std::string_view name : ChatTemplate::names()) {
    const auto chat = ChatTemplate::by_name(name);
    const auto count = [&](bool parse) {
      const Ids ids = chat->encode(*t, kTalk, true, parse);
      return std::count(ids.begin(), ids.end(), *t->find("<|eot_id|>"));
    };
    EXPECT_EQ(count(false), 4);
    EXPECT_EQ(count(true), 5);
  }
}

TEST(ChatTemplate, RecognisesAModelsOwnTemplate) {
  const auto name = [](const std::string& text, std::string_view architecture) {
    return std::string(ChatTemplate::for_model(*tokenizer(text), architecture)->name());
  };
  // Llama 3's, as published.
  const std::string head =
      "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = ";
  const std::string middle =
      "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}";
  const std::string llama3_turn =
      R"('<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %})";
  const std::string llama3_open = R"({{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }})";
  const std::string llama3 =
      head + llama3_turn + middle + "{% if add_generation_prompt %}" + llama3_open + "{% endif %}";
  EXPECT_EQ(name(head + llama3_turn + middle + llama3_open, "llama"), "llama3");  // its first form
  // The same over several lines.
  EXPECT_EQ(name("{%- for message in messages %}\n  {{- \"<|start_header_id|>\" + message.role + "
                 "\"<|end_header_id|>\\n\\n\" + message.content | trim + \"<|eot_id|>\" }}\n{%- endfor %}\n"
                 "{%- if add_generation_prompt %}\n    " +
                     llama3_open.substr(0, 2) + "-" + llama3_open.substr(2) + "\n{%- endif %}\n",
                 "llama"),
            "llama3");
  const std::string bitnet = head +
                             "message['role'] | capitalize + ': '+ message['content'] | trim + '<|eot_id|>' "
                             "%}" +
                             middle + "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}";
  const std::string wrong = "{{ 'Human: ' + content + 'BITNETAssistant: ' }}";
  EXPECT_EQ(name(llama3, "llama"), "llama3");
  EXPECT_EQ(name(bitnet, "bitnet"), "bitnet");
  EXPECT_EQ(name(wrong, "bitnet-b1.58"), "bitnet");
  EXPECT_EQ(name(wrong, "BitNetForCausalLM"), "bitnet");  // the same model as a Hugging Face directory
  EXPECT_EQ(name(wrong, "BitnetForCausalLM"), "bitnet");
  BITNET_EXPECT_ERROR(name(wrong, "LlamaForCausalLM"), ErrorCode::kUnsupported, "--chat-template");
  BITNET_EXPECT_ERROR(name(wrong, "llama"), ErrorCode::kUnsupported, "--chat-template");
  // What Llama 3.1 and later add, and what others change: not silently the plain format.
  const auto refused = [&](const std::string& text) {
    BITNET_EXPECT_ERROR(name(text, "llama"), ErrorCode::kUnsupported, "--chat-template llama3");
  };
  refused("{% set date_string = strftime_now('%d %b %Y') %}" + llama3);
  refused("{{ '<|start_header_id|>system<|end_header_id|>\\n\\nCutting Knowledge Date: December 2023' }}" +
          llama3);
  refused("{% if tools is not none %}{{ tools | tojson }}{% endif %}" + llama3);
  refused("Be kind.<|eot_id|>" + llama3);
  refused("{% if messages[0]['role'] != 'system' %}{% endif %}" + llama3);
  std::string untrimmed = llama3;
  untrimmed.erase(untrimmed.find("| trim "), 7);
  refused(untrimmed);
  std::string newline = llama3;
  newline.insert(newline.find("{% endfor"), "\n");
  refused(newline);
  for (std::size_t n = 1; n < llama3.rfind("<|end_header_id|>"); n += 29)  // cut off
    BITNET_EXPECT_ERROR(name(llama3.substr(0, n), "bitnet"), ErrorCode::kUnsupported, "--chat-template");
  BITNET_EXPECT_ERROR(name("{{ x }}", "bitnet"), ErrorCode::kUnsupported, "bitnet, llama3");
  BITNET_EXPECT_ERROR(name("", "bitnet"), ErrorCode::kNotFound, "--chat-template NAME (bitnet, llama3)");
  BITNET_EXPECT_ERROR(ChatTemplate::by_name("alpaca"), ErrorCode::kNotFound, "bitnet, llama3");
}

TEST(ChatTemplate, ItsSourceIsRecognisedInEachKindOfFile) {
  const auto plain = tokenizer();
  const std::vector<ChatMessage> talk = {{"user", "a  b"}};
  for (const std::string_view name : ChatTemplate::names()) {
    const std::string source(ChatTemplate::by_name(name)->source());
    const auto with = plain->with_chat_template(source);
    EXPECT_EQ(plain->chat_template(), "");
    EXPECT_EQ(with->to_json(), plain->to_json());
    GgufMetadata gguf;
    with->to_gguf(gguf);
    for (const auto& t :
         {with, Tokenizer::from_json(with->to_json(), with->config_json()), Tokenizer::from_gguf(gguf)}) {
      EXPECT_EQ(t->chat_template(), source);
      const auto chat = ChatTemplate::for_model(*t, "llama");
      EXPECT_EQ(chat->name(), name);
      EXPECT_EQ(chat->encode(*t, talk), ChatTemplate::by_name(name)->encode(*plain, talk));
    }
  }
  EXPECT_EQ(plain->with_chat_template("x")->with_chat_template("")->chat_template(), "");
}

TEST(ChatTemplate, UnknownRolesAndMissingTokensAreErrors) {
  const std::vector<ChatMessage> tool = {{"tool", "x"}};
  BITNET_EXPECT_ERROR(ChatTemplate::by_name("bitnet")->encode(*tokenizer(), tool),
                      ErrorCode::kInvalidArgument, "tool");
  const auto gpt2 = Tokenizer::load(testing::source_path("tests/data/tokenizers/gpt2.json"));
  BITNET_EXPECT_ERROR(ChatTemplate::by_name("bitnet")->encode(*gpt2, kTalk), ErrorCode::kUnsupported,
                      "<|eot_id|>");
  // No format is proposed that the vocabulary cannot write.
  BITNET_EXPECT_ERROR(ChatTemplate::for_model(*gpt2, "llama"), ErrorCode::kNotFound,
                      "use `run` to continue a text; --chat-template does not help");
}

}  // namespace
}  // namespace bitnet
