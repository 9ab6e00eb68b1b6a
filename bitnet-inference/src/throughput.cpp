// Speed of prompts and of decoding, alone and in batches, straight on the forward pass; and the arithmetic of
// the limits that it is compared with.
#include "bitnet/inference/throughput.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <new>
#include <utility>
#include <vector>

#include "bitnet/core/error.hpp"
#include "bitnet/core/rng.hpp"
#include "bitnet/inference/kv_cache.hpp"
#include "bitnet/inference/session.hpp"
#include "forward.hpp"
#include "model_weights.hpp"
#include "pool_values.hpp"

namespace bitnet::inference {
namespace {

constexpr std::int64_t kWarmUpTokens = 16;

using Kind = ThroughputTest::Kind;

const ThroughputTest& check_test(const ThroughputTest& test) {
  if (test.tokens < 1 || test.sequences < 1 || test.tokens > (std::int64_t{1} << 22) ||
      test.sequences > (1 << 16)) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("a test of {} tokens in {} sequences", test.tokens, test.sequences));
  }
  return test;
}

}  // namespace

std::string ThroughputTest::name() const {
  if (kind == Kind::kPrompt) return fmt::format("pp{}", tokens);
  return sequences == 1 ? fmt::format("tg{}", tokens) : fmt::format("tg{}@b{}", tokens, sequences);
}

WeightCost weight_cost(const Model& model) {
  const ModelWeights& weights = model.weights();
  WeightCost cost;
  std::int64_t linear_weights = 0;
  const auto norm = [&](const BufferPtr& buffer) { cost.norm_bytes += buffer ? buffer->bytes() : 0; };
  norm(weights.output_norm);
  for (const LayerWeights& layer : weights.layers) {
    for (const PreparedPtr& w : {layer.q, layer.k, layer.v, layer.o, layer.gate, layer.up, layer.down}) {
      cost.linear_bytes += w->bytes();
      linear_weights += w->out() * w->in();
      if (w->ternary()) cost.ternary_weights += w->out() * w->in();
    }
    for (const BufferPtr& b : {layer.attn_norm, layer.attn_sub_norm, layer.ffn_norm, layer.ffn_sub_norm})
      norm(b);
  }
  const LayerWeights& last = weights.layers.back();
  for (const PreparedPtr& w : {last.q, last.o, last.gate, last.up, last.down}) {
    cost.asked_linear_bytes += w->bytes();
    if (w->ternary()) cost.asked_ternary_weights += w->out() * w->in();
  }
  cost.head_bytes = weights.head->bytes();
  cost.bits_per_weight = 8.0 * static_cast<double>(cost.linear_bytes) / static_cast<double>(linear_weights);
  return cost;
}

ThroughputLimit throughput_limit(const ThroughputTest& test, const WeightCost& cost,
                                 std::size_t kv_bytes_per_position, std::int64_t chunk_rows,
                                 const MachineLimits& machine) {
  const auto tokens = static_cast<double>(check_test(test).tokens);
  const auto kv = static_cast<double>(kv_bytes_per_position);
  ThroughputLimit limit;
  auto weights = static_cast<double>(cost.ternary_weights);  // a token
  if (test.kind == Kind::kPrompt) {
    weights -= static_cast<double>(cost.asked_ternary_weights) * (tokens - 1) / tokens;
    // Keys and values are written once and may be read from a cache by the rows of a chunk.
    const double linears = static_cast<double>(cost.linear_bytes + cost.norm_bytes);
    const auto chunks = static_cast<double>((test.tokens + chunk_rows - 1) / chunk_rows);
    const double passed_by = (chunks - 1) * static_cast<double>(cost.asked_linear_bytes);
    limit.bytes_per_token =
        (chunks * linears - passed_by + static_cast<double>(cost.head_bytes)) / tokens + kv;
  } else {
    // The step of token i (from 1) has i positions.
    limit.bytes_per_token =
        static_cast<double>(cost.step_bytes()) / static_cast<double>(test.sequences) + kv * (tokens + 1) / 2;
  }
  if (machine.read_gbps) {
    limit.tokens_per_second = *machine.read_gbps * 1e9 / limit.bytes_per_token;
    limit.bound = Bound::kBandwidth;
  }
  const bool one_row = test.kind == Kind::kDecode && test.sequences == 1;
  if (machine.int8_gops && cost.ternary_weights > 0 && !one_row) {
    const double integers = *machine.int8_gops * 1e9 / (2 * weights);
    if (!limit.tokens_per_second || integers < *limit.tokens_per_second) {
      limit.tokens_per_second = integers;
      limit.bound = Bound::kInteger;
    }
  } else if (cost.ternary_weights == 0 && !one_row) {
    limit.tokens_per_second.reset();  // floats would be the limit
    limit.bound = Bound::kUnknown;
  }
  return limit;
}

