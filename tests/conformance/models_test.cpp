// Tiny models of every architecture and format in tests/data/models, whose logits a NumPy transformer
// computed in float64 (make_models.py there): ours must agree within a derived bound, to the bit for any
// threads and chunking.
#include <cstring>
#include <map>
#include <vector>

#include "bitnet/core/io/safetensors.hpp"
#include "bitnet/inference/engine.hpp"
#include "bitnet/testing/isa_class.hpp"
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

std::vector<float> run(const std::string& file, const std::vector<TokenId>& tokens, std::size_t threads,
                       std::int64_t chunk_rows, Isa isa = default_isa(), HeadType head = HeadType::kAuto,
                       DType kv_type = DType::kF16) {
  ExecutionContext::Options machine;
  machine.threads = threads;
  machine.isa = isa;
  EngineOptions options;
  options.model = testing::source_path("tests/data/models/" + file);
  options.context = std::make_shared<const ExecutionContext>(machine);
  options.chunk_rows = chunk_rows;
  options.head = head;
  options.kv_type = kv_type;
  InferenceEngine engine(options);
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
  // NumPy's are not rounded.
  const std::vector<float> logits =
      run(file, expected.tokens, 1, 256, default_isa(), HeadType::kStored, DType::kF32);
  ASSERT_EQ(logits.size(), expected.logits.size());
  EngineOptions options;
  options.model = testing::source_path("tests/data/models/" + file);
  const InferenceEngine engine(options);
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

TEST_P(Models, GiveTheSameBitsForAnyThreadsAndChunks) {
  const std::string file = GetParam().file;
  const Golden expected = golden(file.substr(0, file.find(".gguf")));
  const std::vector<float> whole = run(file, expected.tokens, 1, 256);
  for (const std::size_t threads : {1, 2, 5}) {
    for (const std::int64_t chunk : {1, 3, 7}) {
      const std::vector<float> again = run(file, expected.tokens, threads, chunk);
      ASSERT_EQ(again.size(), whole.size());
      EXPECT_EQ(std::memcmp(again.data(), whole.data(), whole.size() * sizeof(float)), 0)
          << threads << " threads, chunks of " << chunk;
    }
  }
}

/// docs/numerics.md: instruction sets with a fused multiply-add are one class, those without another.
TEST_P(Models, GiveTheSameBitsOnAllInstructionSetsOfAClass) {
  const std::string file = GetParam().file;
  const Golden expected = golden(file.substr(0, file.find(".gguf")));
  std::map<bool, std::pair<Isa, std::vector<float>>> first;
  for (const Isa isa : compiled_isas()) {
    if (!is_supported(isa)) continue;
    const bool fused = testing::is_fused(f32_kernels(isa));
    std::vector<float> logits = run(file, expected.tokens, 2, 4, isa);
    const auto [entry, is_first] = first.try_emplace(fused, isa, logits);
    if (is_first) continue;
    const auto& [reference, values] = entry->second;
    ASSERT_EQ(logits.size(), values.size());
    EXPECT_EQ(std::memcmp(logits.data(), values.data(), logits.size() * sizeof(float)), 0)
        << to_string(isa) << " and " << to_string(reference);
  }
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
