// The read-bandwidth probe: one buffer, cut over the threads of a context, and the loops of
// kernels/read_table.cpp over it.
#include "bitnet/core/device/bandwidth.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "bitnet/core/error.hpp"
#include "bitnet/core/memory/hybrid_memory_pool.hpp"
#include "bitnet/core/memory/memory_handle.hpp"
#include "bitnet/core/statistics.hpp"
#include "kernels/read_table.hpp"

#define BITNET_ISA_ROW(name, supported) \
  namespace bitnet::kernels::name {     \
  extern const ReadKernels kReads;      \
  }
#include "bitnet/simd/isa.def"
#undef BITNET_ISA_ROW

namespace bitnet {
namespace {

constexpr const ReadKernels* kTables[] = {
#define BITNET_ISA_ROW(name, supported) &kernels::name::kReads,
#include "bitnet/simd/isa.def"
#undef BITNET_ISA_ROW
};

// A sample reads at least so much: some milliseconds even from a cache, so that starting the threads is no
// part of the figure.
constexpr std::size_t kSampleBytes = std::size_t{256} << 20;

}  // namespace

struct BandwidthProbe::Impl {
  Impl(std::shared_ptr<const ExecutionContext> c, std::size_t asked)
      : context(std::move(c)), loops(kTables[context->isa().index]->loops) {
    const std::size_t unit = kReadUnit * context->threads();
    if (asked == 0) throw Error(ErrorCode::kInvalidArgument, "a bandwidth probe of 0 bytes");
    if (asked > SIZE_MAX - unit) throw_out_of_memory(fmt::format("a bandwidth probe of {} bytes", asked));
    share = (asked + unit - 1) / unit * kReadUnit;
    bytes = share * context->threads();
    block = with_context(fmt::format("a bandwidth probe of {} bytes", bytes), [&] {
      return MemoryBlock(*context->memory(), bytes, kMaxAlignment, "bandwidth probe");
    });
    data = static_cast<std::uint8_t*>(block.data());
    // Written, or every page would be the one page of zeros; by the threads that read it, for NUMA's sake.
    each_thread([&](std::size_t t) { std::memset(data + t * share, 0x5A, share); });
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  template <class Body>
  void each_thread(Body&& body) const {
    context->parallel_for(context->threads(), 1, [&](std::size_t begin, std::size_t end) {
      for (std::size_t t = begin; t < end; ++t) body(t);
    });
  }

  /// GB/s of one pass or several.
  double run(const ReadLoop& loop) {
    const std::size_t passes = std::max<std::size_t>(1, kSampleBytes / bytes);
    const auto begin = std::chrono::steady_clock::now();
    each_thread([&](std::size_t t) {
      std::uint32_t words = 0;
      for (std::size_t i = 0; i < passes; ++i) words ^= loop.read(data + t * share, share);
      sink.fetch_xor(words, std::memory_order_relaxed);
    });
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    return static_cast<double>(bytes) * static_cast<double>(passes) / seconds.count() / 1e9;
  }

  std::size_t best() const {
    std::size_t at = 0;
    for (std::size_t i = 1; i < kReadLoops; ++i)
      if (median(rates[i]) > median(rates[at])) at = i;
    return at;
  }

  std::shared_ptr<const ExecutionContext> context;
  const ReadLoop* loops;
  std::size_t share = 0, bytes = 0;  // of a thread, of all
  MemoryBlock block;                 // of the context's pool
  std::uint8_t* data = nullptr;
  std::vector<double> rates[kReadLoops];
  std::atomic<std::uint32_t> sink{0};
};

BandwidthProbe::BandwidthProbe(std::shared_ptr<const ExecutionContext> context, std::size_t bytes)
    : impl_(std::make_unique<Impl>(std::move(context), bytes)) {}

BandwidthProbe::~BandwidthProbe() = default;

void BandwidthProbe::sample() {
  for (std::size_t i = 0; i < kReadLoops; ++i) impl_->rates[i].push_back(impl_->run(impl_->loops[i]));
}

double BandwidthProbe::gigabytes_per_second() const { return median(impl_->rates[impl_->best()]); }

std::string BandwidthProbe::best_loop() const {
  const std::size_t at = impl_->best();
  return impl_->rates[at].empty() ? "" : impl_->loops[at].name;
}

std::size_t BandwidthProbe::bytes() const noexcept { return impl_->bytes; }

std::size_t bandwidth_probe_bytes(std::size_t cache_bytes, std::size_t available_bytes) noexcept {
  constexpr std::size_t kLeast = std::size_t{128} << 20, kMost = std::size_t{1} << 30;
  const std::size_t caches = std::min(cache_bytes, SIZE_MAX / 8);
  const std::size_t wanted = std::max(std::clamp(8 * caches, kLeast, kMost), 2 * caches);
  return std::max(std::min(wanted, available_bytes / 2), std::size_t{1} << 20);
}

}  // namespace bitnet
