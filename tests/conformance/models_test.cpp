// Tiny models of every architecture and format in tests/data/models, whose logits a NumPy transformer
// computed in float64 (make_models.py there): ours must agree within a derived bound. That the bits depend on
// nothing else is numerics_test.cpp's.
#include <cstring>
#include <vector>

#include "bitnet/core/io/safetensors.hpp"
#include "bitnet/inference/engine.hpp"
#include "bitnet/testing/reference_forward.hpp"
#include "bitnet/testing/testing.hpp"

namespace bitnet::inference {
namespace {

struct Golden {
  std::vector<TokenId> tokens;
  std::vector<float> logits;  // [tokens, vocab]
};

template <class T>
std::vector<T> read(const SafeTensors& file, const char* name) {
  const std::span<const std::byte> bytes = file.data(*file.find(name));
  std::vector<T> values(bytes.size() / sizeof(T));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

Golden golden(const std::string& name) {
  const auto file =
      SafeTensors::open(testing::source_path("tests/data/models/" + name + ".expected.safetensors"));
  return {read<TokenId>(*file, "tokens"), read<float>(*file, "logits")};
}

std::vector<float> run(InferenceEngine& engine, const std::vector<TokenId>& tokens) {
  std::vector<float> logits;
  engine.session().evaluate_all(tokens, 0, [&](std::int64_t, std::span<const float> row) {
    logits.insert(logits.end(), row.begin(), row.end());
  });
  return logits;
}

struct Case {
  const char* file;
  bool ternary;
};

class Models : public ::testing::TestWithParam<Case> {};

TEST_P(Models, GiveTheLogitsOfAnIndependentImplementation) {
  const std::string file = GetParam().file;
  const std::string name = file.substr(0, file.find(".gguf"));
  const Golden expected = golden(name);
  EngineOptions options;
  options.model = testing::source_path("tests/data/models/" + file);
  options.head = HeadType::kStored;  // NumPy's are not rounded
  options.kv_type = DType::kF32;
  InferenceEngine engine(options);
  const std::vector<float> logits = run(engine, expected.tokens);
  ASSERT_EQ(logits.size(), expected.logits.size());
  EXPECT_EQ(engine.model()->ternary(), GetParam().ternary);
  double largest = 0, worst = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    largest = std::max(largest, std::abs(static_cast<double>(expected.logits[i])));
    worst = std::max(worst, std::abs(static_cast<double>(logits[i]) - expected.logits[i]));
  }
  const double bound = testing::logit_bound(engine.model()->config(), largest);
  std::printf("%s: |logits| up to %.3f, worst difference %.3g, bound %.3g\n", file.c_str(), largest, worst,
              bound);
  EXPECT_LE(worst, bound);
}

INSTANTIATE_TEST_SUITE_P(All, Models,
                         ::testing::Values(Case{"bitnet-25-packed", true}, Case{"bitnet-25-online", true},
                                           Case{"1bitllm-float", true}, Case{"llama-packed-divide", true},
                                           Case{"llama-dense", false}, Case{"bitnet-b1.58-i2_s.gguf", true},
                                           Case{"llama-tq1_0.gguf", true}, Case{"llama-tq2_0.gguf", true}),
                         [](const auto& test) {
                           std::string name = test.param.file;
                           for (char& c : name)
                             if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
                           return name;
                         });

}  // namespace
}  // namespace bitnet::inference
