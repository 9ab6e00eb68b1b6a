// Causal attention over the paged cache, on the CPU: stores the new rows, then each (row, head) in parallel.
#include "cpu/attention.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/memory.hpp"
#include "cpu/work.hpp"

namespace bitnet::inference::cpu {
namespace {

float* floats(Buffer* buffer, std::size_t offset = 0) {
  return reinterpret_cast<float*>(static_cast<HostBuffer*>(buffer)->data() + offset);
}

/// The pointers of one call, and the arithmetic of where a token lies.
struct Call {
  const F32Kernels& kernels;
  const AttentionArgs& a;
  const float *q, *k, *v;
  float* out;
  float *keys, *values;
  std::int64_t kv_dim;
  float scale;

  /// Index of token t's first value in a layer's cache: [n_pages, page_size, n_kv_heads, head_dim].
  std::int64_t slot(const SequenceSlice& s, std::int64_t t) const {
    const std::int64_t page = s.pages[static_cast<std::size_t>(t / a.cache.page_size)];
    return (page * a.cache.page_size + t % a.cache.page_size) * kv_dim;
  }
};

void store_new_rows(const Call& c) {
  const std::size_t bytes = static_cast<std::size_t>(c.kv_dim) * sizeof(float);
  for (const SequenceSlice& s : c.a.sequences) {
    for (std::int64_t i = 0; i < s.n_rows; ++i) {
      const std::int64_t to = c.slot(s, s.past + i), from = (s.first_row + i) * c.kv_dim;
      std::memcpy(c.keys + to, c.k + from, bytes);
      std::memcpy(c.values + to, c.v + from, bytes);
    }
  }
}

/// out[row, head] = Σ_t softmax(q · k_t · scale)_t · v_t over t = 0 … n_keys − 1.
void attend(const Call& c, const SequenceSlice& s, std::int64_t row, std::int64_t head, std::int64_t n_keys,
            float* scores) {
  const auto dim = static_cast<std::size_t>(c.a.head_dim);
  const std::int64_t at_head = (row * c.a.n_heads + head) * c.a.head_dim;
  const std::int64_t kv = head / (c.a.n_heads / c.a.n_kv_heads) * c.a.head_dim;
  const auto n = static_cast<std::size_t>(n_keys);
  const float* const query = c.q + at_head;
  for (std::int64_t t0 = 0; t0 < n_keys; t0 += c.a.cache.page_size) {
    const float* key = c.keys + c.slot(s, t0) + kv;
    const std::int64_t t1 = std::min(n_keys, t0 + c.a.cache.page_size);
    c.kernels.dots(&query, 1, key, c.kv_dim, t1 - t0, dim, scores + t0, 0);
  }
  c.kernels.scale(c.scale, scores, n);
  const float sum = c.kernels.exp_sum(scores, c.kernels.max(scores, n), n);
  float* const to = c.out + at_head;
  std::fill_n(to, dim, 0.0f);
  for (std::int64_t t0 = 0; t0 < n_keys; t0 += c.a.cache.page_size) {
    const float* value = c.values + c.slot(s, t0) + kv;
    const std::int64_t t1 = std::min(n_keys, t0 + c.a.cache.page_size);
    c.kernels.axpy_rows(scores + t0, value, c.kv_dim, t1 - t0, to, dim);
  }
  c.kernels.scale(1.0f / sum, to, dim);
}

}  // namespace

void attention(const ExecutionContext& context, const F32Kernels& kernels, const AttentionArgs& a,
               std::vector<float>& scores) {
  const Call c{kernels,
               a,
               floats(a.q.buffer, a.q.offset),
               floats(a.k.buffer, a.k.offset),
               floats(a.v.buffer, a.v.offset),
               floats(a.out.buffer, a.out.offset),
               floats(a.cache.keys),
               floats(a.cache.values),
               a.n_kv_heads * a.head_dim,
               static_cast<float>(1.0 / std::sqrt(static_cast<double>(a.head_dim)))};
  store_new_rows(c);
  std::int64_t longest = 0, keys = 0;
  for (const SequenceSlice& s : a.sequences) {
    longest = std::max(longest, s.past + s.n_rows);
    keys += s.n_rows * (s.past + s.n_rows);
  }
  // Items are (row, head) pairs; the cost of one is its keys, read twice.
  const auto items = static_cast<std::size_t>(a.q.rows * a.n_heads);
  const auto mean_cost = static_cast<std::size_t>(2 * keys / a.q.rows * a.head_dim);
  const std::size_t parts = count_parts(context, items, mean_cost);
  const auto stride = static_cast<std::size_t>(longest);
  if (scores.size() < parts * stride) scores.resize(2 * context.threads() * stride);
  for_parts(context, items, parts, [&](std::size_t part, std::size_t begin, std::size_t end) {
    std::size_t at = 0;
    for (std::size_t item = begin; item < end; ++item) {
      const auto row = static_cast<std::int64_t>(item) / a.n_heads;
      while (row >= a.sequences[at].first_row + a.sequences[at].n_rows) ++at;
      const SequenceSlice& s = a.sequences[at];
      attend(c, s, row, static_cast<std::int64_t>(item) % a.n_heads, s.past + row - s.first_row + 1,
             scores.data() + part * stride);
    }
  });
}

}  // namespace bitnet::inference::cpu