struct ThroughputRunner::Impl {
  Impl(std::shared_ptr<const Model> m, std::span<const ThroughputTest> tests, CancellationToken token,
       std::optional<DType> kv_type)
      : model(std::move(m)),
        cancellation(std::move(token)),
        logits_memory(model->backend(), "logits"),
        logits(logits_memory.resource()) {
    std::int64_t pages = 1, ids = 1;
    for (const ThroughputTest& test : tests) {
      n_ctx = std::max(n_ctx, check_test(test).tokens);
      sequences = std::max(sequences, test.sequences);
      ids = std::max(ids, test.total_tokens());
      const std::int64_t page = KvPool::kDefaultPageSize;
      pages = std::max(pages, test.sequences * ((test.tokens + page - 1) / page));
    }
    chunk = std::min(SessionOptions{}.chunk_rows, n_ctx);  // as a Session's
    // The largest first: what does not fit is refused before work is put into the rest.
    pool = std::make_unique<KvPool>(model->backend(), model->config(), pages, KvPool::kDefaultPageSize,
                                    model->kv_type(kv_type));
    forward = std::make_unique<ForwardPass>(model, n_ctx, std::max(chunk, sequences), sequences);
    const auto vocab = static_cast<std::uint64_t>(model->config().vocab_size);
    Rng random(0);
    for (std::int64_t i = 0; i < ids; ++i) tokens.push_back(static_cast<TokenId>(random.below(vocab)));
    logits.resize(static_cast<std::size_t>(sequences) * static_cast<std::size_t>(vocab));
  }

  void check_cancelled() const {
    if (cancellation.cancelled()) throw Error(ErrorCode::kCancelled, "interrupted");
  }

  std::span<const TokenId> ids(std::int64_t begin, std::int64_t n) const {
    return std::span<const TokenId>(tokens).subspan(static_cast<std::size_t>(begin),
                                                    static_cast<std::size_t>(n));
  }

  void prompt(std::int64_t n) {
    KvCache& cache = caches.front();
    std::int64_t rows = 0;
    for (std::int64_t i = 0; i < n; i += rows) {
      check_cancelled();
      rows = std::min(chunk, n - i);
      const SequenceSlice slice{0, rows, i, cache.pages()};
      const std::array<std::int32_t, 1> last{static_cast<std::int32_t>(rows - 1)};
      forward->run(*pool, {&slice, 1}, ids(i, rows), std::span(last).first(i + rows == n ? 1 : 0));
    }
    forward->logits(0, 1, logits);
  }

  void decode(std::int64_t n) {
    const auto count = static_cast<std::int64_t>(caches.size());
    std::vector<SequenceSlice> slices;
    std::vector<std::int32_t> rows;
    for (std::int64_t s = 0; s < count; ++s) {
      slices.push_back({s, 1, 0, caches[static_cast<std::size_t>(s)].pages()});
      rows.push_back(static_cast<std::int32_t>(s));
    }
    for (std::int64_t i = 0; i < n; ++i) {
      check_cancelled();
      for (SequenceSlice& slice : slices) slice.past = i;
      forward->run(*pool, slices, ids(i * count, count), rows);
      forward->logits(0, count, logits);
    }
  }

  double run(const ThroughputTest& test, std::int64_t n) {
    bool fits = test.tokens <= n_ctx && test.sequences <= sequences &&
                test.total_tokens() <= static_cast<std::int64_t>(tokens.size());
    caches.clear();
    for (std::int64_t s = 0; s < test.sequences && fits; ++s) {
      caches.emplace_back(*pool, test.tokens);
      fits = caches.back().reserve(test.tokens);
    }
    if (!fits) {
      throw Error(ErrorCode::kInvalidArgument,
                  fmt::format("{} is larger than the tests that there is room for", test.name()));
    }
    const auto begin = std::chrono::steady_clock::now();
    if (test.kind == Kind::kPrompt) {
      prompt(n);
    } else {
      decode(n);
    }
    model->backend().sync();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }

  std::shared_ptr<const Model> model;
  CancellationToken cancellation;
  std::int64_t n_ctx = 1, sequences = 1, chunk = 1;
  std::unique_ptr<ForwardPass> forward;
  std::unique_ptr<KvPool> pool;
  std::vector<KvCache> caches;  // of the running test
  std::vector<TokenId> tokens;
  PoolValues logits_memory;
  std::pmr::vector<float> logits;
};

ThroughputRunner::ThroughputRunner(std::shared_ptr<const Model> model, std::span<const ThroughputTest> tests,
                                   CancellationToken cancellation, std::optional<DType> kv_type) try
    : impl_(std::make_unique<Impl>(std::move(model), tests, std::move(cancellation), kv_type)) {
} catch (const std::bad_alloc&) {
  throw_out_of_memory("a benchmark");
}

ThroughputRunner::~ThroughputRunner() = default;

double ThroughputRunner::seconds(const ThroughputTest& test) {
  return impl_->run(check_test(test), test.tokens);
}

void ThroughputRunner::warm_up(const ThroughputTest& test) {
  check_test(test);
  impl_->run(test, test.kind == Kind::kPrompt ? test.tokens : std::min(test.tokens, kWarmUpTokens));
}

std::size_t ThroughputRunner::kv_bytes_per_position() const noexcept {
  return impl_->pool->bytes() / static_cast<std::size_t>(impl_->pool->n_pages() * impl_->pool->page_size());
}

std::int64_t ThroughputRunner::chunk_rows() const noexcept { return impl_->chunk; }

}  // namespace bitnet::inference
