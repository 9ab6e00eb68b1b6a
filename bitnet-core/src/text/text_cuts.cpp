// Which vocabularies allow which cuts. A text becomes ids in steps: normalizer, pre-tokenizer steps, BPE of
// each piece. A cut is right when no normalizer step looks across it, and when it is a border of the first
// pre-tokenizer step's pieces, on whose sides that step does the same as in the whole; later steps and BPE
// then never see both sides. Without such a step BPE sees all of the text, and the vocabulary must have no
// token across the cut: merges make tokens, so none happens across it, and those on one side are taken in the
// same order whatever is on the other.
#include "text/text_cuts.hpp"

#include <algorithm>

#include "text/regex.hpp"
#include "text/utf8.hpp"

namespace bitnet::text {
namespace {

using Step = PreTokenizerStep;

/// GPT-2's pattern: a match that does not begin with white space has none in it, and one that begins with it
/// looks at nothing before: so a match ends before each run of white space, and the next begins there. A cut
/// inside or behind a run would change what \s+(?!\S) sees.
constexpr CutRules kGpt2Cuts = {.before_space = true, .before_line = true, .after_line = false};

/// Llama 3's and Qwen 2's patterns: the same before spaces, but [^\s\p{L}\p{N}]+[\r\n]* may have line ends
/// behind other characters. Both alternatives that take line ends take all of them greedily, so a match ends
/// where a run of white space ends with one.
constexpr CutRules kLlama3Cuts = {.before_space = true, .before_line = false, .after_line = true};

CutRules rules_of_pattern(std::string_view pattern) {
  if (pattern == kGpt2Pattern) return kGpt2Cuts;
  if (pattern == kLlama3Pattern || pattern == kQwen2Pattern) return kLlama3Cuts;
  return {};
}

/// Normalizers that prepend (which what goes on leaves out, PreTokenizer::split) or make spaces visible, one
/// by one.
bool normalizes_by_character(const TokenizerSpec& spec) {
  return std::all_of(spec.normalizer.begin(), spec.normalizer.end(), [](const NormalizerStep& s) {
    return s.kind == NormalizerStep::Kind::kPrepend ||
           (s.kind == NormalizerStep::Kind::kReplace && s.from == " " && s.to == kVisibleSpace);
  });
}

/// Whether spaces of the text are U+2581 when BPE sees them.
bool makes_spaces_visible(const TokenizerSpec& spec) {
  const auto visible = [](const NormalizerStep& s) { return s.kind == NormalizerStep::Kind::kReplace; };
  return std::any_of(spec.normalizer.begin(), spec.normalizer.end(), visible) ||
         (!spec.pre_tokenizer.empty() && spec.pre_tokenizer[0].kind == Step::Kind::kMetaspace);
}

/// BPE of the text as one piece.
CutRules rules_of_whole_text(const TokenizerSpec& spec) {
  if (spec.byte_level || spec.ignore_merges || !makes_spaces_visible(spec)) return {};
  CutRules rules{.before_space = true, .before_line = false, .after_line = true};
  for (std::size_t i = 0; i < spec.tokens.size(); ++i) {
    const std::string_view token = spec.tokens[i];
    const TokenType type = spec.types[i];
    if (type == TokenType::kControl || type == TokenType::kUnknown || type == TokenType::kByte) continue;
    for (std::size_t at = 1; at < token.size(); ++at) {
      if (token.substr(at).starts_with(kVisibleSpace) && !token.substr(0, at).ends_with(kVisibleSpace))
        rules.before_space = false;
      if (token[at - 1] == '\n' && token[at] != '\n') rules.after_line = false;
    }
  }
  return rules;
}

CutRules rules_of_steps(const TokenizerSpec& spec) {
  if (spec.pre_tokenizer.empty()) return rules_of_whole_text(spec);
  const Step& first = spec.pre_tokenizer[0];
  switch (first.kind) {
    case Step::Kind::kSplit:
      // Of other behaviours and of normalised text nothing is known.
      if (!spec.normalizer.empty() || first.behavior != SplitBehavior::kIsolated || first.invert) return {};
      return rules_of_pattern(first.pattern);
    case Step::Kind::kByteLevel:
      return first.split && spec.normalizer.empty() ? kGpt2Cuts : CutRules{};
    case Step::Kind::kMetaspace:
      if (first.split) return {.before_space = true, .before_line = false, .after_line = false};
      return spec.pre_tokenizer.size() == 1 ? rules_of_whole_text(spec) : CutRules{};
  }
  return {};
}

bool is_cut(const CutRules& rules, std::string_view text, std::size_t at) {
  if ((text[at] == ' ' && rules.before_space) || (text[at] == '\n' && rules.before_line)) {
    std::size_t before = at - 1;
    while (before > 0 && (static_cast<unsigned char>(text[before]) & 0xC0) == 0x80) --before;
    const char32_t c = utf8_at(text, before).code_point;
    return !is_white_space(c) && c != 0x2581;
  }
  return rules.after_line && text[at - 1] == '\n' && !is_white_space(utf8_at(text, at).code_point);
}

}  // namespace

CutRules cut_rules(const TokenizerSpec& spec) {
  if (!normalizes_by_character(spec)) return {};
  // Unknown characters side by side would become one unknown token.
  if (!spec.byte_level && spec.fuse_unknown && !spec.byte_fallback) return {};
  return rules_of_steps(spec);
}

std::size_t last_cut(const CutRules& rules, std::string_view text, std::size_t from, std::size_t to) {
  for (std::size_t at = std::min(to, text.size()); at-- > std::max<std::size_t>(from, 1);)
    if (is_cut(rules, text, at)) return at;
  return std::string_view::npos;
}

}  // namespace bitnet::text
