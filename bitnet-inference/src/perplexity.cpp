// Perplexity in chunks as docs/numerics.md defines it, through a session's evaluate_all().
#include "bitnet/inference/perplexity.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <vector>

#include "bitnet/core/error.hpp"
#include "bitnet/core/text/sequences.hpp"
#include "bitnet/inference/session.hpp"

namespace bitnet::inference {
namespace {

/// Sums over the scored tokens.
struct Sums {
  double nll = 0, squares = 0;
  std::int64_t tokens = 0, bytes = 0;

  double perplexity() const { return std::exp(nll / static_cast<double>(tokens)); }
  /// Of the perplexity, to first order: ppl · (standard error of the mean of −log p).
  double standard_error() const {
    if (tokens < 2) return 0;
    const auto n = static_cast<double>(tokens);
    const double mean = nll / n, variance = std::max(0.0, squares / n - mean * mean);
    return perplexity() * std::sqrt(variance / (n - 1));
  }
};

void check(const PerplexityOptions& options, std::size_t n_tokens) {
  if (options.n_ctx < 4) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("perplexity in chunks of {} tokens: expected 4 or more", options.n_ctx));
  }
  if (n_tokens < static_cast<std::size_t>(options.n_ctx)) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("the text has {} tokens, but one chunk needs {} (the context size)", n_tokens,
                            options.n_ctx));
  }
}

/// Scores the second half of a chunk: the token at p + 1 by the logits at p, for p = n/2 … n − 2.
void score(Session& session, std::span<const TokenId> chunk, const Tokenizer* tokenizer, Sums& sums) {
  const auto n = static_cast<std::int64_t>(chunk.size());
  session.truncate(0);
  session.evaluate_all(chunk.first(chunk.size() - 1), n / 2,
                       [&](std::int64_t position, std::span<const float> logits) {
                         const TokenId target = chunk[static_cast<std::size_t>(position + 1)];
                         const double nll = negative_log_likelihood(logits, target);
                         sums.nll += nll;
                         sums.squares += nll * nll;
                         ++sums.tokens;
                         if (tokenizer != nullptr && target < tokenizer->vocab_size())
                           sums.bytes += static_cast<std::int64_t>(tokenizer->token_bytes(target).size());
                       });
}

}  // namespace

double negative_log_likelihood(std::span<const float> logits, TokenId target) {
  if (target < 0 || static_cast<std::size_t>(target) >= logits.size()) {
    throw Error(ErrorCode::kInvalidArgument, fmt::format("token id {} of {} logits", target, logits.size()));
  }
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - largest);
  const double nll = std::log(sum) + largest - static_cast<double>(logits[static_cast<std::size_t>(target)]);
  if (std::isnan(nll)) throw Error(ErrorCode::kInternal, "a logit is not a number");
  return nll;
}

PerplexityResult perplexity(std::shared_ptr<const Model> model, std::span<const TokenId> tokens,
                            const PerplexityOptions& options) {
  check(options, tokens.size());
  const auto begin = std::chrono::steady_clock::now();
  const Tokenizer* tokenizer = model->tokenizer().get();
  SessionOptions session_options;
  session_options.n_ctx = options.n_ctx;
  session_options.chunk_rows = options.chunk_rows;
  session_options.kv_type = options.kv_type;
  Session session(model, session_options);
  const TokenWindows windows(tokens, options.n_ctx);
  std::int64_t n_chunks = windows.size();
  if (options.max_chunks > 0) n_chunks = std::min(n_chunks, options.max_chunks);

  Sums sums;
  std::vector<TokenId> chunk;
  for (std::int64_t i = 0; i < n_chunks; ++i) {
    if (options.cancellation.cancelled()) throw Error(ErrorCode::kCancelled, "perplexity was cancelled");
    chunk.assign(windows[i].begin(), windows[i].end());
    if (tokenizer != nullptr && tokenizer->adds_bos() && tokenizer->bos()) chunk[0] = *tokenizer->bos();
    score(session, chunk, tokenizer, sums);
    if (options.progress) options.progress(i + 1, n_chunks, sums.perplexity());
  }

  PerplexityResult result;
  result.perplexity = sums.perplexity();
  result.standard_error = sums.standard_error();
  result.nll = sums.nll;
  if (sums.bytes > 0) result.bits_per_byte = sums.nll / std::log(2.0) / static_cast<double>(sums.bytes);
  result.scored_tokens = sums.tokens;
  result.scored_bytes = sums.bytes;
  result.chunks = n_chunks;
  result.total_tokens = static_cast<std::int64_t>(tokens.size());
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return result;
}

PerplexityResult perplexity(std::shared_ptr<const Model> model, std::string_view text,
                            const PerplexityOptions& options) {
  const std::vector<TokenId> tokens = model->require_tokenizer().encode(text);
  return perplexity(std::move(model), tokens, options);
}

}  // namespace bitnet::inference
