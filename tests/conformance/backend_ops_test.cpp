// The conformance of backends: on every case of the table (backend_cases.hpp) every backend that is not the
// CPU's (opencl_variants.hpp) must give the CPU's bits (of an instruction set with fused multiply-adds),
// whatever its kernels make use of. What the CPU's own bits should be is tested against plain definitions in
// bitnet-inference and bitnet-quant.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend_cases.hpp"
#include "bitnet/core/device/registry.hpp"
#include "bitnet/core/f32_kernels.hpp"
#include "bitnet/gpu/register.hpp"
#include "bitnet/inference/register.hpp"
#include "bitnet/testing/isa_class.hpp"
#include "bitnet/testing/opencl.hpp"
#include "bitnet/testing/testing.hpp"
#include "opencl_variants.hpp"

namespace bitnet::conformance {
namespace {

/// An instruction set of this CPU with fused multiply-adds; the best one.
std::optional<Isa> fused_isa() {
  std::optional<Isa> best;
  for (const Isa isa : compiled_isas())
    if (is_supported(isa) && testing::is_fused(f32_kernels(isa))) best = isa;
  return best;
}

std::vector<float> results_of(const Case& c, Backend& backend) {
  Run run(backend, std::hash<std::string>()(c.name));
  c.body(run);
  return run.results();
}

/// The CPU's results of every case, computed once.
const std::vector<std::vector<float>>& expected() {
  static const std::vector<std::vector<float>> all = [] {
    const auto cpu = inference::make_cpu_backend(std::make_shared<const ExecutionContext>(
        ExecutionContext::Options{.threads = 2, .isa = fused_isa()}));
    std::vector<std::vector<float>> results;
    for (const Case& c : cases()) results.push_back(results_of(c, *cpu));
    return results;
  }();
  return all;
}

/// NaNs are equal: their signs and payloads mean nothing.
bool same(float a, float b) { return std::memcmp(&a, &b, sizeof a) == 0 || (std::isnan(a) && std::isnan(b)); }

void expect_conformance(Backend& backend, bool whole) {
  const std::vector<Case> all = cases();
  for (std::size_t i = 0; i < all.size(); ++i) {
    const bool hard = all[i].name.find("all kinds") != std::string::npos ||
                      all[i].name.find("division") != std::string::npos;
    if (!whole && !hard && i % 4 != 0) continue;
    const std::vector<float>& want = expected()[i];
    const std::vector<float> got = results_of(all[i], backend);
    ASSERT_EQ(got.size(), want.size()) << all[i].name;
    std::size_t differ = 0, first = 0;
    for (std::size_t j = 0; j < got.size(); ++j) {
      if (same(got[j], want[j])) continue;
      if (differ++ == 0) first = j;
    }
    EXPECT_EQ(differ, 0u) << all[i].name << ": of " << got.size() << " values; the first, " << first
                          << ", is " << got[first] << " instead of " << want[first];
  }
}

class OpenClConformance : public ::testing::TestWithParam<Variant> {};

TEST_P(OpenClConformance, EveryOpHasTheBitsOfTheCpu) {
  if (!fused_isa()) GTEST_SKIP() << "this CPU has no fused multiply-add";
  const Variant& variant = GetParam();
  BackendRegistry registry;
  gpu::Options options = variant.options;
  if (simulated()) options.program_folder.emplace();  // reports name lines of sources, which binaries lack
  gpu::register_backends(registry, options);
  BITNET_REQUIRE_OPENCL_DEVICE(!registry.devices().empty());
  const auto context =
      std::make_shared<const ExecutionContext>(ExecutionContext::Options{.threads = 2, .isa = fused_isa()});
  for (const Device& d : registry.devices()) {
    SCOPED_TRACE(d.name);
    const TextInFront in_front(variant.in_front);
    const auto backend = registry.create(d.name, context);
    for (std::size_t op = 0; op < kBackendOpCount; ++op)
      EXPECT_TRUE(backend->supports(static_cast<BackendOp>(op)));
    expect_conformance(*backend, variant.table == Table::kWhole || simulated());
    if (*variant.in_front == 0) continue;
    const DeviceStatistics done = backend->statistics();  // each program was compiled with that text
    EXPECT_EQ(done.compiled_programs, done.programs);
    EXPECT_EQ(static_cast<std::uint64_t>(in_front.sources()), done.programs);
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels, OpenClConformance, ::testing::ValuesIn(opencl_variants()),
                         [](const auto& variant) { return std::string(variant.param.name); });

}  // namespace
}  // namespace bitnet::conformance
