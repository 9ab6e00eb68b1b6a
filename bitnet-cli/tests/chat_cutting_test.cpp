// Chats cut to a length, against taking one character after the other off the longest message, and as a whole
// batch does it.
#include "chat_cutting.hpp"

#include <nlohmann/json.hpp>

#include "cli_fixture.hpp"

namespace bitnet::cli {
namespace {

class ChatCutting : public CliTest {
 protected:
  std::shared_ptr<const Tokenizer> tokenizer = Tokenizer::load(model());  // every byte is a token
  std::shared_ptr<const ChatTemplate> format = ChatTemplate::by_name("bitnet");

  std::vector<TokenId> encode(const std::vector<ChatMessage>& messages) {
    return format->encode(*tokenizer, messages, true, false);
  }
  std::vector<TokenId> cut(const std::vector<ChatMessage>& messages, std::int64_t most, SequenceSide side) {
    return encode_chat_within(*format, *tokenizer, messages, false, most, side).ids;
  }
};

const std::vector<ChatMessage> kChat{{"system", "be-brief"},
                                     {"user", "0123456789012345678901234567890123456789"},
                                     {"assistant", "short"},
                                     {"user", "abcdefghijklmnopqrstuvwxyz"}};

TEST_F(ChatCutting, TakesFromTheLongestMessageFirst) {
  const auto whole = static_cast<std::int64_t>(encode(kChat).size());
  std::int64_t frame = whole;
  for (const ChatMessage& m : kChat) frame -= static_cast<std::int64_t>(m.content.size());
  for (const SequenceSide side : {SequenceSide::kLeft, SequenceSide::kRight}) {
    std::vector<ChatMessage> messages = kChat;
    for (std::int64_t most = whole; most >= frame; --most) {
      if (most < whole) {
        // The last of the longest gives way.
        std::string* longest = &messages[0].content;
        for (ChatMessage& m : messages)
          if (m.content.size() >= longest->size()) longest = &m.content;
        longest->erase(side == SequenceSide::kLeft ? 0 : longest->size() - 1, 1);
      }
      EXPECT_EQ(cut(kChat, most, side), encode(messages)) << most << " of " << whole;
    }
  }
  const CutChat chat = encode_chat_within(*format, *tokenizer, kChat, false, whole - 7, SequenceSide::kLeft);
  EXPECT_EQ(chat.cut, 7);
  BITNET_EXPECT_ERROR(cut(kChat, frame - 1, SequenceSide::kLeft), ErrorCode::kInvalidArgument,
                      "the chat has " + std::to_string(whole) + " tokens of which at least " +
                          std::to_string(frame) + " are no text of its messages: expected at most " +
                          std::to_string(frame - 1));
}

TEST_F(ChatCutting, NoCharacterIsHalved) {
  std::string text;
  for (int i = 0; i < 10; ++i) text += "ä€😀";
  const std::vector<ChatMessage> chat{{"user", text}};
  const auto whole = static_cast<std::int64_t>(encode(chat).size());
  for (const SequenceSide side : {SequenceSide::kLeft, SequenceSide::kRight})
    for (std::int64_t most = whole - 1; most > whole - 40; --most) {
      const auto ids = cut(chat, most, side);
      EXPECT_LE(static_cast<std::int64_t>(ids.size()), most);
      EXPECT_GE(static_cast<std::int64_t>(ids.size()), most - 3);  // a character has up to four bytes
      EXPECT_THAT(tokenizer->decode(ids), Not(HasSubstr("\xEF\xBF\xBD")));
    }
}

TEST_F(ChatCutting, ABatchCutsItsChats) {
  const std::string long_text(300, 'x');
  const std::string in = file("in.jsonl", "{\"messages\": [{\"role\": \"user\", \"content\": \"" + long_text +
                                              "\"}]}\n{\"messages\": [{\"role\": \"user\", \"content\": "
                                              "\"hi\"}]}\n");
  const auto with = [&](const std::string& side) {
    return call({"batch", "-m", model(), "-i", in, "-o", file(side + ".jsonl"), "-n", "6", "-c", "64",
                 "--seed", "1", "--chat-template", "bitnet", "--truncate", side});
  };
  EXPECT_FAILS(with("none"), kFailure, "the context holds 64");
  const auto o = with("left");
  ASSERT_EQ(o.code, kOk) << o.err;
  EXPECT_THAT(o.err, HasSubstr("tokens of the prompt were cut off"));
  const auto record = nlohmann::json::parse(
      read_file(file("left.jsonl")).substr(0, read_file(file("left.jsonl")).find('\n')));
  EXPECT_EQ(record["prompt_tokens"], 58);
  EXPECT_EQ(record["messages"][0]["content"], long_text);  // a record holds what was asked
}

}  // namespace
}  // namespace bitnet::cli
