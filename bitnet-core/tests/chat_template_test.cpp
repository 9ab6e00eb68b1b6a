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
  const std::string llama3 = "{{ '<|start_header_id|>' + role + '<|end_header_id|>' }}{{ '<|eot_id|>' }}";
  const std::string bitnet =
      "{{ message['role'] | capitalize + ': ' + content + '<|eot_id|>' }}{{ 'Assistant: ' }}";
  const std::string wrong = "{{ 'Human: ' + content + 'BITNETAssistant: ' }}";
  EXPECT_EQ(name(llama3, "llama"), "llama3");
  EXPECT_EQ(name(bitnet, "bitnet"), "bitnet");
  EXPECT_EQ(name(wrong, "bitnet-b1.58"), "bitnet");
  BITNET_EXPECT_ERROR(name(wrong, "llama"), ErrorCode::kUnsupported, "--chat-template");
  BITNET_EXPECT_ERROR(name("{{ x }}", "bitnet"), ErrorCode::kUnsupported, "bitnet, llama3");
  BITNET_EXPECT_ERROR(name("", "bitnet"), ErrorCode::kNotFound, "run");
  BITNET_EXPECT_ERROR(ChatTemplate::by_name("alpaca"), ErrorCode::kNotFound, "bitnet, llama3");
}

TEST(ChatTemplate, UnknownRolesAndMissingTokensAreErrors) {
  const std::vector<ChatMessage> tool = {{"tool", "x"}};
  BITNET_EXPECT_ERROR(ChatTemplate::by_name("bitnet")->encode(*tokenizer(), tool),
                      ErrorCode::kInvalidArgument, "tool");
  const auto gpt2 = Tokenizer::load(testing::source_path("tests/data/tokenizers/gpt2.json"));
  BITNET_EXPECT_ERROR(ChatTemplate::by_name("bitnet")->encode(*gpt2, kTalk), ErrorCode::kUnsupported,
                      "<|eot_id|>");
}

}  // namespace
}  // namespace bitnet
