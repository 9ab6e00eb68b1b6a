// Splitting semantics are those of Hugging Face's tokenizers (normalizer.rs: SplitDelimiterBehavior).
#include "text/pre_tokenizer.hpp"

#include <algorithm>
#include <utility>

#include "bitnet/core/error.hpp"

namespace bitnet::text {
namespace {

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  if (from.empty() || text.find(from) == std::string::npos) return;
  std::string out;
  out.reserve(text.size() + text.size() / 4);
  std::size_t at = 0;
  for (std::size_t hit; (hit = text.find(from, at)) != std::string::npos; at = hit + from.size())
    out.append(text, at, hit - at).append(to);
  text = std::move(out.append(text, at));
}

std::string collapse_spaces(std::string_view text) {
  std::string out;
  for (const char c : text)
    if (c != ' ' || (!out.empty() && out.back() != ' ')) out += c;
  if (!out.empty() && out.back() == ' ') out.pop_back();
  return out;
}

// How long `text` is after the step.
std::size_t normalized_size(const NormalizerStep& step, std::string_view text) {
  if (step.kind == NormalizerStep::Kind::kPrepend) return text.empty() ? 0 : text.size() + step.to.size();
  if (step.kind != NormalizerStep::Kind::kReplace || step.to.size() <= step.from.size()) return text.size();
  std::size_t size = text.size();  // of texts below 2^31 bytes and files that are in memory: cannot overflow
  for (std::size_t at = 0; (at = text.find(step.from, at)) != std::string_view::npos; at += step.from.size())
    size += step.to.size() - step.from.size();
  return size;
}

void normalize(const NormalizerStep& step, std::string& text) {
  switch (step.kind) {
    case NormalizerStep::Kind::kPrepend:
      if (!text.empty()) text.insert(0, step.to);
      return;
    case NormalizerStep::Kind::kReplace:
      return replace_all(text, step.from, step.to);
    case NormalizerStep::Kind::kCollapseSpaces:
      text = collapse_spaces(text);
      return;
  }
}

struct Range {
  std::size_t begin, end;
  bool match;
};

// `ranges`: matches and what is between them. Joins neighbours as `behavior` says and emits what is not
// empty.
void emit(std::string_view text, std::vector<Range>& ranges, SplitBehavior behavior,
          std::vector<std::string_view>& out) {
  std::vector<Range> joined;
  const auto forward = [&](auto joins) {
    for (const Range& r : ranges) {
      if (!joined.empty() && joins(joined.back(), r)) {
        joined.back().end = r.end;
        joined.back().match = r.match;
      } else {
        joined.push_back(r);
      }
    }
    ranges.swap(joined);
  };
  switch (behavior) {
    case SplitBehavior::kRemoved:
      ranges.erase(std::remove_if(ranges.begin(), ranges.end(), [](const Range& r) { return r.match; }),
                   ranges.end());
      break;
    case SplitBehavior::kIsolated:
      break;
    case SplitBehavior::kContiguous:
      forward([](const Range& last, const Range& r) { return last.match == r.match; });
      break;
    case SplitBehavior::kMergedWithPrevious:
      forward([](const Range& last, const Range& r) { return r.match && !last.match; });
      break;
    case SplitBehavior::kMergedWithNext:
      for (std::size_t i = ranges.size(); i-- > 0;) {
        const Range& r = ranges[i];
        if (!joined.empty() && r.match && !joined.back().match) {
          joined.back().begin = r.begin;
          joined.back().match = true;
        } else {
          joined.push_back(r);
        }
      }
      ranges.assign(joined.rbegin(), joined.rend());
      break;
  }
  for (const Range& r : ranges)
    if (r.begin < r.end) out.push_back(text.substr(r.begin, r.end - r.begin));
}

void split_isolated(std::string_view text, RegexMatcher& matcher, std::vector<std::string_view>& out) {
  matcher.start(text);
  std::size_t at = 0, begin = 0, end = 0;
  while (matcher.next(begin, end)) {
    if (at < begin) out.push_back(text.substr(at, begin - at));
    if (begin < end) out.push_back(text.substr(begin, end - begin));
    at = end;
  }
  if (at < text.size()) out.push_back(text.substr(at));
}

void split_piece(const PreTokenizerStep& step, std::string_view text, RegexMatcher& matcher,
                 std::vector<std::string_view>& out) {
  if (step.behavior == SplitBehavior::kIsolated) return split_isolated(text, matcher, out);
  std::vector<Range> ranges;
  matcher.start(text);
  std::size_t at = 0, begin = 0, end = 0;
  while (matcher.next(begin, end)) {
    if (at < begin) ranges.push_back({at, begin, step.invert});
    ranges.push_back({begin, end, !step.invert});
    at = end;
  }
  if (at < text.size()) ranges.push_back({at, text.size(), step.invert});
  emit(text, ranges, step.behavior, out);
}

// One piece of the Metaspace step.
std::string metaspace(std::string_view piece, bool prepend) {
  std::string text(piece);
  replace_all(text, " ", kVisibleSpace);
  if (prepend && std::string_view(text).substr(0, kVisibleSpace.size()) != kVisibleSpace)
    text.insert(0, kVisibleSpace);
  return text;
}

}  // namespace

