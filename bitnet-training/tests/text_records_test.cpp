// Lines of JSONL as records, and records as tokens with a loss mask.
#include <gtest/gtest.h>

#include "bitnet/core/text/bpe_trainer.hpp"
#include "bitnet/testing/testing.hpp"
#include "bitnet/training/training_text.hpp"
#include "sample_text.hpp"

namespace bitnet::training {
namespace {

std::shared_ptr<const Tokenizer> chat_tokenizer() {
  BpeTrainer trainer(BpeTrainerOptions{
      340,
      {"<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"},
      2});
  trainer.feed(sample_text(3, 400) + "Assistant: Assistant: User: User:");
  return Tokenizer::from_json(trainer.train());
}

TEST(TextRecords, AreOfThreeFormsWithTheirLines) {
  const auto records = parse_records(
      "{\"text\": \"a\\nb\"}\n\n  \r\n{\"prompt\": \"\", \"response\": \"c\"}\n"
      R"({"messages": [{"role": "user", "content": "d"}, {"role": "assistant", "content": "e"}]})");
  ASSERT_EQ(records.size(), 3u);
  EXPECT_EQ(records[0].kind, TextRecord::Kind::kText);
  EXPECT_EQ(records[0].text, "a\nb");
  EXPECT_EQ(records[0].line, 1);
  EXPECT_EQ(records[1].kind, TextRecord::Kind::kResponse);
  EXPECT_EQ(records[1].prompt, "");
  EXPECT_EQ(records[1].text, "c");
  EXPECT_EQ(records[1].line, 4);
  EXPECT_EQ(records[2].kind, TextRecord::Kind::kChat);
  EXPECT_EQ(records[2].line, 5);
  ASSERT_EQ(records[2].messages.size(), 2u);
  EXPECT_EQ(records[2].messages[1].role, "assistant");
  EXPECT_EQ(records[2].messages[1].content, "e");
}

TEST(TextRecords, MistakesNameTheLine) {
  const std::string deep = "{\"text\": " + std::string(100, '[') + std::string(100, ']') + "}";
  const struct {
    std::string line;
    const char* message;
  } cases[] = {
      {"{\"text\": ", "line 3: not JSON: parse error"},
      {std::string("{\"text\": \"a\"}\0", 14), "line 3: not JSON: a NUL byte"},
      {deep, "line 3: more than 32 nested levels"},
      {R"({"text": "a", "text": "b"})", "line 3: key 'text' occurs twice"},
      {R"(["text"])", "line 3: expected an object, got array"},
      {R"({"txt": "a"})", "line 3: has none of 'text'"},
      {R"({"text": "a", "messages": []})", "line 3: has several of 'text'"},
      {R"({"text": 5})", "line 3: 'text': expected text, got number"},
      {R"({"text": ""})", "line 3: 'text' is empty"},
      {R"({"prompt": "a"})", "line 3: lacks 'response'"},
      {R"({"response": "a"})", "line 3: lacks 'prompt'"},
      {R"({"prompt": "a", "response": ""})", "line 3: 'response' is empty"},
      {R"({"text": "a", "id": 1})", "line 3: unknown key 'id'; known here are text"},
      {R"({"messages": []})", "line 3: 'messages': expected a list"},
      {R"({"messages": [{"role": "user"}]})", "line 3: message 1: lacks 'content'"},
      {R"({"messages": [{"role": "tool", "content": "a"}]})", "line 3: message 1: unknown role 'tool'"},
      {R"({"messages": [{"role": "user", "content": "a"}]})", "line 3: no message is the assistant's"},
      {R"({"messages": [{"role": "assistant", "content": "a", "name": "b"}]})",
       "line 3: message 1: unknown key 'name'"},
  };
  for (const auto& c : cases)
    BITNET_EXPECT_ERROR(parse_records("{\"text\": \"good\"}\n\n" + c.line + "\n"),
                        ErrorCode::kInvalidArgument, c.message);
  EXPECT_EQ(parse_records(R"({"text": "a", "id": 1})", true).size(), 1u);
}

TEST(TextRecords, OfAPromptAndItsResponseTheResponseIsLearned) {
  const auto tokenizer = chat_tokenizer();
  const auto records = parse_records(
      "{\"text\": \"The cat saw\"}\n{\"prompt\": \"The cat\", \"response\": \" saw the river\"}\n");
  const RecordTokens text = encode_record(records[0], *tokenizer, nullptr);
  auto ids = tokenizer->encode("The cat saw", {.add_bos = false});
  ids.push_back(tokenizer->eos()[0]);
  EXPECT_EQ(text.tokens, ids);
  EXPECT_EQ(text.learned, std::vector<std::uint8_t>(ids.size(), 1));

  const RecordTokens pair = encode_record(records[1], *tokenizer, nullptr);
  ids = tokenizer->encode("The cat", {.add_bos = false});
  std::vector<std::uint8_t> learned(ids.size(), 0);
  const auto response = tokenizer->encode(" saw the river", {.add_bos = false});
  ids.insert(ids.end(), response.begin(), response.end());
  ids.push_back(tokenizer->eos()[0]);
  learned.resize(ids.size(), 1);
  EXPECT_EQ(pair.tokens, ids);
  EXPECT_EQ(pair.learned, learned);
}

TEST(TextRecords, AChatIsWhatInferenceSeesAndTheAnswersAreLearned) {
  const auto tokenizer = chat_tokenizer();
  const TokenId end = *tokenizer->find("<|eot_id|>");
  TextRecord record;
  record.kind = TextRecord::Kind::kChat;
  record.messages = {{"system", "My sister saw."},
                     {"user", "The old king <|eot_id|>"},
                     {"assistant", " The cat saw the river. "}};
  for (const std::string_view name : ChatTemplate::names()) {
    const auto chat = ChatTemplate::by_name(name);
    const RecordTokens r = encode_record(record, *tokenizer, chat.get());
    // What a chat begins with when the answer is to be generated, then the answer and the end of the turn.
    auto ids = chat->encode(*tokenizer, std::span(record.messages).first(2), true);
    ids.erase(ids.begin());  // BOS, which packing puts there
    std::vector<std::uint8_t> learned(ids.size(), 0);
    const auto answer = tokenizer->encode("The cat saw the river.", {.add_bos = false});
    ids.insert(ids.end(), answer.begin(), answer.end());
    ids.push_back(end);
    learned.resize(ids.size(), 1);
    EXPECT_EQ(r.tokens, ids) << name;
    EXPECT_EQ(r.learned, learned) << name;
  }
  BITNET_EXPECT_ERROR(encode_record(record, *tokenizer, nullptr), ErrorCode::kInvalidArgument,
                      "chat template");
}

TEST(TextRecords, EveryAnswerOfAChatIsLearnedAndNothingElse) {
  const auto tokenizer = chat_tokenizer();
  TextRecord record;
  record.kind = TextRecord::Kind::kChat;
  record.messages = {{"user", "The cat"}, {"assistant", "saw"},     {"user", "A dog"},
                     {"assistant", ""},   {"user", "the old king"}, {"assistant", "loved\nthe garden"}};
  for (const std::string_view name : ChatTemplate::names()) {
    const RecordTokens r = encode_record(record, *tokenizer, ChatTemplate::by_name(name).get());
    ASSERT_EQ(r.learned.size(), r.tokens.size());
    std::vector<TokenId> learned;
    for (std::size_t i = 0; i < r.tokens.size(); ++i)
      if (r.learned[i] != 0) learned.push_back(r.tokens[i]);
    EXPECT_EQ(tokenizer->decode(learned, true), "saw<|eot_id|><|eot_id|>loved\nthe garden<|eot_id|>") << name;
  }
}

TEST(TextRecords, AVocabularyWithoutTheFormatsTokensIsAnError) {
  BpeTrainer trainer(BpeTrainerOptions{300, {"<s>", "</s>"}, 2});
  trainer.feed(sample_text(3, 100));
  const auto tokenizer = Tokenizer::from_json(trainer.train());
  TextRecord record;
  record.kind = TextRecord::Kind::kChat;
  record.messages = {{"user", "a"}, {"assistant", "b"}};
  BITNET_EXPECT_ERROR(encode_record(record, *tokenizer, ChatTemplate::by_name("llama3").get()),
                      ErrorCode::kUnsupported, "<|eot_id|>");
}

}  // namespace
}  // namespace bitnet::training
