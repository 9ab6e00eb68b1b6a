// The peak probe and its loops: the loops of every instruction set compute what they say, so that nothing was
// left out. No test looks at how fast they are.
#include "bitnet/quant/peak.hpp"

#include <cmath>

#include "bitnet/testing/testing.hpp"
#include "kernels/peak_table.hpp"

namespace bitnet::quant {
namespace {

TEST(PeakProbe, GivesRates) {
  for (const std::size_t threads : {1, 2}) {
    ExecutionContext::Options options;
    options.threads = threads;
    PeakProbe probe(std::make_shared<const ExecutionContext>(options));
    EXPECT_EQ(probe.int8_gops(), 0);
    EXPECT_EQ(probe.f32_gflops(), 0);
    probe.sample();
    for (const double rate : {probe.int8_gops(), probe.f32_gflops()}) {
      EXPECT_GT(rate, 0);
      EXPECT_TRUE(std::isfinite(rate));
    }
  }
}

TEST(PeakLoops, ComputeEveryRound) {
  const PeakKernels& table = peak_kernels(default_isa());
  EXPECT_EQ(table.isa, to_string(default_isa()));
  for (const PeakLoop& loop : {table.int8, table.f32}) {
    EXPECT_GT(loop.operations, 0);
    EXPECT_GT(loop.first, 0);
    for (const std::int32_t rounds : {0, 1, 2, 77})
      EXPECT_EQ(loop.run(static_cast<std::size_t>(rounds)), rounds * loop.first);
  }
}

}  // namespace
}  // namespace bitnet::quant
