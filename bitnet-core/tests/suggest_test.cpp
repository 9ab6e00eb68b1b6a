// Edit distances by hand, and suggestions that a person would make.
#include "bitnet/core/text/suggest.hpp"

#include "bitnet/testing/testing.hpp"

namespace bitnet {
namespace {

TEST(EditDistance, CountsEdits) {
  EXPECT_EQ(edit_distance("", ""), 0u);
  EXPECT_EQ(edit_distance("abc", ""), 3u);
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3u);
  EXPECT_EQ(edit_distance("temprature", "temperature"), 1u);
  EXPECT_EQ(edit_distance("tpo-k", "top-k"), 1u);  // a swap is one edit
  EXPECT_EQ(edit_distance("ab", "ba"), 1u);
}

TEST(Suggestion, NamesTheNearestWordOrNothing) {
  const std::vector<std::string> words{"top-k", "top-p", "temperature", "threads"};
  EXPECT_EQ(suggestion("tok-p", words), ", did you mean 'top-p'?");
  EXPECT_EQ(suggestion("temprature", words), ", did you mean 'temperature'?");
  EXPECT_EQ(suggestion("thr", words), ", did you mean 'threads'?");
  EXPECT_EQ(suggestion("zebra", words), "");
  EXPECT_EQ(suggestion("", words), "");
  EXPECT_EQ(suggestion(std::string(100000, 'x'), words), "");
}

TEST(NearMisses, TheNearestFirst) {
  const std::vector<std::string> words{"blk.0.ffn_up", "blk.0.ffn_gate", "blk.1.ffn_up", "token_embd"};
  EXPECT_EQ(near_misses("blk.1.ffn_pu", words, 5),
            (std::vector<std::string>{"blk.1.ffn_up", "blk.0.ffn_up"}));
  EXPECT_EQ(near_misses("blk.0.ffn_u", words, 1), (std::vector<std::string>{"blk.0.ffn_up"}));
  EXPECT_TRUE(near_misses("zebra", words, 5).empty());
}

}  // namespace
}  // namespace bitnet
