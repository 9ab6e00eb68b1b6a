// Chooses between the ISA objects made of f32_table.cpp, and cuts one gemm over threads. The algorithms are
// in generic/*.inl.hpp.
#include "bitnet/core/f32_kernels.hpp"

#include <algorithm>
#include <atomic>

#include "bitnet/core/execution.hpp"
#include "bitnet/core/memory/hybrid_memory_pool.hpp"
#include "bitnet/core/memory/memory_handle.hpp"
#include "bitnet/core/self_test.hpp"
#include "kernels/self_test.hpp"

#define BITNET_ISA_ROW(name, supported) \
  namespace bitnet::kernels::name {     \
  extern const F32Kernels kKernels;     \
  }
#include "bitnet/simd/isa.def"
#undef BITNET_ISA_ROW

namespace bitnet {
namespace {

constexpr const F32Kernels* kTables[] = {
#define BITNET_ISA_ROW(name, supported) &kernels::name::kKernels,
#include "bitnet/simd/isa.def"
#undef BITNET_ISA_ROW
};

/// A cut of [m, n] into blocks of `rows` × `cols`.
struct Cut {
  std::int64_t rows, cols;
};

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

/// About four blocks a thread (so that a thread that is held up does not hold up the rest), none below a
/// million multiply-adds, cut where the fewest elements are packed twice.
Cut choose_cut(std::int64_t m, std::int64_t n, std::int64_t k, std::size_t threads) {
  const double work =
      static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(std::max<std::int64_t>(k, 1));
  const auto parts =
      static_cast<std::int64_t>(std::min(4.0 * static_cast<double>(threads), std::max(1.0, work / 1e6)));
  if (threads == 1 || parts == 1) return {m, n};
  Cut best{m, n};
  double best_cost = 0;
  for (std::int64_t tm = 1; tm <= parts; ++tm) {
    // Multiples of 8 rows and 32 columns: whole register tiles on most ISAs.
    const std::int64_t rows = ceil_div(ceil_div(m, tm), 8) * 8;
    const std::int64_t cols = ceil_div(ceil_div(n, ceil_div(parts, tm)), 32) * 32;
    const auto blocks_m = static_cast<double>(ceil_div(m, rows)),
               blocks_n = static_cast<double>(ceil_div(n, cols));
    if (blocks_m * blocks_n < static_cast<double>(threads) && tm > 1) continue;
    // Packing one element costs about as much as 8 multiply-adds of a 32-wide kernel; too few blocks cost
    // their share.
    const double packing = blocks_n * static_cast<double>(m) + blocks_m * static_cast<double>(n);
    const double idle =
        std::max(0.0, static_cast<double>(parts) - blocks_m * blocks_n) / static_cast<double>(parts);
    const double cost = packing * 8 + idle * static_cast<double>(m) * static_cast<double>(n);
    if (tm == 1 || cost < best_cost) {
      best = {rows, cols};
      best_cost = cost;
    }
  }
  return best;
}

}  // namespace

const F32Kernels& f32_kernels(Isa isa) noexcept { return *kTables[isa.index]; }

const F32Kernels& tested_f32_kernels(Isa isa) {
  static PassedIsas passed;
  return passed.tested(isa, f32_kernels(isa), [](const F32Kernels& k) { self_test(k); });
}

void gemm(const ExecutionContext& context, std::int64_t m, std::int64_t n, std::int64_t k, const float* a,
          std::int64_t a_row, std::int64_t a_col, const float* b, std::int64_t b_row, std::int64_t b_col,
          float* c, std::int64_t ldc, bool accumulate) {
  if (m <= 0 || n <= 0) return;
  const F32Kernels& table = tested_f32_kernels(context.isa());
  const Cut cut = choose_cut(m, n, k, context.threads());
  const std::int64_t blocks_n = ceil_div(n, cut.cols), blocks = ceil_div(m, cut.rows) * blocks_n;
  // Blocks are taken, not dealt: a thread that the system holds up does not hold up the rest.
  std::atomic<std::int64_t> next{0};
  const auto run = [&](std::size_t, std::size_t) {
    const MemoryBlock panels(*context.memory(), table.gemm_scratch * sizeof(float), 64, "gemm panels");
    auto* const scratch = static_cast<float*>(panels.data());
    for (std::int64_t block = next++; block < blocks; block = next++) {
      const std::int64_t i = block / blocks_n * cut.rows, j = block % blocks_n * cut.cols;
      table.gemm(std::min(cut.rows, m - i), std::min(cut.cols, n - j), k, a + i * a_row, a_row, a_col,
                 b + j * b_col, b_row, b_col, c + i * ldc + j, ldc, accumulate, scratch);
    }
  };
  if (blocks == 1)
    run(0, 1);
  else
    context.parallel_for(std::min(static_cast<std::size_t>(blocks), context.threads()), 1, run);
}

}  // namespace bitnet
