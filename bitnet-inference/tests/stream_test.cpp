// Stop strings and text streams, against searching the whole text at once.
#include "bitnet/inference/stream.hpp"

#include <random>

#include "support.hpp"

namespace bitnet::inference {
namespace {

/// The text before the stop string that is complete first.
std::string cut(const std::string& text, const std::vector<std::string>& stops) {
  for (std::size_t end = 0; end <= text.size(); ++end) {
    const std::string so_far = text.substr(0, end);
    std::size_t begin = end;
    for (const std::string& stop : stops) begin = std::min(begin, so_far.find(stop));
    if (begin < end) return text.substr(0, begin);
  }
  return text;
}

TEST(StopMatcher, EmitsWhatCannotBelongToAStopString) {
  StopMatcher m({"END"});
  EXPECT_EQ(m.push("hello E"), "hello ");
  EXPECT_EQ(m.push("N"), "");
  EXPECT_EQ(m.push("ough"), "ENough");
  EXPECT_EQ(m.push(" EN"), " ");
  EXPECT_EQ(m.push("D tail"), "");
  EXPECT_TRUE(m.matched());
  EXPECT_EQ(m.push("more"), "");
  EXPECT_EQ(m.finish(), "");
}

TEST(StopMatcher, GivesBackAnUnfinishedStopStringAtTheEnd) {
  StopMatcher m({"\n\n"});
  EXPECT_EQ(m.push("a\n"), "a");
  EXPECT_EQ(m.finish(), "\n");
  EXPECT_FALSE(m.matched());
}

TEST(StopMatcher, EqualsSearchingTheWholeTextHoweverItIsCut) {
  std::mt19937 random(5);
  const auto letters = [&](std::size_t n) {
    std::string s;
    while (s.size() < n) s += static_cast<char>('a' + random() % 2);
    return s;
  };
  for (int round = 0; round < 3000; ++round) {
    std::vector<std::string> stops;
    for (std::size_t i = 0; i < 1 + random() % 3; ++i) stops.push_back(letters(1 + random() % 5));
    const std::string text = letters(random() % 24);
    StopMatcher m(stops);
    std::string out;
    for (std::size_t i = 0; i < text.size();) {
      const std::size_t n = 1 + random() % 4;
      out += m.push(text.substr(i, n));
      i += n;
      // Never more than what is certain, and all of it but a possible begin of a stop string.
      ASSERT_EQ(cut(text, stops).compare(0, out.size(), out), 0);
    }
    out += m.finish();
    ASSERT_EQ(out, cut(text, stops)) << text << " / " << stops[0];
  }
}

TEST(StopMatcher, RefusesAnEmptyStopString) {
  BITNET_EXPECT_ERROR(StopMatcher({"a", ""}), ErrorCode::kInvalidArgument, "empty");
}

TEST(TextStream, EmitsWholeCharactersAndStopsAcrossTokens) {
  const auto tokenizer = byte_tokenizer();
  EncodeOptions no_bos;
  no_bos.add_bos = false;
  const std::string text = "é – 汉字 the cat🙂STOP and";
  for (const bool stopping : {false, true}) {
    TextStream stream(tokenizer, stopping ? std::vector<std::string>{"🙂STOP"} : std::vector<std::string>{},
                      false);
    std::string out;
    for (const TokenId id : tokenizer->encode(text, no_bos)) {
      const std::string piece = stream.push(id);
      ASSERT_TRUE(piece.empty() || (static_cast<unsigned char>(piece[0]) & 0xc0) != 0x80)
          << "half a character";
      out += piece;
    }
    out += stream.finish();
    EXPECT_EQ(out, stopping ? "é – 汉字 the cat" : text);
    EXPECT_EQ(stream.stopped(), stopping);
  }
}

TEST(TextStream, HasNoTextWithoutATokenizer) {
  TextStream stream(nullptr, {}, false);
  EXPECT_EQ(stream.push(3) + stream.finish(), "");
}

}  // namespace
}  // namespace bitnet::inference
