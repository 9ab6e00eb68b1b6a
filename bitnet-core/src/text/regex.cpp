// Oniguruma-to-PCRE2 translation and matching. Why each construct is refused is said where it is refused.
#include "text/regex.hpp"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <limits>

#include "bitnet/core/error.hpp"
#include "text/utf8.hpp"

namespace bitnet::text {

const std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
const std::string_view kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
const std::string_view kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

namespace {

// White space by Unicode's property. PCRE2's own \s also has U+180E, which lost the property in Unicode 6.3.
constexpr std::string_view kSpace =
    R"(\t-\r \x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000})";

/// Walks a pattern once, copying what both dialects share.
class Translator {
 public:
  explicit Translator(std::string_view pattern) : in_(pattern) {}

  std::string run() {
    while (at_ < in_.size()) {
      if (in_class_) {
        class_character();
      } else {
        outer_character();
      }
    }
    if (in_class_) refuse("a class that is not closed");
    return std::move(out_);
  }

 private:
  [[noreturn]] void refuse(const std::string& what, SourceLocation where = SourceLocation::current()) const {
    throw Error(ErrorCode::kUnsupported,
                "regular expression '" + std::string(in_) + "': " + what + " at byte " + std::to_string(at_) +
                    " is not supported",
                where);
  }
  bool follows(std::string_view s) const { return in_.substr(at_, s.size()) == s; }
  void copy(std::size_t n) {
    out_.append(in_.substr(at_, n));
    at_ += n;
  }

  void outer_character() {
    const char c = in_[at_];
    if (c == '\\') return escape();
    if (c == '^' || c == '$') refuse("an anchor");  // Oniguruma's anchor lines, PCRE2's the subject
    if (c == '(' && follows("(?")) {
      for (const std::string_view group : {"(?:", "(?i:", "(?=", "(?!", "(?<=", "(?<!", "(?>"})
        if (follows(group)) return copy(group.size());
      refuse("this kind of group");
    }
    if (c == '(' && follows("(*")) refuse("a verb");
    if (c == '}' && in_.substr(at_ + 1, 1) == "+") refuse("'}+'");  // greedy in one, possessive in the other
    if (c == '[') {
      in_class_ = true;
      copy(follows("[^") ? 2 : 1);
      if (at_ < in_.size() && in_[at_] == ']') refuse("']' as the first character of a class");
      return;
    }
    copy(1);
  }

  void class_character() {
    const char c = in_[at_];
    if (c == '\\') return escape();
    if (c == '[') refuse("a class or '[' within a class");
    if (follows("&&")) refuse("'&&' within a class");
    if (c == ']') in_class_ = false;
    copy(1);
  }

  void escape() {
    if (at_ + 1 == in_.size()) refuse("a backslash at the end");
    const char c = in_[at_ + 1];
    switch (c) {
      case 's':
      case 'S':
        if (in_class_ && c == 'S') refuse("'\\S' within a class");
        if (!in_class_) out_ += c == 's' ? "[" : "[^";
        out_ += kSpace;
        if (!in_class_) out_ += ']';
        at_ += 2;
        return;
      case 'd':
      case 'D':
      case 'r':
      case 'n':
      case 't':
      case 'f':
        return copy(2);
      case 'p':
      case 'P':
        return property();
      case 'x':
      case 'u':
        return code_point();
      default:
        // Other letters and digits mean different things to the two (\h, \w, \b, \R, references, …).
        if (static_cast<unsigned char>(c) < 0x80 && !std::isalnum(static_cast<unsigned char>(c)))
          return copy(2);
        refuse(std::string("'\\") + c + "'");
    }
  }

  void property() {
    const std::size_t close = in_.find('}', at_);
    if (in_.substr(at_ + 2, 1) != "{" || close == std::string_view::npos) refuse("a property without braces");
    std::string_view name = in_.substr(at_ + 3, close - at_ - 3);
    out_ += in_.substr(at_, 3);
    if (name.substr(0, 1) == "^") {
      out_ += '^';
      name.remove_prefix(1);
    }
    if (name.empty() ||
        !std::all_of(name.begin(), name.end(), [](char c) { return std::isalpha(c) || c == '_'; }))
      refuse("this property");
    if (name.size() > 2) out_ += "sc:";  // a script; without "sc:" PCRE2 would take its extensions too
    out_.append(name);
    out_ += '}';
    at_ = close + 1;
  }

  // \xHH, \x{H…} and \uHHHH
  void code_point() {
    std::size_t begin = at_ + 2, n = in_[at_ + 1] == 'u' ? 4 : 2, end = begin + n;
    if (in_[at_ + 1] == 'x' && in_.substr(begin, 1) == "{") {
      const std::size_t close = in_.find('}', begin);
      if (close == std::string_view::npos) refuse("'\\x{' without '}'");
      n = close - ++begin;
      end = close + 1;
    }
    const std::string_view digits = in_.substr(begin, n);
    if (digits.size() != n || n == 0 || n > 6 ||
        digits.find_first_not_of("0123456789abcdefABCDEF") != std::string_view::npos)
      refuse("this character code");
    out_ += "\\x{" + std::string(digits) + "}";
    at_ = end;
  }

