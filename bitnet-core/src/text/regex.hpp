#pragma once
// The regular expressions of tokenizers. Files write them in Oniguruma's dialect; the part of it that means
// the same everywhere is translated to PCRE2, anything else is refused by name.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

struct pcre2_real_code_8;
struct pcre2_real_match_data_8;
struct pcre2_real_match_context_8;
struct pcre2_real_jit_stack_8;

namespace bitnet::text {

/// GPT-2's splitter, which ByteLevel with use_regex means, Llama-3's, Qwen-2's.
extern const std::string_view kGpt2Pattern;
extern const std::string_view kLlama3Pattern;
extern const std::string_view kQwen2Pattern;

/// A compiled pattern. Immutable, thread-safe.
class Regex {
 public:
  /// Throws Error(kUnsupported) naming the pattern and the construct that is not supported.
  explicit Regex(std::string_view pattern);

  const pcre2_real_code_8* code() const noexcept { return code_.get(); }

 private:
  std::shared_ptr<const pcre2_real_code_8> code_;
};

/// A literal text as a pattern.
std::string quote_regex(std::string_view literal);

/// Matching state that is reused over many subjects. Not thread-safe.
class RegexMatcher {
 public:
  explicit RegexMatcher(const Regex& regex);
  ~RegexMatcher();
  RegexMatcher(const RegexMatcher&) = delete;
  RegexMatcher& operator=(const RegexMatcher&) = delete;

  /// Starts over with a subject, which must be valid UTF-8 and outlive the search.
  void start(std::string_view subject);
  /// The next match, leftmost first. A search from one place of the subject may take 1,000 steps; what more
  /// it takes is from the subject's budget of 1,000,000 steps + 32 per byte. Throws Error(kUnsupported) when
  /// that is used up, or when a match needs more than 256 MiB of memory.
  bool next(std::size_t& begin, std::size_t& end);

 private:
  int match(std::size_t from);
  int match_each_start(std::size_t from);
  int run(std::size_t from, std::uint32_t options, std::uint64_t limit);

  Regex regex_;
  pcre2_real_match_data_8* data_;
  pcre2_real_match_context_8* context_;
  pcre2_real_jit_stack_8* stack_ = nullptr;
  std::string_view subject_;
  std::size_t from_ = 0, last_end_ = 0;
  std::uint64_t budget_ = 0;
};

}  // namespace bitnet::text
