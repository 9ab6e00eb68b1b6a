// Between the two ways to order merges: SentencePiece's scores of tokens and Hugging Face's list of merges.
#include <algorithm>
#include <unordered_map>

#include "text/spec.hpp"
#include "text/utf8.hpp"

namespace bitnet::text {
namespace {

constexpr std::size_t kMaxTokenBytes = 256;  // as in bpe_model.cpp

std::size_t characters(std::string_view text) {
  return static_cast<std::size_t>(std::count_if(
      text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

}  // namespace

std::vector<std::pair<TokenId, TokenId>> merges_from_scores(const TokenizerSpec& spec) {
  struct Merge {
    float score;
    std::size_t left_length, right_length;
    TokenId left, right;
  };
  const auto takes_part = [&](std::size_t i) {
    const TokenType type = spec.types[i];
    return !spec.tokens[i].empty() && spec.tokens[i].size() <= kMaxTokenBytes &&
           (type == TokenType::kNormal || type == TokenType::kUnused || type == TokenType::kUserDefined);
  };
  std::unordered_map<std::string_view, TokenId> ids;
  for (std::size_t i = 0; i < spec.tokens.size(); ++i)
    if (takes_part(i)) ids.emplace(spec.tokens[i], static_cast<TokenId>(i));
  std::vector<Merge> found;
  for (std::size_t i = 0; i < spec.tokens.size(); ++i) {
    const std::string_view token = spec.tokens[i];
    if (!takes_part(i) || ids.at(token) != static_cast<TokenId>(i)) continue;
    std::vector<Merge> splits;
    for (std::size_t cut = utf8_at(token, 0).length; cut < token.size(); cut += utf8_at(token, cut).length) {
      const auto left = ids.find(token.substr(0, cut)), right = ids.find(token.substr(cut));
      if (left != ids.end() && right != ids.end())
        splits.push_back(
            {spec.scores[i], characters(left->first), characters(right->first), left->second, right->second});
    }
    std::sort(splits.begin(), splits.end(), [](const Merge& a, const Merge& b) {
      return a.left != b.left ? a.left < b.left : a.right < b.right;
    });
    found.insert(found.end(), splits.begin(), splits.end());
  }
  std::stable_sort(found.begin(), found.end(), [](const Merge& a, const Merge& b) {
    if (a.score != b.score) return a.score > b.score;
    return a.left_length != b.left_length ? a.left_length > b.left_length : a.right_length > b.right_length;
  });
  std::vector<std::pair<TokenId, TokenId>> merges;
  for (const Merge& m : found) merges.emplace_back(m.left, m.right);
  return merges;
}

std::vector<float> scores_from_merges(const TokenizerSpec& spec) {
  std::unordered_map<std::string_view, std::size_t> ids;
  for (std::size_t i = 0; i < spec.tokens.size(); ++i) ids.emplace(spec.tokens[i], i);
  std::vector<std::size_t> results,
      last(spec.tokens.size(), 0);  // of each merge; of each token, its last merge
  for (const auto& [left, right] : spec.merges) {
    const auto result =
        ids.find(spec.tokens[static_cast<std::size_t>(left)] + spec.tokens[static_cast<std::size_t>(right)]);
    if (result == ids.end()) return std::vector<float>(spec.tokens.size(), 0.0f);
    last[result->second] = results.size();
    results.push_back(result->second);
  }
  std::vector<float> scores(spec.tokens.size(), 0.0f);
  std::vector<bool> done(spec.tokens.size(), false);
  float next = 0.0f;  // steps of one are exact: vocabularies have at most 2^24 tokens
  // Tokens whose merges alternate had equal scores (SentencePiece's runs of spaces): they get one again.
  std::size_t group_end = 0;
  for (std::size_t m = 0; m < results.size(); ++m) {
    if (m > 0 && m > group_end) --next;
    group_end = std::max(group_end, last[results[m]]);
    scores[results[m]] = next;
    done[results[m]] = true;
  }
  // What no merge makes comes last, as in SentencePiece's own files.
  for (std::size_t i = 0; i < scores.size(); ++i)
    if (!done[i] && spec.types[i] == TokenType::kNormal) scores[i] = --next;
  return scores;
}

}  // namespace bitnet::text
