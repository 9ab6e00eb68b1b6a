// When a model is loaded and a session or a scheduler is made, every program of its steps is built: whatever
// comes then, of any number of rows, and however long the context, compiles nothing.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "bitnet/core/execution.hpp"
#include "bitnet/gpu/register.hpp"
#include "bitnet/inference/batch_scheduler.hpp"
#include "bitnet/inference/fallback_backend.hpp"
#include "bitnet/inference/model.hpp"
#include "bitnet/inference/register.hpp"
#include "bitnet/inference/session.hpp"
#include "bitnet/quant/quantizer.hpp"
#include "bitnet/testing/opencl.hpp"
#include "bitnet/testing/testing.hpp"

namespace bitnet {
namespace {

using inference::BatchScheduler;
using inference::Model;
using inference::Session;

struct Case {
  const char* name;
  const char* model;  // of tests/data/models or models; null: one with linears of every kind
  bool wide, own_memory;
  DType kv_type;
};
void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

class PreparedPrograms : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    gpu::Options options;
    options.kernels.wide = GetParam().wide;
    options.kernels.zero_copy = !GetParam().own_memory;
    options.program_folder = "";  // nothing of earlier runs
    gpu::register_backends(devices_, options);
    BITNET_REQUIRE_OPENCL_DEVICE(!devices_.devices().empty());
    model_ = Model::load(file(),
                         inference::with_cpu_fallback(devices_.create(devices_.devices()[0].name, context_),
                                                      inference::make_cpu_backend(context_)));
  }

  std::string file() {
    if (GetParam().model != nullptr) return testing::source_path(GetParam().model);
    const auto reader = quant::ModelReader::open(testing::source_path("tests/data/models/llama-dense"));
    const quant::QuantConfig config = quant::QuantConfig::from_yaml(
        "scheme: mixed_precision\n"
        "weights: {method: ls, scales: row}\n"
        "layers:\n"
        "  - {match: '*attn_k', method: two-plane}\n"
        "  - {match: '*attn_v', method: int8}\n"
        "  - {match: '*ffn_gate', scales: group32}\n"
        "keep: ['*attn_output']\n",
        "plan");
    quant::WriteOptions as;
    as.type = quant::LinearType::kExtended;
    quant::Quantizer quantizer(*context_, *reader, config);
    const auto to = dir_.path() / "mixed";
    quant::write_model(
        to, reader->config(), nullptr, [&](TensorId id) { return quantizer.read(id); }, as);
    return to.string();
  }

  std::uint64_t programs() const { return model_->backend().statistics().programs; }
  std::vector<TokenId> ids(std::int64_t n) const {
    std::vector<TokenId> all(static_cast<std::size_t>(n));
    for (std::size_t i = 0; i < all.size(); ++i)
      all[i] = static_cast<TokenId>((7 * i + 3) % static_cast<std::size_t>(model_->config().vocab_size));
    return all;
  }

  testing::TempDir dir_;
  BackendRegistry devices_;
  std::shared_ptr<const ExecutionContext> context_ =
      std::make_shared<const ExecutionContext>(ExecutionContext::Options{.threads = 2, .isa = {}});
  std::shared_ptr<const Model> model_;
};

TEST_P(PreparedPrograms, AreAllThatASessionRuns) {
  constexpr std::int64_t kContext = 600;  // in tiles of keys, where heads are few
  Session session(model_, {.n_ctx = kContext, .chunk_rows = 64, .kv_type = GetParam().kv_type});
  const std::uint64_t ready = programs();
  EXPECT_GT(ready, 0u);
  for (const std::int64_t n : {1, 2, 3, 5, 8, 9, 16, 17, 33}) {
    session.evaluate(ids(n), std::min(n, Session::kMaxLogits));
    EXPECT_EQ(programs(), ready) << "a prompt of " << n;
  }
  session.evaluate(ids(kContext - 4 - static_cast<std::int64_t>(session.tokens().size())));
  for (int i = 0; i < 3; ++i) session.evaluate(ids(1), 1, 4);
  EXPECT_EQ(programs(), ready) << "a long context";
}

TEST_P(PreparedPrograms, AreAllThatBatchesRun) {
  BatchScheduler scheduler(
      model_,
      {.n_ctx = 32, .max_sequences = 20, .step_rows = 64, .page_size = 8, .kv_type = GetParam().kv_type});
  const std::uint64_t ready = programs();
  for (const int sequences : {1, 2, 3, 5, 9, 20}) {
    int done = 0;
    for (int i = 0; i < sequences; ++i) {
      inference::Request r;
      r.prompt = ids(2 + i % 3);
      r.options.max_tokens = 3;
      r.options.ignore_eos = true;
      r.options.sampling.seed = static_cast<std::uint64_t>(i);
      r.options.sampling.top_k = 4;
      r.on_done = [&done](inference::RequestId, const inference::GenerationResult& result) {
        EXPECT_FALSE(result.error.has_value()) << result.error->what();
        ++done;
      };
      scheduler.submit(std::move(r));
    }
    scheduler.run();
    EXPECT_EQ(done, sequences);
    EXPECT_EQ(programs(), ready) << sequences << " sequences";
  }
}

INSTANTIATE_TEST_SUITE_P(
    Models, PreparedPrograms,
    ::testing::Values(Case{"shipped", "models/bitnet-demo-i2_s.gguf", true, true, DType::kF16},
                      Case{"dense", "tests/data/models/llama-dense", true, false, DType::kF32},
                      Case{"mixed", nullptr, true, true, DType::kI8},
                      Case{"mixed_in_groups", nullptr, false, true, DType::kF16}),
    [](const auto& each) { return std::string(each.param.name); });

}  // namespace
}  // namespace bitnet
