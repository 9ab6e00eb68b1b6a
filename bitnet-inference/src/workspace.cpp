// The matrices that a forward pass works in, allocated once for the largest step, and the RoPE table.
#include "workspace.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include "bitnet/core/error.hpp"

namespace bitnet::inference {
namespace {

constexpr std::size_t kRopeUploadFloats = std::size_t{1} << 20;  // 4 MiB: 8192 positions of 128 values

BufferPtr matrix(Backend& backend, std::int64_t rows, std::int64_t cols, MemoryTag tag = "activations") {
  std::int64_t bytes = 0;
  if (rows <= 0 || cols <= 0 || __builtin_mul_overflow(rows, cols, &bytes) ||
      __builtin_mul_overflow(bytes, std::int64_t{sizeof(float)}, &bytes)) {
    throw Error(ErrorCode::kInvalidArgument, fmt::format("a workspace matrix of {} × {} floats", rows, cols));
  }
  return backend.allocate(static_cast<std::size_t>(bytes), tag);
}

/// Angle of pair i at position p: p · theta^(−2i / head_dim) (Su et al. 2021, section 3.4.2).
BufferPtr make_rope_table(Backend& backend, const ModelConfig& c, std::int64_t n_ctx) {
  BufferPtr table = matrix(backend, n_ctx, c.head_dim, "rope table");
  const std::int64_t half = c.head_dim / 2;
  std::vector<double> frequency(static_cast<std::size_t>(half));
  for (std::int64_t i = 0; i < half; ++i) {
    const double exponent = -2.0 * static_cast<double>(i) / static_cast<double>(c.head_dim);
    frequency[static_cast<std::size_t>(i)] = std::pow(c.rope_theta, exponent);
  }
  // Many positions at a time, since an upload waits for the device; not all, which would double the memory.
  const auto cols = static_cast<std::size_t>(c.head_dim), positions = static_cast<std::size_t>(n_ctx);
  const std::size_t per_upload = std::clamp<std::size_t>(kRopeUploadFloats / cols, 1, positions);
  std::vector<float> rows(per_upload * cols);
  for (std::size_t first = 0; first < positions; first += per_upload) {
    const std::size_t n = std::min(per_upload, positions - first);
    for (std::size_t p = 0; p < n; ++p) {
      float* const row = rows.data() + p * cols;
      for (std::size_t i = 0; i < frequency.size(); ++i) {
        const double angle = static_cast<double>(first + p) * frequency[i];
        row[i] = static_cast<float>(std::cos(angle));
        row[i + frequency.size()] = static_cast<float>(std::sin(angle));
      }
    }
    backend.upload(*table, first * cols * sizeof(float),
                   std::as_bytes(std::span<const float>(rows.data(), n * cols)));
  }
  return table;
}

}  // namespace

Workspace::Workspace(Backend& backend, const ModelConfig& c, std::int64_t n_ctx, std::int64_t max_rows,
                     std::int64_t max_logit_rows)
    : max_rows_(max_rows),
      hidden_(c.hidden_size),
      q_dim_(c.q_dim()),
      kv_dim_(c.kv_dim()),
      intermediate_(c.intermediate_size),
      vocab_(c.vocab_size),
      residual_(matrix(backend, max_rows, hidden_)),
      normed_(matrix(backend, max_rows, hidden_)),
      q_(matrix(backend, max_rows, q_dim_)),
      k_(matrix(backend, max_rows, kv_dim_)),
      v_(matrix(backend, max_rows, kv_dim_)),
      attention_(matrix(backend, max_rows, q_dim_)),
      gate_(matrix(backend, max_rows, intermediate_)),
      up_(matrix(backend, max_rows, intermediate_)),
      logits_(matrix(backend, max_logit_rows, vocab_)),
      rope_(make_rope_table(backend, c, n_ctx)) {}

void Workspace::set_rows(std::int64_t n_rows) {
  if (n_rows < 1 || n_rows > max_rows_) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("a forward pass of {} rows: the workspace holds 1 … {}", n_rows, max_rows_));
  }
  n_rows_ = n_rows;
}

std::size_t Workspace::bytes() const noexcept {
  std::size_t sum = 0;
  for (const BufferPtr* b :
       {&residual_, &normed_, &q_, &k_, &v_, &attention_, &gate_, &up_, &logits_, &rope_}) {
    sum += (*b)->bytes();
  }
  return sum;
}

}  // namespace bitnet::inference
