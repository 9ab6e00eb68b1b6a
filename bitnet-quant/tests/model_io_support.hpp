#pragma once
// Small models made in memory for the tests of model_io: configurations of each family and a source of
// tensors.
#include <algorithm>
#include <cstring>
#include <functional>
#include <map>
#include <string>

#include "bitnet/core/rng.hpp"
#include "bitnet/quant/model_io.hpp"

namespace bitnet::quant::testing {

/// `wide`: every K a multiple of 256, so that all types hold it; else K of 60, 96 and 100.
inline ModelConfig small_config(ModelFamily family, bool wide = true) {
  ModelConfig c;
  c.family = family;
  c.sub_norms = family != ModelFamily::kLlama;
  c.activation = family == ModelFamily::kBitNet25 ? Activation::kRelu2 : Activation::kSilu;
  c.weights = WeightKind::kTernary;
  c.vocab_size = 7;
  c.hidden_size = wide ? 256 : 60;
  c.intermediate_size = wide ? 512 : 100;
  c.n_layers = 2;
  c.n_heads = wide ? 4 : 6;
  c.n_kv_heads = 2;
  c.head_dim = wide ? 64 : 16;
  c.max_position = 128;
  c.tied_embeddings = family == ModelFamily::kBitNet25;
  c.rms_norm_eps = 1e-5f;
  c.rope_theta = 500000.0;
  c.bos_id = 1;
  c.eos_ids = {2, 3};
  return c;
}

/// What the linears of a model made in memory are.
/// kTernaryByBlock: a scale per 256 columns of a row.
enum class Linears : std::uint8_t { kTernary, kTernaryPerRow, kTernaryByBlock, kFloat };

/// Tensors from a seed; embeddings and norms are exact in f16 and bf16 (multiples of 1/64 up to 2).
class MemoryModel {
 public:
  MemoryModel(const ModelConfig& config, Linears linears, std::uint64_t seed = 1) {
    Rng rng(seed);
    for (const TensorId id : model_tensors(config)) {
      LogicalTensor t;
      t.id = id;
      t.shape = tensor_shape(id, config);
      const auto n = static_cast<std::size_t>(t.shape.numel());
      if (is_linear(id.role) && linears != Linears::kFloat) {
        t.ternary = true;
        t.weights.out = t.shape[0];
        t.weights.in = t.shape[1];
        for (std::size_t i = 0; i < n; ++i)
          t.weights.trits.push_back(static_cast<std::int8_t>(rng.below(3)) - 1);
        t.weights.rows_per_scale = linears == Linears::kTernary ? t.weights.out : 1;
        const bool blocks = linears == Linears::kTernaryByBlock && t.weights.in > 256;
        if (blocks) t.weights.cols_per_scale = 256;
        const std::int64_t scales =
            t.weights.out / t.weights.rows_per_scale * (blocks ? t.weights.in / 256 : 1);
        for (std::int64_t i = 0; i < scales; ++i)
          t.weights.scales.push_back(0.01f + static_cast<float>(rng.uniform()));  // not exact in f16
      } else {
        std::vector<float> values(n);
        for (float& v : values) v = (static_cast<float>(rng.below(256)) - 128.0f) / 64.0f;
        t.dense.resize(n * sizeof(float));
        std::memcpy(t.dense.data(), values.data(), t.dense.size());
      }
      tensors_[{id.role, id.layer}] = std::move(t);
    }
  }
  LogicalTensor& operator[](TensorId id) { return tensors_.at({id.role, id.layer}); }
  const LogicalTensor& operator[](TensorId id) const { return tensors_.at({id.role, id.layer}); }
  std::function<LogicalTensor(TensorId)> source() const {
    return [this](TensorId id) { return (*this)[id]; };
  }

 private:
  std::map<std::pair<TensorRole, std::int64_t>, LogicalTensor> tensors_;
};

/// Whether rows(id), asked for ranges of `step` rows from the last to the first, gives what read(id) does.
inline bool rows_are_those_of_read(const ModelReader& reader, TensorId id, std::int64_t step) {
  const LogicalTensor whole = reader.read(id);
  const TensorRows rows = reader.rows(id);
  const std::int64_t n = whole.shape.rank() == 2 ? whole.shape[0] : 1;
  const auto cols = static_cast<std::size_t>(whole.shape.numel() / n);
  if (rows.id != id || rows.shape != whole.shape || rows.ternary != whole.ternary) return false;
  if (rows.scales != whole.weights.scales || (rows.trits != nullptr) != whole.ternary) return false;
  const auto same = [&](const auto& source, const auto& expected, std::size_t row_size) {
    auto got = expected;
    std::fill(got.begin(), got.end(), typename std::decay_t<decltype(got)>::value_type{});
    for (std::int64_t end = n; end > 0; end -= std::min(step, end)) {
      const std::int64_t begin = std::max<std::int64_t>(0, end - step);
      source(begin, end, got.data() + static_cast<std::size_t>(begin) * row_size);
    }
    return got == expected;
  };
  if (whole.ternary)
    return rows.cols_per_scale == whole.weights.cols_per_scale &&
           rows.rows_per_scale == whole.weights.rows_per_scale && same(rows.trits, whole.weights.trits, cols);
  return rows.dtype == whole.dtype && same(rows.dense, whole.dense, cols * bits_of(whole.dtype) / 8);
}

}  // namespace bitnet::quant::testing
