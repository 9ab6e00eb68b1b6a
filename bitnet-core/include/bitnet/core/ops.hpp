#pragma once
// Elementwise operations with broadcasting, comparisons, choice and matrix products of tensors. Reductions,
// softmax and norms are reductions.hpp; moving elements (gather, scatter, concat) is indexing.hpp; solving is
// linalg.hpp; views and conversions are Tensor's own.
//
// All functions: operands may have any strides; results are new and contiguous, and they and temporaries are
// of the context's memory pool. Shapes broadcast as NumPy's do (aligned from the last axis, size 1 repeats).
// Both operands have one dtype; f16 and bf16 are computed in f32 and rounded once; i8 and i32 wrap modulo 2^8
// and 2^32. Every result has the same bits for any number of threads, and the classes of instruction sets of
// docs/numerics.md. Throw Error(kInvalidArgument) naming the op and both operands' shapes or dtypes when they
// do not fit, for kTernary (convert it), and for a shape that overflows; Error(kOutOfMemory). Reading one
// tensor from several threads is safe.
#include <cstdint>
#include <string_view>

#include "bitnet/core/execution.hpp"
#include "bitnet/core/tensor.hpp"

namespace bitnet::ops {

/// The shape that both broadcast to. Throws Error(kInvalidArgument) naming both.
Shape broadcast_shapes(const Shape& a, const Shape& b);

enum class Binary : std::uint8_t {
  kAdd,
  kSub,
  kMul,
  kDiv,      ///< not of integers
  kMaximum,  ///< a NaN of either side comes out; of −0 and 0 the left one
  kMinimum,
};
std::string_view to_string(Binary op) noexcept;  ///< "add", …

Tensor binary(const ExecutionContext& context, Binary op, const Tensor& x, const Tensor& y);
/// x = x op y; y broadcasts to x, never the other way. They may share memory in any way; x itself must not
/// name one place twice (a broadcast view).
void binary_in_place(const ExecutionContext& context, Binary op, Tensor& x, const Tensor& y);
/// x op s, s rounded to x's dtype (an Error where an integer dtype does not hold it exactly).
Tensor binary(const ExecutionContext& context, Binary op, const Tensor& x, double s);
void binary_in_place(const ExecutionContext& context, Binary op, Tensor& x, double s);

inline Tensor add(const ExecutionContext& c, const Tensor& x, const Tensor& y) {
  return binary(c, Binary::kAdd, x, y);
}
inline Tensor sub(const ExecutionContext& c, const Tensor& x, const Tensor& y) {
  return binary(c, Binary::kSub, x, y);
}
inline Tensor mul(const ExecutionContext& c, const Tensor& x, const Tensor& y) {
  return binary(c, Binary::kMul, x, y);
}
inline Tensor div(const ExecutionContext& c, const Tensor& x, const Tensor& y) {
  return binary(c, Binary::kDiv, x, y);
}

enum class Comparison : std::uint8_t { kEqual, kNotEqual, kLess, kLessEqual, kGreater, kGreaterEqual };
std::string_view to_string(Comparison op) noexcept;  ///< "equal", …

/// i8 tensor of 0 and 1; NaN is unequal to everything.
Tensor compare(const ExecutionContext& context, Comparison op, const Tensor& x, const Tensor& y);

/// condition[i] != 0 ? x[i] : y[i]; condition is i8, all three broadcast; any dtype but kTernary.
Tensor where(const ExecutionContext& context, const Tensor& condition, const Tensor& x, const Tensor& y);

/// Floats only but for kNeg, kAbs, kSquare and kRelu, which integers have too (|−128| wraps to −128).
enum class Unary : std::uint8_t {
  kNeg,
  kAbs,
  kSquare,
  kSqrt,        ///< correctly rounded; of negatives NaN
  kReciprocal,  ///< 1/x, correctly rounded
  kExp,         ///< within 2 ulp
  kLog,         ///< within 3 ulp; log 0 = −∞, of negatives NaN
  kTanh,        ///< within 4 ulp
  kSigmoid,     ///< 1/(1 + e^−x), within 4 ulp; 0 below −88.72
  kRelu,        ///< max(x, 0); a NaN stays one
  kSilu,        ///< x·sigmoid(x), likewise
  kFloor,
  kCeil,
  kRound,  ///< half to even
};
std::string_view to_string(Unary op) noexcept;  ///< "neg", …

Tensor unary(const ExecutionContext& context, Unary op, const Tensor& x);
void unary_in_place(const ExecutionContext& context, Unary op, Tensor& x);

/// min(max(x, low), high); a NaN stays one. Floats only. Throws for low > high or NaN bounds.
Tensor clamp(const ExecutionContext& context, const Tensor& x, float low, float high);
void clamp_in_place(const ExecutionContext& context, Tensor& x, float low, float high);

/// Matrix product over the last two axes, the others broadcast: [..., m, k] · [..., k, n] → [..., m, n].
/// A vector on the left is a row, on the right a column, whose axis the result lacks (NumPy's rules). Views,
/// transposed ones among them, are read in place when they are f32. f32, f16 and bf16: f32 chains of
/// multiply-adds in ascending k, results of 16 bits rounded at the end. i8 × i8 → i32, exact (k ≤ 131071).
/// Throws Error(kUnsupported) for i32.
Tensor matmul(const ExecutionContext& context, const Tensor& a, const Tensor& b);

}  // namespace bitnet::ops
