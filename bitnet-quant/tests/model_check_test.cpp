// What is found in a model's tensors before anything is made of them.
#include "bitnet/quant/model_check.hpp"

#include <fmt/format.h>

#include <atomic>
#include <limits>

#include "bitnet/testing/testing.hpp"
#include "memory_reader.hpp"
#include "quantizer_support.hpp"

namespace bitnet::quant {
namespace {

using testing::dense_reader;
using testing::MemoryReader;
using testing::mixed;
using testing::set_values;

TEST(ModelCheck, NamesWhatIsNotFinite) {
  for (const TensorId id : {TensorId{TensorRole::kTokenEmbedding}, TensorId{TensorRole::kFfnNorm, 1},
                            TensorId{TensorRole::kFfnDown, 1}}) {
    MemoryReader reader = dense_reader();
    EXPECT_TRUE(check_model(reader).warnings.empty());
    LogicalTensor& t = reader.model()[id];
    std::vector<float> w = t.to_f32();
    w[3] = std::numeric_limits<float>::quiet_NaN();
    t.dtype = DType::kF32;
    set_values(t, w);
    BITNET_EXPECT_ERROR(
        check_model(reader), ErrorCode::kInvalidArgument,
        fmt::format("tensor '{}': the weight in row 0, column 3 is nan, not finite", gguf_name(id)));
  }
  const std::atomic<bool> flag{true};
  const MemoryReader reader = dense_reader();
  BITNET_EXPECT_ERROR(check_model(reader, {}, &flag), ErrorCode::kCancelled, "cancelled");
}

TEST(ModelCheck, WarnsOfTablesThatCannotHaveBeenTrained) {
  MemoryReader reader = dense_reader();
  const auto fill = [&](TensorId id, float v) {
    LogicalTensor& t = reader.model()[id];
    t.dtype = DType::kF32;
    set_values(t, std::vector<float>(static_cast<std::size_t>(t.shape.numel()), v));
  };
  fill({TensorRole::kTokenEmbedding}, 0.25f);
  fill({TensorRole::kAttnNorm, 0}, 0);
  fill({TensorRole::kFfnNorm, 0}, 0.5f);
  fill({TensorRole::kFfnNorm, 1}, 1);  // as one may be made
  MemoryReader last = reader;          // the last value alone is another one
  LogicalTensor& table = last.model()[{TensorRole::kTokenEmbedding}];
  std::vector<float> values = table.to_f32();
  values.back() = 0.5f;
  set_values(table, values);
  EXPECT_EQ(check_model(last).warnings.size(), 2u);
  EXPECT_EQ(check_model(reader).warnings,
            (std::vector<std::string>{
                "tensor 'token_embd.weight': every value is 0.25: it cannot have been trained",
                "tensor 'blk.0.attn_norm.weight': every value is 0: nothing comes through it",
                "tensor 'blk.0.ffn_norm.weight': every value is 0.5: it cannot have been trained"}));
}

TEST(ModelCheck, FindsWhatIsTernaryAlready) {
  MemoryReader reader = dense_reader();
  EXPECT_TRUE(check_model(reader).ternary.empty());
  const TensorId up{TensorRole::kFfnUp, 0}, down{TensorRole::kFfnDown, 1};
  for (const TensorId id : {up, down}) {  // scales by row, and by tensor
    std::vector<float> w = reader.model()[id].to_f32();
    const std::size_t in = id == up ? 64 : w.size();
    for (std::size_t i = 0; i < w.size(); ++i)
      w[i] = (w[i] > 0.5f ? 1.0f : w[i] < -0.5f ? -1.0f : 0.0f) * (0.1f + 0.01f * static_cast<float>(i / in));
    set_values(reader.model()[id], w);
  }
  const ModelFindings found = check_model(reader);
  EXPECT_TRUE(found.is_ternary(up) && found.is_ternary(down));
  EXPECT_EQ(found.ternary.size(), 2u);
  const auto plans = [&](WeightMethod method, ScaleUnit scales) {
    return plan_linears(mixed(method, scales), reader.config());
  };
  BITNET_EXPECT_ERROR(
      check_model(reader, plans(WeightMethod::kGptq, ScaleUnit::kTensor)), ErrorCode::kInvalidArgument,
      "tensor 'blk.0.ffn_up.weight': the weights are ternary already, with scales by row, which "
      "gptq with scales by tensor would destroy: expected 'method: gptq' with 'scales: row'");
  EXPECT_NO_THROW(check_model(reader, plans(WeightMethod::kGptq, ScaleUnit::kRow)));
  EXPECT_NO_THROW(check_model(reader, plans(WeightMethod::kInt8, ScaleUnit::kTensor)));
}

}  // namespace
}  // namespace bitnet::quant
