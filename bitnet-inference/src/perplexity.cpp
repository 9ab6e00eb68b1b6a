// Perplexity in chunks, through a session's evaluate_all(), and of many texts, several in a pass.
#include "bitnet/inference/perplexity.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <utility>
#include <vector>

#include "bitnet/core/error.hpp"
#include "bitnet/core/text/sequences.hpp"
#include "bitnet/inference/session.hpp"
#include "forward.hpp"

namespace bitnet::inference {
namespace {

/// Sums over the scored tokens.
struct Sums {
  double nll = 0, squares = 0;
  std::int64_t tokens = 0, bytes = 0;

  void add(std::span<const float> logits, TokenId target, const Tokenizer* tokenizer) {
    const double one = negative_log_likelihood(logits, target);
    nll += one;
    squares += one * one;
    ++tokens;
    if (tokenizer != nullptr && target < tokenizer->vocab_size())
      bytes += static_cast<std::int64_t>(tokenizer->token_bytes(target).size());
  }
  double perplexity() const { return std::exp(nll / static_cast<double>(tokens)); }
  /// Of the perplexity, to first order: ppl · (standard error of the mean of −log p).
  double standard_error() const {
    if (tokens < 2) return 0;
    const auto n = static_cast<double>(tokens);
    const double mean = nll / n, variance = std::max(0.0, squares / n - mean * mean);
    return perplexity() * std::sqrt(variance / (n - 1));
  }
};

void check(const PerplexityOptions& options) {
  if (options.n_ctx < 4) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("perplexity in chunks of {} tokens: expected 4 or more", options.n_ctx));
  }
}

void check(const PerplexityOptions& options, std::size_t n_tokens) {
  check(options);
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
                         sums.add(logits, chunk[static_cast<std::size_t>(position + 1)], tokenizer);
                       });
}

/// Texts as sequences of at most n_ctx tokens that begin as a text does. Those of which nothing is scored are
/// left out.
std::vector<std::vector<TokenId>> pieces_of(std::span<const std::vector<TokenId>> texts,
                                            const Tokenizer* tokenizer, std::int64_t n_ctx) {
  const bool has_bos = tokenizer != nullptr && tokenizer->adds_bos() && tokenizer->bos();
  const auto most = static_cast<std::size_t>(n_ctx);
  std::vector<std::vector<TokenId>> pieces;
  for (const std::vector<TokenId>& text : texts) {
    std::span<const TokenId> rest(text);
    while (!rest.empty()) {
      std::vector<TokenId> piece;
      if (has_bos && rest.front() != *tokenizer->bos()) piece.push_back(*tokenizer->bos());
      const auto now = rest.first(std::min(most - piece.size(), rest.size()));
      piece.insert(piece.end(), now.begin(), now.end());
      rest = rest.subspan(now.size());
      if (piece.size() > 1) pieces.push_back(std::move(piece));
    }
  }
  return pieces;
}

/// Passes over several pieces at once; each piece's last token is not evaluated, only scored.
class PackedPasses {
 public:
  PackedPasses(std::shared_ptr<const Model> model, const std::vector<std::vector<TokenId>>& pieces,
               const PerplexityOptions& options)
      : model_(std::move(model)), pieces_(pieces), adapters_(options.adapters) {
    std::vector<std::int64_t> lengths = lengths_of(pieces);
    for (std::int64_t& n : lengths) --n;
    longest_ = *std::max_element(lengths.begin(), lengths.end());
    const std::int64_t width = std::max(longest_, options.chunk_rows);
    rows_ = pack_lengths(lengths, width);
    constexpr std::int64_t kPage = KvPool::kDefaultPageSize;
    std::int64_t pages = 0;
    for (const auto& row : rows_) {
      std::int64_t n = 0;
      for (const std::size_t i : row) n += (lengths[i] + kPage - 1) / kPage;
      pages = std::max(pages, n);
    }
    forward_ = std::make_unique<ForwardPass>(model_, longest_, width, std::min(Session::kMaxLogits, width));
    if (adapters_ != nullptr) forward_->reserve(*adapters_);
    pool_ = std::make_unique<KvPool>(model_->backend(), model_->config(), pages, kPage,
                                     model_->kv_type(options.kv_type));
  }

  std::size_t size() const noexcept { return rows_.size(); }

  /// Pieces scored.
  std::int64_t run(std::size_t pass, Sums& sums) {
    std::vector<KvCache> caches;
    std::vector<SequenceSlice> slices;
    std::vector<TokenId> ids, targets;
    std::vector<std::int32_t> asked;
    caches.reserve(rows_[pass].size());
    for (const std::size_t i : rows_[pass]) {
      const std::vector<TokenId>& piece = pieces_[i];
      const auto n = static_cast<std::int64_t>(piece.size()) - 1;
      caches.emplace_back(*pool_, longest_);
      if (!caches.back().reserve(n)) throw Error(ErrorCode::kInternal, "a pass has more pages than planned");
      slices.push_back({static_cast<std::int64_t>(ids.size()), n, 0, caches.back().pages()});
      ids.insert(ids.end(), piece.begin(), piece.end() - 1);
      targets.insert(targets.end(), piece.begin() + 1, piece.end());
    }
    for (std::size_t row = 0; row < ids.size(); ++row) asked.push_back(static_cast<std::int32_t>(row));
    const std::vector<const AdapterSet*> adapters(slices.size(), adapters_.get());
    forward_->run(*pool_, slices, ids, asked, adapters);
    score(targets, sums);
    return static_cast<std::int64_t>(rows_[pass].size());
  }

