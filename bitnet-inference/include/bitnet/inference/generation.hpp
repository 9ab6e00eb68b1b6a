#pragma once
// What one generation is asked for and what comes out: used alike by the engine, the scheduler and the
// command line. Plain values; a callback is called on the thread that generates.
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bitnet/core/error.hpp"
#include "bitnet/core/text/tokenizer.hpp"
#include "bitnet/inference/cancellation.hpp"
#include "bitnet/inference/sampler.hpp"

namespace bitnet::inference {

class AdapterSet;

/// Called with every piece of text as it becomes final: whole UTF-8 characters, never part of a stop string.
/// An exception from it ends that generation with FinishReason::kError.
using TextCallback = std::function<void(std::string_view text)>;

struct GenerationOptions {
  static constexpr std::int64_t kMaxDraft = 16, kMaxDraftNgram = 16;
  /// Tokens to generate at most; −1: until the context is full. Where prompt + max_tokens exceeds the
  /// context, generation ends with kLength when the context is full.
  std::int64_t max_tokens = 128;
  SamplerOptions sampling = {};
  std::vector<std::string> stop = {};  ///< texts that end the generation; not part of the output; none empty
  std::vector<TokenId> stop_tokens =
      {};                   ///< besides the model's own EOS tokens (a chat format's end of turn)
  bool ignore_eos = false;  ///< for measuring: EOS tokens are like any other
  bool special = false;     ///< control tokens appear in the text
  /// The generated text stands alone (a chat's answer), so that the space which SentencePiece puts before a
  /// text's first word goes; false: it continues the prompt's text.
  bool strip_leading_space = false;
  /// Prompt-lookup speculation: at most so many tokens, 0 (off) … kMaxDraft, are guessed at a time from what
  /// followed the last `draft_ngram` (1 … kMaxDraftNgram) tokens before, and checked in one pass. The result
  /// is the same, token for token; it comes sooner where text repeats itself.
  std::int64_t draft = 0;
  std::int64_t draft_ngram = 3;
  /// LoRA adapters of the model that generates; null: those of the engine or the scheduler, if it has some.
  std::shared_ptr<const AdapterSet> adapters = {};
  CancellationToken cancellation = {};
};

enum class FinishReason : std::uint8_t { kStop, kLength, kCancelled, kError };
/// "stop", "length", "cancelled", "error"
std::string_view to_string(FinishReason reason) noexcept;

struct GenerationTimings {
  double queue_seconds = 0;   ///< from submission to the first step (0 without a scheduler)
  double prompt_seconds = 0;  ///< from the first step to the first token
  double decode_seconds = 0;  ///< from the first token to the last
  double total_seconds() const noexcept { return queue_seconds + prompt_seconds + decode_seconds; }
};

struct GenerationResult {
  std::string text;             ///< without the stop string; empty when the model has no tokenizer
  std::vector<TokenId> tokens;  ///< generated ones, without the ending EOS
  FinishReason finish_reason = FinishReason::kError;
  std::int64_t prompt_tokens = 0;
  std::int64_t completion_tokens = 0;  ///< sampled tokens, the ending EOS included
  std::int64_t reused_tokens = 0;      ///< of the prompt, found in the cache (engine only)
  std::int64_t drafted_tokens = 0;     ///< guessed and evaluated (GenerationOptions::draft)
  std::int64_t accepted_tokens = 0;    ///< of those, the ones that were also sampled
  GenerationTimings timings;
  std::optional<Error> error;  ///< with kError
  bool of_the_pass = false;    ///< with `error`: a pass, or the making of a batch, failed, and all in it
};

}  // namespace bitnet::inference
