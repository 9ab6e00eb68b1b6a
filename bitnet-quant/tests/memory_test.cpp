// What quantising takes of memory is what working_bytes() says: every allocation of the process is counted,
// for each method, with one linear at a time and with all.
#include <malloc.h>

#include <fmt/format.h>
#include <atomic>
#include <cerrno>
#include <cstdlib>

#include "bitnet/quant/quantizer.hpp"
#include "bitnet/testing/testing.hpp"
#include "contexts.hpp"
#include "memory_reader.hpp"

namespace {

std::atomic<std::size_t> live{0}, peak{0};

void* count(void* p) {
  if (p == nullptr) return p;
  const std::size_t now = live += malloc_usable_size(p);
  std::size_t most = peak;
  while (now > most && !peak.compare_exchange_weak(most, now)) {
  }
  return p;
}

}  // namespace

// glibc's allocator under its own names: Eigen's buffers come from malloc(), those of vectors from operator
// new, which calls it.
extern "C" {
void* __libc_malloc(std::size_t bytes);
void* __libc_calloc(std::size_t n, std::size_t bytes);
void* __libc_realloc(void* p, std::size_t bytes);
void* __libc_memalign(std::size_t alignment, std::size_t bytes);
void __libc_free(void* p);

void* malloc(std::size_t bytes) noexcept { return count(__libc_malloc(bytes)); }
void* calloc(std::size_t n, std::size_t bytes) noexcept { return count(__libc_calloc(n, bytes)); }
void* realloc(void* p, std::size_t bytes) noexcept {
  if (p != nullptr) live -= malloc_usable_size(p);
  return count(__libc_realloc(p, bytes));
}
void* memalign(std::size_t alignment, std::size_t bytes) noexcept {
  return count(__libc_memalign(alignment, bytes));
}
void* aligned_alloc(std::size_t alignment, std::size_t bytes) noexcept { return memalign(alignment, bytes); }
int posix_memalign(void** to, std::size_t alignment, std::size_t bytes) noexcept {
  *to = memalign(alignment, bytes);
  return *to == nullptr ? ENOMEM : 0;
}
void free(void* p) noexcept {
  if (p != nullptr) live -= malloc_usable_size(p);
  __libc_free(p);
}
}

namespace bitnet::quant {
namespace {

using test::context;
using testing::Linears;
using testing::MemoryModel;
using testing::MemoryReader;
using testing::RandomActivations;

/// One layer, whose widest linear is [64, 2048]: with groups of 32 columns the systems of all its rows would
/// take 16 bytes a weight.
ModelConfig wide_config() {
  ModelConfig c = testing::dense_config();
  c.n_layers = 1;
  c.intermediate_size = 2048;
  return c;
}

struct Case {
  WeightMethod method;
  ScaleUnit scales;
};

TEST(QuantizerMemory, StaysWithinWhatIsAnnounced) {
  const ModelConfig model = wide_config();
  const MemoryReader reader(model, MemoryModel(model, Linears::kFloat, 3));
  RandomActivations source(model, 2100);  // enough for the rank to be looked at
  StreamedCalibration streamed(context(), source, model);
  for (const TensorId input : linear_inputs(model)) streamed.find(input);  // second moments are counted apart
  for (const Case& c : {Case{WeightMethod::kAbsmean, ScaleUnit::kTensor},
                        {WeightMethod::kLeastSquares, ScaleUnit::kTensor},
                        {WeightMethod::kLeastSquares, ScaleUnit::kGroup32},
                        {WeightMethod::kLeastSquaresRefit, ScaleUnit::kTensor},
                        {WeightMethod::kLeastSquaresRefit, ScaleUnit::kRow},
                        {WeightMethod::kLeastSquaresRefit, ScaleUnit::kGroup32},
                        {WeightMethod::kLeastSquaresRefit, ScaleUnit::kGroup64},
                        {WeightMethod::kGptq, ScaleUnit::kTensor},
                        {WeightMethod::kGptq, ScaleUnit::kGroup32},
                        {WeightMethod::kTwoPlane, ScaleUnit::kTensor},
                        {WeightMethod::kTwoPlane, ScaleUnit::kGroup64},
                        {WeightMethod::kInt8, ScaleUnit::kTensor},
                        {WeightMethod::kKeep, ScaleUnit::kTensor}}) {
    QuantConfig config;
    config.scheme = QuantScheme::kMixedPrecision;
    config.linears = {c.method, c.scales};
    config.gptq.multipliers = {1.0, 1.4};
    for (const bool calibrated : {false, true}) {
      if (!calibrated && needs_calibration(c.method)) continue;
      for (const std::uint64_t memory : {std::uint64_t{0}, std::uint64_t{1} << 30}) {
        SCOPED_TRACE(fmt::format("{} {}, {}, memory {}", to_string(c.method), to_string(c.scales),
                                 calibrated ? "calibrated" : "not calibrated", memory));
        QuantizerOptions options;
        options.memory = memory;
        if (calibrated) options.calibration = &streamed;
        Quantizer quantizer(context(), reader, config, options);
        const std::uint64_t announced =
            working_bytes(quantizer.plans(), model, memory, calibrated, context().threads());
        const std::size_t before = live;
        peak = before;
        quantizer.read({TensorRole::kAttnQ, 0});
        const std::size_t taken = peak - before;
        // Beside it: reports, tasks of the threads, panels of products.
        EXPECT_LE(taken, announced + (std::size_t{1} << 20));
        // And it is no empty promise. One linear at a time is the exact case; of several, not all are at
        // their peak together.
        EXPECT_GT(taken, announced / (memory == 0 ? 2 : 4));
      }
    }
  }
}

TEST(QuantizerMemory, IsThatOfTheLargestLinearAtLeast) {
  const ModelConfig model = wide_config();
  QuantConfig config;
  config.linears = {WeightMethod::kLeastSquaresRefit, ScaleUnit::kRow};
  const auto plans = plan_linears(config, model);
  const std::uint64_t least = working_bytes(plans, model, 0, true, 2), cells = 64 * 2048;
  EXPECT_GE(least, 17 * cells);  // weights, trits, and three matrices of the refit
  // More memory is used as far as there are linears for it.
  std::uint64_t last = least;
  for (std::uint64_t memory = 1 << 20; memory <= 64 << 20; memory *= 2) {
    const std::uint64_t now = working_bytes(plans, model, memory, true, 2);
    EXPECT_GE(now, last);
    EXPECT_LE(now, least + memory);
    last = now;
  }
  EXPECT_GT(last, least);
  EXPECT_EQ(last, working_bytes(plans, model, std::uint64_t{1} << 40, true, 2));
}

}  // namespace
}  // namespace bitnet::quant
