// See model_fingerprint.hpp.
#include "bitnet/quant/model_fingerprint.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <span>
#include <vector>

#include "bitnet/core/hash64.hpp"

namespace bitnet::quant {
namespace {

constexpr std::int64_t kRows = 8;  // of each tensor

void add_tensor(const ModelReader& reader, TensorId id, Hash64& hash) {
  const TensorRows t = reader.rows(id);
  hash.add(gguf_name(id));
  for (const std::int64_t n : t.shape.dims()) hash.add(static_cast<std::uint64_t>(n));
  hash.add(static_cast<std::uint64_t>(t.ternary));
  hash.add(std::as_bytes(std::span(t.scales)));
  const std::int64_t rows = t.shape.rank() == 2 ? t.shape[0] : 1;
  const auto cols = static_cast<std::size_t>(t.shape.numel() / std::max<std::int64_t>(rows, 1));
  std::vector<std::int8_t> trits(t.ternary ? cols : 0);
  LogicalTensor row;  // of dense rows
  row.dtype = t.dtype;
  row.dense.resize(t.ternary ? 0 : cols * bits_of(t.dtype) / 8);
  const std::int64_t n = std::min(rows, kRows);
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int64_t r = i * rows / n;
    if (t.ternary) {
      t.trits(r, r + 1, trits.data());
      hash.add(std::as_bytes(std::span(trits)));
    } else {
      t.dense(r, r + 1, row.dense.data());
      const std::vector<float> values = row.to_f32();
      hash.add(std::as_bytes(std::span(values)));
    }
  }
}

}  // namespace

std::string model_fingerprint(const ModelReader& reader) {
  const ModelConfig& c = reader.config();
  Hash64 hash;
  hash.add(fmt::format("heads {} {} {} activation {} eps {:.6g} theta {:.6g}", c.n_heads, c.n_kv_heads,
                       c.head_dim, static_cast<int>(c.activation), c.rms_norm_eps, c.rope_theta));
  for (const TensorId id : reader.tensors()) add_tensor(reader, id, hash);
  return fmt::format("{:016x}", hash.value());
}

}  // namespace bitnet::quant
