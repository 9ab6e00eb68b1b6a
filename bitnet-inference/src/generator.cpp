// One generation from prompt to result: takes tokens, holds text back for stop strings, ends for a stated
// reason. Who evaluates the model is the caller's business.
#include "generator.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <new>
#include <utility>

#include "bitnet/core/error.hpp"
#include "bitnet/core/profiler.hpp"
#include "bitnet/inference/adapter_set.hpp"
#include "scarce_memory.hpp"

namespace bitnet::inference {
namespace {

double seconds(Generator::Clock::time_point from, Generator::Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

/// Prompt plus what may be generated. Throws as Generator's constructor.
std::int64_t check_request(const Model& model, std::span<const TokenId> prompt,
                           const GenerationOptions& options, std::int64_t n_ctx) {
  const auto n = static_cast<std::int64_t>(prompt.size());
  if (n == 0) throw Error(ErrorCode::kInvalidArgument, "the prompt has no tokens");
  if (n >= n_ctx) {
    throw Error(
        ErrorCode::kInvalidArgument,
        fmt::format("the prompt has {} tokens, but the context holds {} (one must stay free)", n, n_ctx));
  }
  for (const TokenId id : prompt) {
    if (id < 0 || id >= model.config().vocab_size) {
      throw Error(ErrorCode::kInvalidArgument,
                  fmt::format("token id {} is outside the vocabulary of {}", id, model.config().vocab_size));
    }
  }
  if (options.max_tokens < -1) {
    throw Error(
        ErrorCode::kInvalidArgument,
        fmt::format("max_tokens {}: expected −1 (until the context is full) or more", options.max_tokens));
  }
  const auto check_draft = [](const char* name, std::int64_t value, std::int64_t low, std::int64_t high) {
    if (value < low || value > high) {
      throw Error(ErrorCode::kInvalidArgument,
                  fmt::format("generation option {} = {}: expected {} … {}", name, value, low, high));
    }
  };
  check_draft("draft", options.draft, 0, GenerationOptions::kMaxDraft);
  check_draft("draft_ngram", options.draft_ngram, 1, GenerationOptions::kMaxDraftNgram);
  if (options.adapters != nullptr && &options.adapters->model() != &model)
    throw Error(ErrorCode::kInvalidArgument, "the adapters of a generation belong to another model");
  return options.max_tokens < 0 ? n_ctx : std::min(n_ctx, n + std::min(options.max_tokens, n_ctx));
}

}  // namespace

Generator::Generator(const Model& model, std::span<const TokenId> prompt, const GenerationOptions& options,
                     TextCallback on_text, std::int64_t n_ctx)
    : model_(model),
      options_(options),
      on_text_(std::move(on_text)),
      max_length_(check_request(model, prompt, options, n_ctx)),
      stream_(model.tokenizer(), options.stop, options.special, options.strip_leading_space),
      draft_limit_(options.draft),
      submitted_(Clock::now()) {
  options.sampling.validate();
  tokens_.assign(prompt.begin(), prompt.end());
  result_.prompt_tokens = static_cast<std::int64_t>(prompt.size());
}

void Generator::start() {
  if (has_started_) return;
  has_started_ = true;
  started_ = Clock::now();
  guard([&] {
    const auto capacity = static_cast<std::size_t>(max_length_);
    result_.tokens.reserve(capacity - tokens_.size());
    sampler_.emplace(options_.sampling, model_.config().vocab_size);
    for (const TokenId id : tokens_) sampler_->accept(id);
    tokens_.reserve(capacity);
    if (options_.draft > 0) lookup_.emplace(static_cast<std::size_t>(options_.draft_ngram), capacity);
  });
}

template <class Body>
void Generator::guard(Body&& body) {
  try {
    body();
  } catch (const Error& e) {
    fail(copy_of(e));
  } catch (const std::bad_alloc&) {
    fail(error_or_short([&] {
      return Error(ErrorCode::kOutOfMemory,
                   fmt::format("a generation of up to {} tokens: out of memory", max_length_));
    }));
  } catch (const std::exception& e) {  // of the callback
    fail(error_or_short(
        [&] { return Error(ErrorCode::kInternal, fmt::format("text callback: {}", e.what())); }));
  }
}

std::span<const TokenId> Generator::draft(std::int64_t most) {
  n_drafts_ = 0;
  if (!lookup_ || finished_) return {};
  // The last token that may come is sampled, never evaluated, hence − 1.
  const std::int64_t room = max_length_ - static_cast<std::int64_t>(tokens_.size()) - 1;
  const std::int64_t n = std::min({most, room, draft_limit_});
  if (n <= 0) return {};
  lookup_->extend(tokens_);
  n_drafts_ = lookup_->draft(tokens_, std::span(drafts_).first(static_cast<std::size_t>(n)));
  return std::span(drafts_).first(n_drafts_);
}

std::int64_t Generator::advance(std::span<const float> logits) {
  const ProfileZone zone(model_.backend().profiler(), "sample");
  const auto vocab = static_cast<std::size_t>(model_.config().vocab_size);
  std::size_t row = 0, accepted = 0;
  for (;; ++row) {
    TokenId token = -1;
    guard([&] { take(token = sampler_->sample(logits.subspan(row * vocab, vocab))); });
    const bool held = row < n_drafts_ && token == drafts_[row];
    if (held) ++accepted;
    if (held && !finished_ && cancelled()) finish(FinishReason::kCancelled);  // as between two passes
    if (!held || finished_) break;
  }
  if (n_drafts_ > 0) adapt_draft(accepted);
  n_drafts_ = 0;
  return static_cast<std::int64_t>(row);
}

/// A draft costs a row of a pass, whether it holds or not: they grow twofold while all hold and shrink to one
/// more than held last.
void Generator::adapt_draft(std::size_t accepted) noexcept {
  result_.drafted_tokens += static_cast<std::int64_t>(n_drafts_);
  result_.accepted_tokens += static_cast<std::int64_t>(accepted);
  const std::int64_t next =
      accepted == n_drafts_ ? 2 * draft_limit_ : static_cast<std::int64_t>(accepted) + 1;
  draft_limit_ = std::min(options_.draft, next);
}

void Generator::take(TokenId token) {
  if (!has_token_) first_token_ = Clock::now();
  has_token_ = true;
  ++result_.completion_tokens;
  const bool stop_token = std::find(options_.stop_tokens.begin(), options_.stop_tokens.end(), token) !=
                          options_.stop_tokens.end();
  if (stop_token || (!options_.ignore_eos && model_.is_eos(token))) {
    finish(FinishReason::kStop);
    return;
  }
  tokens_.push_back(token);
  result_.tokens.push_back(token);
  sampler_->accept(token);
  {
    // Of its own: the callback may wait for a slow terminal, which is no sampling.
    const ProfileZone zone(model_.backend().profiler(), "text");
    emit(stream_.push(token));
  }
  if (stream_.stopped()) {
    finish(FinishReason::kStop);
  } else if (static_cast<std::int64_t>(tokens_.size()) >= max_length_) {
    finish(FinishReason::kLength);
  }
}

void Generator::emit(const std::string& text) {
  if (text.empty()) return;
  result_.text += text;
  if (on_text_) on_text_(text);
}

void Generator::finish(FinishReason reason) {
  if (finished_) return;
  finished_ = true;
  result_.finish_reason = reason;
  const Clock::time_point now = Clock::now();
  GenerationTimings& t = result_.timings;
  t.queue_seconds = seconds(submitted_, has_started_ ? started_ : now);
  if (has_started_) t.prompt_seconds = seconds(started_, has_token_ ? first_token_ : now);
  if (has_token_) t.decode_seconds = seconds(first_token_, now);
  guard([&] { emit(stream_.finish()); });
}

void Generator::fail(Error error, bool of_the_pass) {
  if (!result_.error) {
    result_.error = std::move(error);
    result_.of_the_pass = of_the_pass;
  }
  finish(FinishReason::kError);
  result_.finish_reason = FinishReason::kError;
}

}  // namespace bitnet::inference