 private:
  void score(std::span<const TokenId> targets, Sums& sums) {
    const auto vocab = static_cast<std::size_t>(model_->config().vocab_size);
    const auto group = static_cast<std::size_t>(forward_->max_logit_rows());
    logits_.resize(group * vocab);
    for (std::size_t first = 0; first < targets.size(); first += group) {
      const std::size_t n = std::min(group, targets.size() - first);
      forward_->logits(static_cast<std::int64_t>(first), static_cast<std::int64_t>(n), logits_);
      for (std::size_t r = 0; r < n; ++r)
        sums.add(std::span<const float>(logits_).subspan(r * vocab, vocab), targets[first + r],
                 model_->tokenizer().get());
    }
  }

  std::shared_ptr<const Model> model_;
  const std::vector<std::vector<TokenId>>& pieces_;
  std::shared_ptr<const AdapterSet> adapters_;
  std::int64_t longest_ = 0;                    // positions of a piece
  std::vector<std::vector<std::size_t>> rows_;  // pieces of each pass
  std::unique_ptr<ForwardPass> forward_;
  std::unique_ptr<KvPool> pool_;
  std::vector<float> logits_;
};

PerplexityResult result_of(const Sums& sums, std::int64_t chunks, std::size_t total_tokens,
                           std::chrono::steady_clock::time_point begin) {
  PerplexityResult result;
  result.perplexity = sums.perplexity();
  result.standard_error = sums.standard_error();
  result.nll = sums.nll;
  if (sums.bytes > 0) result.bits_per_byte = sums.nll / std::log(2.0) / static_cast<double>(sums.bytes);
  result.scored_tokens = sums.tokens;
  result.scored_bytes = sums.bytes;
  result.chunks = chunks;
  result.total_tokens = static_cast<std::int64_t>(total_tokens);
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return result;
}

void check_cancelled(const PerplexityOptions& options) {
  if (options.cancellation.cancelled()) throw Error(ErrorCode::kCancelled, "perplexity was cancelled");
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
  session.set_adapters(options.adapters);
  const TokenWindows windows(tokens, options.n_ctx);
  std::int64_t n_chunks = windows.size();
  if (options.max_chunks > 0) n_chunks = std::min(n_chunks, options.max_chunks);

  Sums sums;
  std::vector<TokenId> chunk;
  for (std::int64_t i = 0; i < n_chunks; ++i) {
    check_cancelled(options);
    chunk.assign(windows[i].begin(), windows[i].end());
    if (tokenizer != nullptr && tokenizer->adds_bos() && tokenizer->bos()) chunk[0] = *tokenizer->bos();
    score(session, chunk, tokenizer, sums);
    if (options.progress) options.progress(i + 1, n_chunks, sums.perplexity());
  }

  return result_of(sums, n_chunks, tokens.size(), begin);
}

PerplexityResult perplexity_of_texts(std::shared_ptr<const Model> model,
                                     std::span<const std::vector<TokenId>> texts,
                                     const PerplexityOptions& options) {
  check(options);
  if (options.chunk_rows < 1)
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("chunk_rows {}: expected 1 or more", options.chunk_rows));
  const auto begin = std::chrono::steady_clock::now();
  std::vector<std::vector<TokenId>> pieces = pieces_of(texts, model->tokenizer().get(), options.n_ctx);
  if (pieces.empty())
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("none of {} texts has two tokens: nothing can be scored", texts.size()));
  const auto n_chunks = static_cast<std::int64_t>(pieces.size());
  if (options.max_chunks > 0 && options.max_chunks < n_chunks)
    pieces.resize(static_cast<std::size_t>(options.max_chunks));
  PackedPasses passes(std::move(model), pieces, options);
  Sums sums;
  std::int64_t done = 0;
  for (std::size_t pass = 0; pass < passes.size(); ++pass) {
    check_cancelled(options);
    done += passes.run(pass, sums);
    if (options.progress) options.progress(done, static_cast<std::int64_t>(pieces.size()), sums.perplexity());
  }
  std::size_t total = 0;
  for (const std::vector<TokenId>& text : texts) total += text.size();
  return result_of(sums, done, total, begin);
}

PerplexityResult perplexity(std::shared_ptr<const Model> model, std::string_view text,
                            const PerplexityOptions& options) {
  const std::vector<TokenId> tokens = model->require_tokenizer().encode(text);
  return perplexity(std::move(model), tokens, options);
}

}  // namespace bitnet::inference
