// Edit distances by hand, and suggestions that a person would make.
#include "suggest.hpp"

#include "bitnet/testing/testing.hpp"

namespace bitnet::cli {
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

}  // namespace
}  // namespace bitnet::cli
