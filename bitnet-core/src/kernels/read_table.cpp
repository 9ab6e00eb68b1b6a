// Loops that read memory, for the bandwidth probe: compiled once per instruction set, so that the loads are
// as wide as its kernels'. Which of them a machine likes best differs; device/bandwidth.cpp tries all.
// Prefetch with the non-temporal hint is not among them: it halves the rate.
#include "kernels/read_table.hpp"

#include "bitnet/simd/this_isa.hpp"

namespace bitnet {
namespace {

typedef std::uint32_t Words __attribute__((vector_size(simd::F32::kLanes * 4)));
typedef std::uint32_t WordsMem __attribute__((vector_size(simd::F32::kLanes * 4), aligned(4), may_alias));
constexpr std::size_t kLine = 64, kVectors = kLine / sizeof(Words);  // of a line

/// sums[i] ^= vector i of the line at p
BITNET_INLINE void read_line(const std::uint8_t* p, Words* sums) {
  BITNET_UNROLL for (std::size_t i = 0; i < kVectors; ++i) sums[i] ^= reinterpret_cast<const WordsMem*>(p)[i];
}

BITNET_INLINE std::uint32_t fold(const Words* sums, std::size_t n) {
  std::uint32_t total = 0;
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t lane = 0; lane < simd::F32::kLanes; ++lane) total ^= sums[i][lane];
  return total;
}

/// One stream, two lines an iteration, prefetched `Ahead` bytes ahead (0: left to the hardware).
template <std::size_t Ahead>
std::uint32_t linear(const void* from, std::size_t bytes) noexcept {
  const auto* p = static_cast<const std::uint8_t*>(from);
  Words sums[2 * kVectors] = {};
  for (std::size_t i = 0; i < bytes; i += 2 * kLine) {
    if constexpr (Ahead != 0) {
      __builtin_prefetch(p + i + Ahead);  // past the end it is a hint that nothing follows
      __builtin_prefetch(p + i + Ahead + kLine);
    }
    read_line(p + i, sums);
    read_line(p + i + kLine, sums + kVectors);
  }
  return fold(sums, 2 * kVectors);
}

/// `Count` streams side by side, each through its share, a line of each an iteration.
template <std::size_t Count>
std::uint32_t streams(const void* from, std::size_t bytes) noexcept {
  const auto* p = static_cast<const std::uint8_t*>(from);
  const std::size_t share = bytes / Count;
  Words sums[Count][kVectors] = {};
  for (std::size_t i = 0; i < share; i += kLine) {
    BITNET_UNROLL for (std::size_t s = 0; s < Count; ++s) read_line(p + s * share + i, sums[s]);
  }
  return fold(&sums[0][0], Count * kVectors);
}

}  // namespace

namespace kernels::BITNET_ISA {

extern const ReadKernels kReads;
constinit const ReadKernels kReads{
    .isa = BITNET_STR(BITNET_ISA),
    .loops = {{"linear", &linear<0>},
              {"linear, prefetch 512", &linear<512>},
              {"linear, prefetch 1024", &linear<1024>},
              {"linear, prefetch 4096", &linear<4096>},
              {"2 streams", &streams<2>},
              {"4 streams", &streams<4>}},
};

}  // namespace kernels::BITNET_ISA
}  // namespace bitnet
