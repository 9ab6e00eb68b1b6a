// The self-tests of the float, attention and tensor kernels: every ISA of this CPU passes them, and a table
// with one fault does not, whichever kernel has it.
#include "kernels/self_test.hpp"

#include <cmath>
#include <string>
#include <utility>

#include "bitnet/core/ops.hpp"
#include "bitnet/core/self_test.hpp"
#include "bitnet/testing/testing.hpp"
#include "kernels/tensor_table.hpp"

namespace bitnet {
namespace {

const F32Kernels& floats() { return f32_kernels(compiled_isas().front()); }
const TensorKernels& tensors() { return tensor_kernels(compiled_isas().front()); }
const AttentionKernels& attention() { return attention_kernels(compiled_isas().front()); }

TEST(KernelSelfTest, EveryIsaOfThisCpuPasses) {
  for (const Isa isa : compiled_isas()) {
    if (!is_supported(isa)) continue;
    EXPECT_NO_THROW(self_test(f32_kernels(isa))) << to_string(isa);
    EXPECT_EQ(&tested_f32_kernels(isa), &f32_kernels(isa));
    EXPECT_NO_THROW(self_test(attention_kernels(isa), f32_kernels(isa))) << to_string(isa);
    EXPECT_EQ(&tested_attention_kernels(isa), &attention_kernels(isa));
    EXPECT_NO_THROW(self_test(tensor_kernels(isa), f32_kernels(isa))) << to_string(isa);
    EXPECT_EQ(&tested_tensor_kernels(isa), &tensor_kernels(isa));
  }
}

void expect_refused(const F32Kernels& faulty, const std::string& kernel) {
  BITNET_EXPECT_ERROR(self_test(faulty), ErrorCode::kDevice,
                      "self-test of the instruction set 'avx9': " + kernel + " gave");
  BITNET_EXPECT_ERROR(self_test(faulty), ErrorCode::kDevice, "set BITNET_ISA to another (scalar");
}

/// Of a row kernel whose result is `to`: the last bit of one element.
void spoil(float* to, std::size_t i) { to[i] = std::nextafter(to[i], 2.0f); }

#define BITNET_EXPECT_FAULT(kernel, parameters, arguments, last) \
  do {                                                           \
    F32Kernels faulty = floats();                                \
    faulty.isa = "avx9";                                         \
    faulty.kernel = [] parameters noexcept {                     \
      floats().kernel arguments;                                 \
      last;                                                      \
    };                                                           \
    expect_refused(faulty, #kernel);                             \
  } while (false)

#define BITNET_EXPECT_SCALAR_FAULT(kernel, parameters, arguments)                                          \
  do {                                                                                                     \
    F32Kernels faulty = floats();                                                                          \
    faulty.isa = "avx9";                                                                                   \
    faulty.kernel = [] parameters noexcept { return std::nextafter(floats().kernel arguments, 1000.0f); }; \
    expect_refused(faulty, #kernel);                                                                       \
  } while (false)

TEST(KernelSelfTest, OneWrongBitOfAReductionIsAnErrorThatNamesTheKernel) {
  using F = const float*;
  using H = const std::uint16_t*;
  BITNET_EXPECT_SCALAR_FAULT(dot, (F x, F y, std::size_t n), (x, y, n));
  BITNET_EXPECT_SCALAR_FAULT(dot_f16, (H x, F y, std::size_t n), (x, y, n));
  BITNET_EXPECT_SCALAR_FAULT(dot_bf16, (H x, F y, std::size_t n), (x, y, n));
  BITNET_EXPECT_SCALAR_FAULT(sum, (F x, std::size_t n), (x, n));
  BITNET_EXPECT_SCALAR_FAULT(sum_squares, (F x, std::size_t n), (x, n));
  BITNET_EXPECT_SCALAR_FAULT(max, (F x, std::size_t n), (x, n));
  BITNET_EXPECT_SCALAR_FAULT(max_abs, (F x, std::size_t n), (x, n));
  BITNET_EXPECT_SCALAR_FAULT(exp_sum, (float* x, float m, std::size_t n), (x, m, n));
}

TEST(KernelSelfTest, OneWrongBitOfARowIsAnErrorThatNamesTheKernel) {
  using F = const float*;
  using H = const std::uint16_t*;
  using I = std::int64_t;
  BITNET_EXPECT_FAULT(axpy, (float a, F x, float* y, std::size_t n), (a, x, y, n),
                      if (n > 1) spoil(y, n - 1));
  BITNET_EXPECT_FAULT(axpy_rows, (F a, F x, I s, I rows, float* y, std::size_t n), (a, x, s, rows, y, n),
                      spoil(y, n - 1));
  BITNET_EXPECT_FAULT(dots, (const F* x, I rows, F w, I s, I cols, std::size_t n, float* y, I ys),
                      (x, rows, w, s, cols, n, y, ys), spoil(y, 24));
  BITNET_EXPECT_FAULT(dots_f16, (const F* x, I rows, H w, I s, I cols, std::size_t n, float* y, I ys),
                      (x, rows, w, s, cols, n, y, ys), spoil(y, 24));
  BITNET_EXPECT_FAULT(dots_bf16, (const F* x, I rows, H w, I s, I cols, std::size_t n, float* y, I ys),
                      (x, rows, w, s, cols, n, y, ys), spoil(y, 24));
  BITNET_EXPECT_FAULT(rms_norm, (F x, F w, float eps, float* y, std::size_t n), (x, w, eps, y, n),
                      spoil(y, 36));
  BITNET_EXPECT_FAULT(scale, (float a, float* x, std::size_t n), (a, x, n), spoil(x, 16));
  BITNET_EXPECT_FAULT(add, (F x, float* y, std::size_t n), (x, y, n), spoil(y, 0));
  BITNET_EXPECT_FAULT(mul, (F x, float* y, std::size_t n), (x, y, n), spoil(y, 35));
  BITNET_EXPECT_FAULT(relu2_gate, (F g, F u, float* y, std::size_t n), (g, u, y, n), spoil(y, 5));
  BITNET_EXPECT_FAULT(silu_gate, (F g, F u, float* y, std::size_t n), (g, u, y, n), y[36] *= 1.000001f);
  BITNET_EXPECT_FAULT(rope, (float* x, F c, F s, std::size_t half), (x, c, s, half), spoil(x, 41));
  BITNET_EXPECT_FAULT(f16_to_f32, (H x, float* y, std::size_t n), (x, y, n), spoil(y, 1));
  BITNET_EXPECT_FAULT(bf16_to_f32, (H x, float* y, std::size_t n), (x, y, n), spoil(y, 36));
  BITNET_EXPECT_FAULT(gemm,
                      (I m, I n, I k, F a, I ar, I ac, F b, I br, I bc, float* c, I ldc, bool acc, float* s),
                      (m, n, k, a, ar, ac, b, br, bc, c, ldc, acc, s), if (acc) spoil(c, 9 * 35 - 1));
}

TEST(KernelSelfTest, AMultiplyAddOfNeitherClassIsAnError) {
  F32Kernels faulty = floats();
  faulty.isa = "avx9";
  faulty.axpy = [](float, const float*, float* y, std::size_t) noexcept { *y = 0x1p-23f; };
  expect_refused(faulty, "axpy");
}

/// The sound tile with one wrong bit in the last row's values, only where it merges.
template <auto kTile>
void wrong_merge(const AttentionTile& t) noexcept {
  (attention().*kTile)(t);
  if (t.merge) spoil(t.state.values, static_cast<std::size_t>(t.rows - 1) * 16 + 9);
}
template <auto kTile>
void wrong_sum(const AttentionTile& t) noexcept {
  (attention().*kTile)(t);
  if (!t.merge) spoil(t.state.sum, 0);
}

TEST(KernelSelfTest, OneWrongBitOfAttentionIsAnErrorThatNamesTheKernel) {
  const auto refused = [](auto change, const std::string& kernel) {
    AttentionKernels faulty = attention();
    faulty.isa = "avx9";
    change(faulty);
    BITNET_EXPECT_ERROR(self_test(faulty, floats()), ErrorCode::kDevice,
                        "self-test of the instruction set 'avx9': " + kernel + " gave");
  };
  using K = AttentionKernels;
  refused([](K& k) { k.tile_f32 = &wrong_merge<&K::tile_f32>; }, "tile_f32");
  refused([](K& k) { k.tile_f16 = &wrong_merge<&K::tile_f16>; }, "tile_f16");
  refused([](K& k) { k.tile_i8 = &wrong_merge<&K::tile_i8>; }, "tile_i8");
  refused([](K& k) { k.tile_f32 = &wrong_sum<&K::tile_f32>; }, "tile_f32");
  refused([](K& k) { k.tile_i8 = &wrong_sum<&K::tile_i8>; }, "tile_i8");
  refused(
      [](K& k) {
        k.merge = [](const AttentionState& part, const AttentionState& into, std::int64_t rows,
                     std::int64_t dim) noexcept {
          attention().merge(part, into, rows, dim);
          spoil(into.largest, static_cast<std::size_t>(rows - 1));
        };
      },
      "merge");
  refused(
      [](K& k) {
        k.f32_to_f16 = [](const float* x, std::uint16_t* y, std::size_t n) noexcept {
          attention().f32_to_f16(x, y, n);
          y[0] += 1;  // a tie rounded up
        };
      },
      "f32_to_f16");
  refused(
      [](K& k) {
        k.quantize = [](const float* x, std::int8_t* y, std::size_t n) noexcept {
          const float scale = attention().quantize(x, y, n);
          y[2] = 1;  // 1.5 rounded down
          return scale;
        };
      },
      "quantize");
  refused(
      [](K& k) {
        k.quantize = [](const float* x, std::int8_t* y, std::size_t n) noexcept {
          return std::nextafter(attention().quantize(x, y, n), 2.0f);
        };
      },
      "quantize's scale");
}

void expect_refused(const TensorKernels& faulty, const std::string& kernel) {
  BITNET_EXPECT_ERROR(self_test(faulty, floats()), ErrorCode::kDevice,
                      "self-test of the instruction set 'avx9': " + kernel + " gave");
}

template <std::size_t kOp>
void wrong_binary(const float* x, bool x_one, const float* y, bool y_one, float* out,
                  std::size_t n) noexcept {
  tensors().binary[kOp](x, x_one, y, y_one, out, n);
  if (x_one && !y_one) spoil(out, n - 1);
}
template <std::size_t kOp>
void wrong_comparison(const float* x, bool x_one, const float* y, bool y_one, std::int8_t* out,
                      std::size_t n) noexcept {
  tensors().compare[kOp](x, x_one, y, y_one, out, n);
  if (y_one) out[n - 1] ^= 1;
}
template <std::size_t kOp>
void wrong_function(const float* x, float* out, std::size_t n) noexcept {
  tensors().unary[kOp](x, out, n);
  out[n - 2] = out[n - 2] * 1.000002f + 1e-30f;  // 17 ulp: beyond every bound
}

template <std::size_t... kOps>
void refuse_wrong_tables(std::index_sequence<kOps...>) {
  const auto refused = [](auto change, std::string_view kernel) {
    TensorKernels faulty = tensors();
    faulty.isa = "avx9";
    change(faulty);
    expect_refused(faulty, std::string(kernel));
  };
  const auto each = [&]<std::size_t kOp>(std::integral_constant<std::size_t, kOp>) {
    if constexpr (kOp < kBinaryOps)
      refused([](TensorKernels& k) { k.binary[kOp] = &wrong_binary<kOp>; },
              ops::to_string(static_cast<ops::Binary>(kOp)));
    if constexpr (kOp < kComparisons)
      refused([](TensorKernels& k) { k.compare[kOp] = &wrong_comparison<kOp>; },
              ops::to_string(static_cast<ops::Comparison>(kOp)));
    refused([](TensorKernels& k) { k.unary[kOp] = &wrong_function<kOp>; },
            ops::to_string(static_cast<ops::Unary>(kOp)));
  };
  (each(std::integral_constant<std::size_t, kOps>()), ...);
}

TEST(KernelSelfTest, AWrongTensorOpIsAnErrorThatNamesTheKernel) {
  refuse_wrong_tables(std::make_index_sequence<kUnaryOps>());
}

TEST(KernelSelfTest, AWrongRowOrConversionIsAnErrorThatNamesTheKernel) {
  using F = const float*;
#define BITNET_EXPECT_TENSOR_FAULT(kernel, parameters, arguments, last) \
  do {                                                                  \
    TensorKernels faulty = tensors();                                   \
    faulty.isa = "avx9";                                                \
    faulty.kernel = [] parameters noexcept {                            \
      auto result = [&] { return tensors().kernel arguments; };         \
      last;                                                             \
    };                                                                  \
    expect_refused(faulty, #kernel);                                    \
  } while (false)
  BITNET_EXPECT_TENSOR_FAULT(max, (F x, std::size_t n), (x, n), return std::nextafter(result(), 1000.0f));
  BITNET_EXPECT_TENSOR_FAULT(min, (F x, std::size_t n), (x, n), return std::nextafter(result(), 1000.0f));
  BITNET_EXPECT_TENSOR_FAULT(arg_max, (F x, std::size_t n), (x, n), return result() + 1);
  BITNET_EXPECT_TENSOR_FAULT(arg_min, (F x, std::size_t n), (x, n),
                             return n == 37 && result() == 11 ? 18 : result());  // the second of equals
  BITNET_EXPECT_TENSOR_FAULT(
      matvec, (F w, std::int64_t stride, std::int64_t rows, F x, std::int64_t n, float* y),
      (w, stride, rows, x, n, y), (result(), spoil(y, static_cast<std::size_t>(rows) - 1)));
  BITNET_EXPECT_TENSOR_FAULT(sum_abs, (F x, std::size_t n), (x, n),
                             return std::nextafter(result(), 10000.0f));
  BITNET_EXPECT_TENSOR_FAULT(sum_deviations, (F x, float m, std::size_t n), (x, m, n),
                             return std::nextafter(result(), 1e9f));
  BITNET_EXPECT_TENSOR_FAULT(normalize, (F x, float m, float f, F w, F b, float* y, std::size_t n),
                             (x, m, f, w, b, y, n), (result(), spoil(y, n - 1)));
  BITNET_EXPECT_TENSOR_FAULT(clamp, (F x, float l, float h, float* y, std::size_t n), (x, l, h, y, n),
                             (result(), spoil(y, 4)));
  BITNET_EXPECT_TENSOR_FAULT(f32_to_f16, (F x, std::uint16_t * y, std::size_t n), (x, y, n),
                             (result(), void(y[n - 1] ^= 1)));
  BITNET_EXPECT_TENSOR_FAULT(f32_to_bf16, (F x, std::uint16_t * y, std::size_t n), (x, y, n),
                             (result(), void(y[3] = 0x7f80)));  // a NaN made infinite
  BITNET_EXPECT_TENSOR_FAULT(f32_to_i8, (F x, std::int8_t * y, std::size_t n), (x, y, n),
                             (result(), void(y[6] = 3)));  // 2.5 rounded up
  BITNET_EXPECT_TENSOR_FAULT(f32_to_i32, (F x, std::int32_t * y, std::size_t n), (x, y, n),
                             (result(), void(y[1] -= 1)));  // saturated one too low
  BITNET_EXPECT_TENSOR_FAULT(i8_to_f32, (const std::int8_t* x, float* y, std::size_t n), (x, y, n),
                             (result(), spoil(y, n - 1)));
  BITNET_EXPECT_TENSOR_FAULT(i32_to_f32, (const std::int32_t* x, float* y, std::size_t n), (x, y, n),
                             (result(), spoil(y, 5)));
#undef BITNET_EXPECT_TENSOR_FAULT
}

}  // namespace
}  // namespace bitnet
