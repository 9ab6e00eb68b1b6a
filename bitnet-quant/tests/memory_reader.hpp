#pragma once
// A ModelReader of a model in memory, and inputs of its linears, for the tests of quantisers and calibration.
#include <cmath>
#include <cstring>
#include <functional>
#include <vector>

#include "bitnet/core/error.hpp"
#include "bitnet/quant/calibration.hpp"
#include "model_io_support.hpp"

namespace bitnet::quant::testing {

class MemoryReader final : public ModelReader {
 public:
  MemoryReader(ModelConfig config, MemoryModel model)
      : config_(std::move(config)), model_(std::move(model)) {}
  MemoryModel& model() { return model_; }

  ModelFormat format() const noexcept override { return ModelFormat::kHf; }
  const ModelConfig& config() const noexcept override { return config_; }
  std::shared_ptr<const Tokenizer> tokenizer() const override { return nullptr; }
  std::vector<TensorId> tensors() const override { return model_tensors(config_); }
  LogicalTensor read(TensorId id) const override { return model_[id]; }
  TensorRows rows(TensorId) const override { throw Error(ErrorCode::kUnsupported, "no rows"); }
  bool float_linears() const noexcept override { return true; }
  std::optional<DType> float_type(TensorId id) const override {
    const LogicalTensor& t = model_[id];
    return t.ternary ? std::nullopt : std::optional(t.dtype);
  }
  std::string stored_type(TensorId) const override { return "memory"; }
  std::uint64_t stored_bytes(TensorId) const override { return 0; }
  std::uint64_t file_bytes() const override { return 0; }
  std::vector<std::string> notes() const override { return {}; }

 private:
  ModelConfig config_;
  MemoryModel model_;
};

/// A dense Llama of two layers with linears of 64 and 96 columns.
inline ModelConfig dense_config() {
  ModelConfig c = small_config(ModelFamily::kLlama, false);
  c.weights = WeightKind::kDense;
  c.hidden_size = 64;
  c.intermediate_size = 96;
  c.n_heads = 4;
  c.n_kv_heads = 2;
  c.head_dim = 16;
  return c;
}

inline MemoryReader dense_reader() {
  return {dense_config(), MemoryModel(dense_config(), Linears::kFloat, 3)};
}

/// Of a dense tensor of f32.
inline void set_values(LogicalTensor& t, const std::vector<float>& values) {
  t.dense.resize(values.size() * sizeof(float));
  std::memcpy(t.dense.data(), values.data(), t.dense.size());
}

/// Rows from a seed that differ by input; neighbouring columns are alike, every seventh is large. Counts what
/// it was asked, and scales the rows behind a replaced linear, so that a test sees who came when.
class RandomActivations final : public ActivationSource {
 public:
  RandomActivations(ModelConfig config, std::int64_t rows) : config_(std::move(config)), rows_(rows) {}

  void stream(const std::function<bool(TensorId)>& wanted, const Sink& sink) override {
    asked.emplace_back();
    for (const TensorId id : linear_inputs(config_)) {
      if (!wanted(id)) continue;
      asked.back().push_back(id);
      sink(id, rows_of(id));
    }
  }
  void replace(const LogicalTensor& weights) override { replaced.push_back(weights.id); }

  std::vector<float> rows_of(TensorId id) const {
    Rng rng(100 * static_cast<std::uint64_t>(id.layer) + static_cast<std::uint64_t>(id.role));
    const std::int64_t in = input_width(id, config_);
    std::vector<float> x;
    for (std::int64_t r = 0; r < rows_; ++r) {
      float last = 0;
      for (std::int64_t c = 0; c < in; ++c) {
        last = 0.8f * last + static_cast<float>(2 * rng.uniform() - 1);
        x.push_back(last * (c % 7 == 0 ? 3.0f : 1.0f) * (1.0f + static_cast<float>(replaced.size())));
      }
    }
    return x;
  }

  std::vector<std::vector<TensorId>> asked;  ///< of each pass
  std::vector<TensorId> replaced;

 private:
  ModelConfig config_;
  std::int64_t rows_;
};

}  // namespace bitnet::quant::testing