  std::string_view in_;
  std::string out_;
  std::size_t at_ = 0;
  bool in_class_ = false;
};

constexpr std::size_t kMaxPatternBytes = 1 << 16;
constexpr std::size_t kJitStackBytes = 1 << 20;
constexpr std::uint32_t kMatchKib = 256 * 1024;  // of memory for one match
constexpr std::uint64_t kFreeSteps = 1000;       // of a match from one place of the subject

}  // namespace

Regex::Regex(std::string_view pattern) {
  const auto refuse = [&](const std::string& why) -> Error {
    return {ErrorCode::kUnsupported,
            "regular expression '" + std::string(pattern.substr(0, 200)) + "': " + why};
  };
  if (pattern.size() > kMaxPatternBytes) throw refuse("longer than 65536 bytes");
  require_utf8(pattern, "regular expression");
  const std::string translated = Translator(pattern).run();
  const std::unique_ptr<pcre2_compile_context, void (*)(pcre2_compile_context*)> context(
      pcre2_compile_context_create(nullptr), &pcre2_compile_context_free);
  if (!context) throw Error(ErrorCode::kOutOfMemory, "regular expression: out of memory");
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  pcre2_set_parens_nest_limit(context.get(), 64);  // compiling recurses
  int code = 0;
  PCRE2_SIZE at = 0;
  pcre2_code* compiled = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                                       PCRE2_UTF | PCRE2_UCP, &code, &at, context.get());
  if (!compiled) {
    PCRE2_UCHAR message[256] = {};
    pcre2_get_error_message(code, message, sizeof message);
    throw refuse(reinterpret_cast<const char*>(message));
  }
  pcre2_jit_compile(compiled, PCRE2_JIT_COMPLETE);  // where there is no JIT, matching interprets
  code_ = std::shared_ptr<const pcre2_real_code_8>(
      compiled, [](const pcre2_real_code_8* p) { pcre2_code_free(const_cast<pcre2_real_code_8*>(p)); });
}

std::string quote_regex(std::string_view literal) {
  std::string out;
  for (const char c : literal) {
    if (std::string_view(R"(\^$.|?*+()[]{}-&#~/)").find(c) != std::string_view::npos) out += '\\';
    out += c;
  }
  return out;
}

RegexMatcher::RegexMatcher(const Regex& regex)
    : regex_(regex),
      data_(pcre2_match_data_create_from_pattern(regex.code(), nullptr)),
      context_(pcre2_match_context_create(nullptr)) {
  if (data_ && context_) stack_ = pcre2_jit_stack_create(32 * 1024, kJitStackBytes, nullptr);
  if (!data_ || !context_) {
    pcre2_match_data_free(data_);
    pcre2_match_context_free(context_);
    throw Error(ErrorCode::kOutOfMemory, "regular expression: out of memory");
  }
  pcre2_set_heap_limit(context_, kMatchKib);
  if (stack_) pcre2_jit_stack_assign(context_, nullptr, stack_);
}

RegexMatcher::~RegexMatcher() {
  pcre2_match_data_free(data_);
  pcre2_match_context_free(context_);
  pcre2_jit_stack_free(stack_);
}

void RegexMatcher::start(std::string_view subject) {
  subject_ = subject;
  from_ = 0;
  last_end_ = std::string_view::npos;
  budget_ = 1'000'000 + std::uint64_t{32} * subject.size();
}

int RegexMatcher::run(std::size_t from, std::uint32_t options, std::uint64_t limit) {
  constexpr std::uint64_t kMost = std::numeric_limits<std::uint32_t>::max();
  pcre2_set_match_limit(context_, static_cast<std::uint32_t>(std::min(limit, kMost)));
  return pcre2_match(regex_.code(), reinterpret_cast<PCRE2_SPTR>(subject_.data()), subject_.size(), from,
                     PCRE2_NO_UTF_CHECK | options, data_, context_);
}

int RegexMatcher::match(std::size_t from) {
  const int rc = run(from, 0, kFreeSteps);
  const bool costly = rc == PCRE2_ERROR_MATCHLIMIT || rc == PCRE2_ERROR_JIT_STACKLIMIT;
  return costly ? match_each_start(from) : rc;
}

// PCRE2 counts steps anew for each place where a match may begin and does not tell how many there were. So
// the places are tried one by one, with limits that double, and what was allowed is charged.
int RegexMatcher::match_each_start(std::size_t from) {
  for (std::size_t at = from;; at += at < subject_.size() ? utf8_at(subject_, at).length : 1) {
    std::uint64_t limit = kFreeSteps;
    int rc = run(at, PCRE2_ANCHORED | PCRE2_NO_JIT, limit);
    while (rc == PCRE2_ERROR_MATCHLIMIT) {
      limit *= 2;
      if (limit > budget_) return rc;
      budget_ -= limit;
      rc = run(at, PCRE2_ANCHORED | PCRE2_NO_JIT, limit);
    }
    if (rc != PCRE2_ERROR_NOMATCH || at >= subject_.size()) return rc;
  }
}

bool RegexMatcher::next(std::size_t& begin, std::size_t& end) {
  while (from_ <= subject_.size()) {
    const int rc = match(from_);
    if (rc == PCRE2_ERROR_NOMATCH) break;
    if (rc < 0) {
      PCRE2_UCHAR message[256] = {};
      pcre2_get_error_message(rc, message, sizeof message);
      throw Error(ErrorCode::kUnsupported,
                  std::string("the tokenizer's regular expression is too costly for this text: ") +
                      reinterpret_cast<const char*>(message));
    }
    const PCRE2_SIZE* where = pcre2_get_ovector_pointer(data_);
    begin = where[0];
    end = where[1];
    const bool empty = begin == end;
    from_ = end;
    if (empty) from_ += end < subject_.size() ? utf8_at(subject_, end).length : 1;
    if (empty && begin == last_end_) continue;  // an empty match that touches the one before does not count
    last_end_ = end;
    return true;
  }
  from_ = subject_.size() + 1;
  return false;
}

}  // namespace bitnet::text
