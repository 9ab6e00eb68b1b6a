#pragma once
// What the tests of whole models in files share: a directory to write to, and comparing what is read with
// what was written. The models are model_io_support.hpp's.
#include <memory>
#include <string>

#include "bitnet/core/dtype.hpp"
#include "bitnet/quant/model_io.hpp"
#include "bitnet/testing/testing.hpp"
#include "model_io_support.hpp"

namespace bitnet::quant {

inline constexpr ModelFamily kFamilies[] = {ModelFamily::kBitNet25, ModelFamily::kBitNetOld,
                                            ModelFamily::kLlama};

/// A directory, and models written to it and read again.
class ModelIo : public ::testing::Test {
 protected:
  std::unique_ptr<ModelReader> round_trip(const ModelConfig& config, const testing::MemoryModel& model,
                                          const WriteOptions& options,
                                          FloatLinears floats = FloatLinears::kAsConfigured) {
    const auto path = dir_ / ("m" + std::to_string(++n_));
    write_model(path, config, nullptr, model.source(), options);
    return ModelReader::open(path, floats);
  }
  bitnet::testing::TempDir dir_;
  int n_ = 0;
};

inline WriteOptions options_of(LinearType type, bool gguf = true) {
  WriteOptions o;
  o.type = type;
  o.gguf = gguf;
  return o;
}

inline void expect_config(const ModelConfig& a, const ModelConfig& b) {
  EXPECT_EQ(a.family, b.family);
  EXPECT_EQ(a.weights, b.weights);
  EXPECT_EQ(a.activation, b.activation);
  EXPECT_EQ(a.n_kv_heads, b.n_kv_heads);
  EXPECT_EQ(a.head_dim, b.head_dim);
  EXPECT_EQ(a.tied_embeddings, b.tied_embeddings);
  EXPECT_EQ(a.eos_ids, b.eos_ids);
  EXPECT_EQ(a.rms_norm_eps, b.rms_norm_eps);
}

/// Every tensor equal, scales through `scale`.
template <class Scale>
void expect_tensors(const ModelReader& reader, const testing::MemoryModel& model, Scale&& scale) {
  for (const TensorId id : reader.tensors()) {
    const LogicalTensor got = reader.read(id), &expected = model[id];
    SCOPED_TRACE(gguf_name(id) + " " + reader.stored_type(id));
    EXPECT_EQ(got.id, id);
    for (const std::int64_t step : {1, 3, 1000})
      EXPECT_TRUE(testing::rows_are_those_of_read(reader, id, step));
    EXPECT_EQ(got.shape, expected.shape);
    ASSERT_EQ(got.ternary, expected.ternary);
    if (!got.ternary) {
      EXPECT_EQ(got.to_f32(), expected.to_f32());
      continue;
    }
    EXPECT_EQ(got.weights.trits, expected.weights.trits);
    ASSERT_EQ(got.weights.scales.size(), expected.weights.scales.size());
    EXPECT_EQ(got.weights.rows_per_scale, expected.weights.rows_per_scale);
    EXPECT_EQ(got.weights.cols_per_scale, expected.weights.cols_per_scale);
    for (std::size_t i = 0; i < got.weights.scales.size(); ++i)
      EXPECT_EQ(got.weights.scales[i], scale(expected.weights.scales[i]));
  }
}

inline const auto kSame = [](float s) { return s; };
inline const auto kHalf = [](float s) { return f16_to_f32(f32_to_f16(s)); };

}  // namespace bitnet::quant
