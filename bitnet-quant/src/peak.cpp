// The peak probe: the loops of kernels/peak_table.cpp on all threads of a context.
#include "bitnet/quant/peak.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <utility>
#include <vector>

#include "bitnet/core/statistics.hpp"
#include "kernels/peak_table.hpp"

#define BITNET_ISA_ROW(name, supported)    \
  namespace bitnet::quant::kernels::name { \
  extern const PeakKernels kPeaks;         \
  }
#include "bitnet/simd/isa.def"
#undef BITNET_ISA_ROW

namespace bitnet::quant {
namespace {

constexpr double kSampleSeconds = 0.01;

}  // namespace

const PeakKernels& peak_kernels(Isa isa) noexcept {
  static constexpr const PeakKernels* kTables[] = {
#define BITNET_ISA_ROW(name, supported) &kernels::name::kPeaks,
#include "bitnet/simd/isa.def"
#undef BITNET_ISA_ROW
  };
  return *kTables[isa.index];
}

struct PeakProbe::Impl {
  struct Loop {
    explicit Loop(const PeakLoop& l) : code(l) {}
    PeakLoop code;
    std::size_t rounds = 16;
    std::vector<double> rates;
  };

  explicit Impl(std::shared_ptr<const ExecutionContext> c)
      : context(std::move(c)),
        int8(peak_kernels(context->isa()).int8),
        f32(peak_kernels(context->isa()).f32) {
    calibrate(int8);
    calibrate(f32);
  }

  double seconds(const Loop& loop) {
    const auto begin = std::chrono::steady_clock::now();
    context->parallel_for(context->threads(), 1, [&](std::size_t first, std::size_t last) {
      for (std::size_t t = first; t < last; ++t)
        sink.fetch_xor(loop.code.run(loop.rounds), std::memory_order_relaxed);
    });
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }

  /// Rounds that fill a sample; on the way the clock settles for this instruction set.
  void calibrate(Loop& loop) {
    while (seconds(loop) < kSampleSeconds) loop.rounds *= 2;
  }

  void sample(Loop& loop) {
    const double operations = loop.code.operations * static_cast<double>(loop.rounds * context->threads());
    loop.rates.push_back(operations / seconds(loop) / 1e9);
  }

  std::shared_ptr<const ExecutionContext> context;
  Loop int8, f32;
  std::atomic<std::int32_t> sink{0};
};

PeakProbe::PeakProbe(std::shared_ptr<const ExecutionContext> context)
    : impl_(std::make_unique<Impl>(std::move(context))) {}

PeakProbe::~PeakProbe() = default;

void PeakProbe::sample() {
  impl_->sample(impl_->int8);
  impl_->sample(impl_->f32);
}

double PeakProbe::int8_gops() const { return median(impl_->int8.rates); }
double PeakProbe::f32_gflops() const { return median(impl_->f32.rates); }

}  // namespace bitnet::quant