PreTokenizer::PreTokenizer(const std::vector<NormalizerStep>& normalizer,
                           const std::vector<PreTokenizerStep>& steps)
    : normalizer_(normalizer) {
  for (const PreTokenizerStep& step : steps) {
    Step compiled{step, {}};
    switch (step.kind) {
      case PreTokenizerStep::Kind::kSplit:
        compiled.regex.emplace_back(step.pattern);
        break;
      case PreTokenizerStep::Kind::kMetaspace:
        compiled.spec.behavior = SplitBehavior::kMergedWithNext;
        if (step.split) compiled.regex.emplace_back(kVisibleSpace);
        break;
      case PreTokenizerStep::Kind::kByteLevel:
        compiled.spec.behavior = SplitBehavior::kIsolated;
        if (step.split) compiled.regex.emplace_back(kGpt2Pattern);
        break;
    }
    steps_.push_back(std::move(compiled));
  }
}

void PreTokenizer::split(std::string_view text, TextPlace place, std::size_t& room,
                         std::deque<std::string>& storage, std::vector<std::string_view>& pieces) const {
  if (text.empty()) return;
  if (!normalizer_.empty()) {
    std::string& normal = storage.emplace_back(text);
    for (std::size_t i = 0; i < normalizer_.size(); ++i) {
      if (place == TextPlace::kContinues && normalizer_[i].kind == NormalizerStep::Kind::kPrepend) continue;
      // Each step may multiply the length; a few of them in a small file would fill any memory.
      if (normalized_size(normalizer_[i], normal) > room)
        throw Error(ErrorCode::kUnsupported, "normalizer step " + std::to_string(i + 1) + " of " +
                                                 std::to_string(normalizer_.size()) +
                                                 ": the text grows to more than 16 times its length");
      normalize(normalizer_[i], normal);
    }
    room -= normal.size();
    if (normal.empty()) return;
    text = normal;
  }
  using Kind = PreTokenizerStep::Kind;
  using Prepend = PreTokenizerStep::Prepend;
  std::vector<std::string_view> current = {text}, next;
  for (const Step& step : steps_) {
    const bool goes_on =
        place == TextPlace::kContinues && &step == &steps_.front();  // `current` is one piece
    for (std::string_view& piece : current) {
      const bool first = place == TextPlace::kStart && &piece == &current.front();
      const bool prepend = !goes_on && (step.spec.prepend == Prepend::kAlways ||
                                        (step.spec.prepend == Prepend::kFirst && first));
      if (step.spec.kind == Kind::kMetaspace) piece = storage.emplace_back(metaspace(piece, prepend));
      if (step.spec.kind == Kind::kByteLevel && prepend && piece.front() != ' ')
        piece = storage.emplace_back(" " + std::string(piece));
    }
    if (step.regex.empty()) continue;
    RegexMatcher matcher(step.regex.front());
    next.clear();
    for (const std::string_view piece : current) split_piece(step.spec, piece, matcher, next);
    current.swap(next);
  }
  pieces.insert(pieces.end(), current.begin(), current.end());
}

}  // namespace bitnet::text
