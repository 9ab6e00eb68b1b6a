// Cases of attention over a paged KV cache, with rotations in front.
#include "backend_cases.hpp"

namespace bitnet::conformance {
namespace {

struct AttentionCase {
  std::int64_t heads, kv_heads, dim, page_size;
};

/// Three sequences, with prompts that end inside and behind tiles of 128 keys, then steps of one token and of
/// several, and rows that are stored but not queried.
void run_attention(Run& r, const AttentionCase& c, DType type) {
  constexpr std::int64_t kTokens[] = {150, 3, 270};
  std::vector<std::vector<std::int32_t>> pages(3);
  std::int64_t n_pages = 0;
  for (std::size_t s = 0; s < 3; ++s)
    for (std::int64_t t = 0; t < kTokens[s] + 8; t += c.page_size)
      pages[s].push_back(static_cast<std::int32_t>(n_pages++));
  for (auto& p : pages) {
    for (auto& page : p) page = static_cast<std::int32_t>(n_pages - 1) - page;
  }
  const std::size_t bytes =
      static_cast<std::size_t>(n_pages) * kv_page_bytes(type, c.page_size, c.kv_heads, c.dim);
  // Memory that others have used: nothing may depend on what was there.
  const BufferPtr keys = r.backend.allocate(bytes), values = r.backend.allocate(bytes);
  const std::vector<std::byte> garbage(bytes, std::byte{0xff});
  r.backend.upload(*keys, 0, garbage);
  r.backend.upload(*values, 0, garbage);
  const KvLayer cache{keys.get(), values.get(), n_pages, c.page_size, type};
  const BufferPtr angles = r.buffer(r.normals(32 * c.dim));
  std::int64_t past[] = {0, 0, 0};
  const std::vector<std::int64_t> steps[] = {{150, 0, 97}, {0, 3, 173}, {1, 1, 1}, {5, 0, 1}};
  for (const auto& step : steps) {
    std::vector<SequenceSlice> slices, queries;
    std::int64_t rows = 0, asked = 0;
    for (std::size_t s = 0; s < 3; ++s) {
      if (step[s] == 0) continue;
      slices.push_back({rows, step[s], past[s], pages[s]});
      const std::int64_t from =
          step[s] > 3 ? step[s] - 3 : 0;  // the last three rows are asked for, too, alone
      queries.push_back({asked, step[s] - from, past[s] + from, pages[s]});
      rows += step[s];
      asked += step[s] - from;
      past[s] += step[s];
    }
    const Matrix k = r.random(rows, c.kv_heads * c.dim), v = r.random(rows, c.kv_heads * c.dim);
    // Queries and keys rotated in front, as in a step, in every second one: a backend may do both at once.
    const auto rope = [&](const Matrix& m, std::int32_t from) {
      if (c.dim % 2 != 0 || rows % 2 == 0) return;
      std::vector<std::int32_t> positions;
      for (std::int64_t i = 0; i < m.rows; ++i)
        positions.push_back((from + static_cast<std::int32_t>(i)) % 32);
      r.backend.rope(m, positions, *angles, c.dim);
    };
    if (!too_large(100 * rows * c.heads * c.dim)) {
      const Matrix q = r.random(rows, c.heads * c.dim), out = r.random(rows, c.heads * c.dim);
      rope(q, 3);
      rope(k, 3);
      r.backend.attention({q, k, v, out, cache, slices, c.heads, c.kv_heads, c.dim});
    }
    if (asked == rows) continue;
    const Matrix few = r.random(asked, c.heads * c.dim), to = r.random(asked, c.heads * c.dim);
    rope(few, 7);
    rope(k, 5);
    r.backend.attention({few, k, v, to, cache, slices, c.heads, c.kv_heads, c.dim, queries});
  }
}

/// One sequence of a long context and many others: their prompts together, then a token of each, twice.
void run_long_attention(Run& r, DType type) {
  constexpr std::int64_t kHeads = 6, kKvHeads = 2, kDim = 32, kPageSize = 16, kOthers = 40, kLong = 1700;
  std::vector<std::int64_t> prompts{kLong};
  for (std::int64_t s = 0; s < kOthers; ++s) prompts.push_back(1 + 37 * s % 150);
  std::vector<std::vector<std::int32_t>> pages(prompts.size());
  std::int32_t n_pages = 0;
  for (std::size_t s = 0; s < prompts.size(); ++s)
    for (std::int64_t t = 0; t < prompts[s] + 2; t += kPageSize) pages[s].push_back(n_pages++);
  const std::size_t bytes =
      static_cast<std::size_t>(n_pages) * kv_page_bytes(type, kPageSize, kKvHeads, kDim);
  const BufferPtr keys = r.backend.allocate(bytes), values = r.backend.allocate(bytes);
  const KvLayer cache{keys.get(), values.get(), n_pages, kPageSize, type};
  for (const std::int64_t step : {0, 1, 2}) {
    std::vector<SequenceSlice> slices, last;
    std::int64_t rows = 0;
    for (std::size_t s = 0; s < prompts.size(); ++s) {
      const std::int64_t past = step == 0 ? 0 : prompts[s] + step - 1, n = step == 0 ? prompts[s] : 1;
      slices.push_back({rows, n, past, pages[s]});
      last.push_back({static_cast<std::int64_t>(s), 1, past + n - 1, pages[s]});
      rows += n;
    }
    const auto asked = static_cast<std::int64_t>(prompts.size());
    const Matrix k = r.random(rows, kKvHeads * kDim), v = r.random(rows, kKvHeads * kDim);
    const Matrix q = r.random(asked, kHeads * kDim), out = r.random(asked, kHeads * kDim);
    r.backend.attention({q, k, v, out, cache, slices, kHeads, kKvHeads, kDim, last});
  }
}

}  // namespace

void add_attention(std::vector<Case>& cases) {
  for (const DType type : {DType::kF32, DType::kF16, DType::kI8}) {
    if (simulated()) continue;
    cases.push_back(
        {"attention, all kinds of sequences, a long one among them, " + std::string(to_string(type)),
         [type](Run& r) { run_long_attention(r, type); }});
  }
  constexpr AttentionCase kCases[] = {
      {4, 1, 64, 16}, {6, 2, 32, 48}, {3, 3, 10, 5}, {2, 1, 144, 16}, {20, 5, 128, 16}};
  for (const AttentionCase& c : kCases) {
    if (too_large(100 * c.heads * c.dim)) continue;
    for (const DType type : {DType::kF32, DType::kF16, DType::kI8})
      cases.push_back({"attention, " + std::string(to_string(type)) + ", " + std::to_string(c.heads) +
                           " of " + std::to_string(c.kv_heads) + " heads of " + std::to_string(c.dim) +
                           ", pages of " + std::to_string(c.page_size),
                       [c, type](Run& r) { run_attention(r, c, type); }});
  }
}

}  // namespace bitnet::conformance
