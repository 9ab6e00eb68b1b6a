// The self-test: every ISA of this CPU passes it, and a table with one fault does not, whichever kernel has
// it.
#include "self_test.hpp"

#include "bitnet/testing/testing.hpp"
#include "quant_support.hpp"

namespace bitnet::quant {
namespace {

const TernaryKernels& sound() { return ternary_kernels(compiled_isas().front()); }

/// The sound product with its last result one too large where `faulty` says so.
template <class Faulty>
void spoil(const TernaryProduct& p, Faulty faulty) {
  sound().multiply(p);
  if (!faulty(p)) return;
  const std::int64_t last = p.rows * p.out - 1;
  if (p.acc != nullptr)
    p.acc[last] += 1;
  else
    p.y[last] += 1;
}

TEST(SelfTest, EveryIsaOfThisCpuPasses) {
  for (const Isa isa : compiled_isas()) {
    if (!is_supported(isa)) continue;
    EXPECT_NO_THROW(self_test(ternary_kernels(isa))) << to_string(isa);
    EXPECT_EQ(&tested_kernels(isa), &ternary_kernels(isa));
    EXPECT_NO_THROW(self_test(int8_kernels(isa))) << to_string(isa);
    EXPECT_EQ(&tested_int8_kernels(isa), &int8_kernels(isa));
  }
}

TEST(SelfTest, OneWrongResultIsAnErrorThatNamesTheKernel) {
  TernaryKernels faulty = sound();
  faulty.isa = "avx9";
  faulty.multiply = [](const TernaryProduct& p) noexcept {
    spoil(p, [](const TernaryProduct& q) {
      return q.code == TileCode::kBase3 && q.rows > 8 && q.acc != nullptr;
    });
  };
  BITNET_EXPECT_ERROR(
      self_test(faulty), ErrorCode::kDevice,
      "self-test of the instruction set 'avx9': multiply of code base3, 9 rows of 661 columns gave");
  BITNET_EXPECT_ERROR(self_test(faulty), ErrorCode::kDevice, "in row 8, output 32 of 33");
  BITNET_EXPECT_ERROR(self_test(faulty), ErrorCode::kDevice, "set BITNET_ISA to another (scalar");
  faulty.multiply = [](const TernaryProduct& p) noexcept {
    spoil(p, [](const TernaryProduct& q) {
      return q.code == TileCode::kTwoBit && q.rows == 1 && q.y != nullptr;
    });
  };
  BITNET_EXPECT_ERROR(self_test(faulty), ErrorCode::kDevice,
                      "multiply of code two_bit, 1 rows of 517 columns gave");
}

TEST(SelfTest, OneWrongInt8ResultIsAnErrorThatNamesTheKernel) {
  Int8Kernels faulty = int8_kernels(compiled_isas().front());
  faulty.isa = "avx9";
  faulty.multiply = [](const Int8Product& p) noexcept {
    int8_kernels(compiled_isas().front()).multiply(p);
    if (p.rows > 8 && p.acc != nullptr) p.acc[p.rows * p.out - 1] += 1;
  };
  BITNET_EXPECT_ERROR(
      self_test(faulty), ErrorCode::kDevice,
      "self-test of the instruction set 'avx9': multiply of int8, 9 rows of 661 columns gave");
  faulty.multiply = [](const Int8Product& p) noexcept {
    int8_kernels(compiled_isas().front()).multiply(p);
    if (p.rows == 1 && p.y != nullptr) p.y[0] = 0.5f;
  };
  BITNET_EXPECT_ERROR(self_test(faulty), ErrorCode::kDevice,
                      "multiply of int8, 1 rows of 517 columns gave 0.5");
}

TEST(SelfTest, AWrongQuantiserIsAnError) {
  TernaryKernels faulty = sound();
  faulty.quantize = [](const float* x, float a, std::int8_t* q, std::size_t n) noexcept {
    const std::int32_t sum = sound().quantize(x, a, q, n);
    q[1] = 1;  // 1.5 rounded down
    return sum;
  };
  BITNET_EXPECT_ERROR(self_test(faulty), ErrorCode::kDevice, "quantize gave 1 instead of 2 for 1.5");
  faulty.quantize = [](const float* x, float a, std::int8_t* q, std::size_t n) noexcept {
    return sound().quantize(x, a, q, n) + 1;
  };
  BITNET_EXPECT_ERROR(self_test(faulty), ErrorCode::kDevice, "quantize gave the sum");
}

}  // namespace
}  // namespace bitnet::quant
