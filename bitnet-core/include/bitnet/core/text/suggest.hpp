#pragma once
// "Did you mean …?" for words that are in no table. Pure functions, thread-safe.
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace bitnet {

/// Edit distance with insertions, deletions, substitutions and swaps of neighbours, each 1.
std::size_t edit_distance(std::string_view a, std::string_view b);

/// ", did you mean 'x'?" for the nearest of `words` (at most a third of its letters away, or one that `word`
/// begins), else "".
std::string suggestion(std::string_view word, const std::vector<std::string>& words);

/// Those of `words` that are so near, the nearest first, in the order of `words` where they are equally near;
/// at most `most`.
std::vector<std::string> near_misses(std::string_view word, const std::vector<std::string>& words,
                                     std::size_t most);

}  // namespace bitnet
