// Nearest words by edit distance; see suggest.hpp.
#include "bitnet/core/text/suggest.hpp"

#include <algorithm>
#include <utility>

namespace bitnet {

std::size_t edit_distance(std::string_view a, std::string_view b) {
  // Rows i − 2, i − 1 and i of the usual table; a swap of neighbours looks two rows up.
  std::vector<std::size_t> before(b.size() + 1), last(b.size() + 1), row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) last[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t change = last[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      row[j] = std::min({last[j] + 1, row[j - 1] + 1, change});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        row[j] = std::min(row[j], before[j - 2] + 1);
    }
    std::swap(before, last);
    std::swap(last, row);
  }
  return last[b.size()];
}

std::vector<std::string> near_misses(std::string_view word, const std::vector<std::string>& words,
                                     std::size_t most) {
  if (word.empty() || word.size() > 64) return {};
  std::vector<std::pair<std::size_t, const std::string*>> near;
  for (const std::string& candidate : words) {
    std::size_t distance = edit_distance(word, candidate);
    const bool is_prefix = word.size() >= 3 && candidate.starts_with(word);
    if (is_prefix) distance = 1;
    const std::size_t allowed = std::max<std::size_t>(1, std::max(word.size(), candidate.size()) / 3);
    if (distance <= allowed) near.emplace_back(distance, &candidate);
  }
  std::stable_sort(near.begin(), near.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<std::string> names;
  for (std::size_t i = 0; i < std::min(most, near.size()); ++i) names.push_back(*near[i].second);
  return names;
}

std::string suggestion(std::string_view word, const std::vector<std::string>& words) {
  const std::vector<std::string> nearest = near_misses(word, words, 1);
  return nearest.empty() ? "" : ", did you mean '" + nearest[0] + "'?";
}

}  // namespace bitnet
