// Texts in blocks: reading, tokens, lines, windows spread over a text whose length is known at its end.
#include "text_stream.hpp"

#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <fstream>
#include <sstream>
#include <thread>

#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/core/rng.hpp"
#include "bitnet/testing/testing.hpp"
#include "calibrating.hpp"

namespace bitnet::cli {
namespace {

using Ids = std::vector<TokenId>;

std::shared_ptr<const Tokenizer> tokenizer(const char* name = "llama3.json") {
  return Tokenizer::load(testing::source_path(std::string("tests/data/tokenizers/") + name));
}

class TextStream : public ::testing::Test {
 protected:
  std::string file(const std::string& text) {
    write_file(dir_ / "text", text);
    return (dir_ / "text").string();
  }
  std::string fifo() {
    EXPECT_EQ(mkfifo((dir_ / "fifo").c_str(), 0600), 0);
    return (dir_ / "fifo").string();
  }
  std::string read_all(const std::string& path) {
    TextReader reader(path, io_);
    std::string all, block;
    while (reader.next(block)) all += block;
    EXPECT_TRUE(block.empty());
    return all;
  }
  testing::TempDir dir_;
  std::istringstream in_;
  std::ostringstream out_, err_;
  std::atomic<bool> cancelled_{false};
  Io io_{.in = in_, .out = out_, .err = err_, .cancelled = &cancelled_};
};

/// More than one block, with characters across the ends of blocks.
std::string long_text() {
  std::string text = "x";
  for (int i = 0; text.size() < 200'000; ++i)
    text += "the 世界 é " + std::to_string(i) + (i % 9 ? " " : "\r\n");
  return text;
}

TEST_F(TextStream, ReadsFilesPipesAndStandardInput) {
  const std::string text = long_text();
  EXPECT_EQ(read_all(file(text)), text);
  EXPECT_EQ(read_all(file("")), "");
  in_.str(text);
  EXPECT_EQ(read_all("-"), text);
  const std::string pipe = fifo();
  std::thread writer([&] { std::ofstream(pipe) << text; });
  EXPECT_EQ(read_all(pipe), text);
  writer.join();
}

TEST_F(TextStream, SaysWhatCannotBeRead) {
  BITNET_EXPECT_ERROR(TextReader((dir_ / "absent").string(), io_), ErrorCode::kNotFound, "opening '");
  BITNET_EXPECT_ERROR(read_all(dir_.path().string()), ErrorCode::kIo, "Is a directory");
  const std::string path = file("text");
  cancelled_ = true;
  BITNET_EXPECT_ERROR(read_all(path), ErrorCode::kCancelled, "interrupted");
  BITNET_EXPECT_ERROR(read_all("-"), ErrorCode::kCancelled, "interrupted");
}

TEST_F(TextStream, TokensAreThoseOfTheWholeText) {
  std::string text = long_text();
  for (int i = 0; i < 3; ++i) text += long_text();  // several pieces of StreamLimits
  const auto first = tokenizer(), second = tokenizer("llama2.json");
  Ids ids, more;
  std::size_t calls = 0;
  TextReader reader(file(text), io_);
  stream_tokens({first, nullptr, second}, reader, [&](std::size_t which, std::span<const TokenId> some) {
    ASSERT_NE(which, 1u);
    Ids& to = which == 0 ? ids : more;
    to.insert(to.end(), some.begin(), some.end());
    ++calls;
  });
  EXPECT_EQ(ids, first->encode(text));
  EXPECT_EQ(more, second->encode(text));
  EXPECT_GT(calls, 2u);  // not all at the end: cli.text_memory says how much is held
}

TEST_F(TextStream, LinesAreThoseOfTheWholeText) {
  Rng rng(1);
  std::vector<std::string> lines;
  std::string text;
  for (int i = 0; i < 3000; ++i) {
    std::string line(rng.below(5) == 0 ? 0 : rng.below(200), static_cast<char>('a' + i % 26));
    text += line + (rng.below(3) == 0 ? "\r\n" : "\n");
    lines.push_back(std::move(line));
  }
  lines.emplace_back("the last, without an end");
  text += lines.back();
  std::vector<std::string> got;
  TextReader reader(file(text), io_);
  stream_lines(reader, [&](std::string_view line) { got.emplace_back(line); });
  EXPECT_EQ(got, lines);
}

/// What TextWindows promises for texts that are kept whole.
std::vector<Ids> spread(const Ids& ids, std::size_t length, std::size_t tokens, std::optional<TokenId> bos) {
  const std::size_t size = std::min(length, ids.size()), all = ids.size() / size;
  const std::size_t n = std::clamp<std::size_t>((tokens + size - 1) / size, 1, all);
  std::vector<Ids> windows;
  for (std::size_t i = 0; i < n; ++i) {
    const auto from = ids.begin() + static_cast<std::ptrdiff_t>(i * all / n * size);
    windows.emplace_back(from, from + static_cast<std::ptrdiff_t>(size));
    if (bos) windows.back().front() = *bos;
  }
  return windows;
}

/// Tokens 0, 1, 2 …, in pieces.
std::vector<Ids> windows_of(std::size_t n, std::size_t length, std::size_t tokens, std::size_t most,
                            const Tokenizer& t, Rng& rng) {
  Ids ids(n);
  for (std::size_t i = 0; i < n; ++i) ids[i] = static_cast<TokenId>(i);
  TextWindows windows(t, static_cast<std::int64_t>(length), static_cast<std::int64_t>(tokens), most);
  for (std::span<const TokenId> rest(ids); !rest.empty();) {
    const std::size_t some = std::min(rest.size(), static_cast<std::size_t>(rng.below(3 * length) + 1));
    windows.add(rest.first(some));
    rest = rest.subspan(some);
  }
  return windows.take();
}

TEST(TextWindows, AreEvenlySpread) {
  Rng rng(5);
  const auto llama3 = tokenizer(), gpt2 = tokenizer("gpt2.json");
  ASSERT_TRUE(llama3->adds_bos());
  ASSERT_FALSE(gpt2->adds_bos());
  for (int round = 0; round < 400; ++round) {
    const std::size_t n = rng.below(3000) + 2, length = rng.below(60) + 2, tokens = rng.below(1500) + 2;
    const Tokenizer& t = round % 2 ? *llama3 : *gpt2;
    Ids ids(n);
    for (std::size_t i = 0; i < n; ++i) ids[i] = static_cast<TokenId>(i);
    ASSERT_EQ(windows_of(n, length, tokens, 1 << 20, t, rng),
              spread(ids, length, tokens, round % 2 ? t.bos() : std::nullopt))
        << n << ' ' << length << ' ' << tokens;
  }
}

TEST(TextWindows, OfALongTextAreOfEverySecondFourthEighth) {
  Rng rng(6);
  const auto t = tokenizer("gpt2.json");
  for (int round = 0; round < 200; ++round) {
    const std::size_t n = rng.below(30000) + 2000, length = rng.below(30) + 2, wanted = rng.below(9) + 1;
    const auto windows = windows_of(n, length, wanted * length, 1, *t, rng);
    ASSERT_EQ(windows.size(), wanted);
    const auto all = static_cast<double>(n / length), spacing = all / static_cast<double>(wanted);
    std::ptrdiff_t last = -1;
    for (std::size_t i = 0; i < wanted; ++i) {
      ASSERT_EQ(windows[i].size(), length);
      const std::ptrdiff_t index = windows[i].front() / static_cast<TokenId>(length);
      ASSERT_EQ(windows[i].front() % static_cast<TokenId>(length), 0);
      ASSERT_EQ(windows[i].back(), windows[i].front() + static_cast<TokenId>(length) - 1);
      ASSERT_GT(index, last) << "twice the same";
      const double even = static_cast<double>(i) * spacing;
      ASSERT_LE(static_cast<double>(index), even);
      ASSERT_GT(static_cast<double>(index), even - 1 - spacing / 2) << n << ' ' << length << ' ' << wanted;
      last = index;
    }
  }
}

TEST(TextWindows, NeedTwoTokens) {
  const auto t = tokenizer();
  for (const Ids& few : {Ids{}, Ids{1}}) {
    TextWindows windows(*t, 8, 8);
    windows.add(few);
    BITNET_EXPECT_ERROR(windows.take(), ErrorCode::kInvalidArgument, "expected two and more");
  }
  TextWindows two(*t, 8, 8);
  two.add(Ids{5, 6});
  EXPECT_EQ(two.take(), (std::vector<Ids>{{*t->bos(), 6}}));
}

}  // namespace
}  // namespace bitnet::cli
