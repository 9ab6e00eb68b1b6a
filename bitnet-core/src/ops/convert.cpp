// Conversions of elements: runs through the vector kernels where a float holds every value of the source,
// one element at a time through double where it does not (from i32) and for ternary.
#include "ops/convert.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>

#include "bitnet/core/f32_kernels.hpp"
#include "bitnet/core/memory/hybrid_memory_pool.hpp"
#include "ops/loops.hpp"

namespace bitnet::ops {
namespace {

/// Half to even, saturating; NaN becomes 0.
std::int64_t to_integer(double v, std::int64_t low, std::int64_t high) {
  if (std::isnan(v)) return 0;
  return static_cast<std::int64_t>(
      std::clamp(std::nearbyint(v), static_cast<double>(low), static_cast<double>(high)));
}

/// A float from which rounding to 16 bits gives what rounding v would: where v is no float, the neighbour
/// whose last bit is 1 (round to odd; Boldo & Melquiond 2008, 24 bits suffice for at most 22).
float to_odd(double v) {
  const auto f = static_cast<float>(v);
  if (static_cast<double>(f) == v || !std::isfinite(f) || (std::bit_cast<std::uint32_t>(f) & 1u) != 0)
    return f;
  return std::nextafterf(f, static_cast<double>(f) < v ? std::numeric_limits<float>::infinity()
                                                       : -std::numeric_limits<float>::infinity());
}

template <class T>
T get(const std::byte* data, std::int64_t i) {
  return reinterpret_cast<const T*>(data)[i];
}

/// The vector kernel for n elements of stride 1, gathered first otherwise.
template <class T, class Kernel>
void load_through(Kernel kernel, const std::byte* data, std::int64_t offset, std::int64_t stride, float* to,
                  std::int64_t n) {
  const T* const from = reinterpret_cast<const T*>(data) + offset;
  if (stride == 1) return kernel(from, to, static_cast<std::size_t>(n));
  T buffer[kRun];
  for (std::int64_t done = 0; done < n; done += kRun) {
    const std::int64_t count = std::min(kRun, n - done);
    for (std::int64_t i = 0; i < count; ++i) buffer[i] = from[(done + i) * stride];
    kernel(buffer, to + done, static_cast<std::size_t>(count));
  }
}

template <class T, class Kernel>
void store_through(Kernel kernel, const float* from, std::byte* data, std::int64_t offset,
                   std::int64_t stride, std::int64_t n) {
  T* const to = reinterpret_cast<T*>(data) + offset;
  if (stride == 1) return kernel(from, to, static_cast<std::size_t>(n));
  T buffer[kRun];
  for (std::int64_t done = 0; done < n; done += kRun) {
    const std::int64_t count = std::min(kRun, n - done);
    kernel(from + done, buffer, static_cast<std::size_t>(count));
    for (std::int64_t i = 0; i < count; ++i) to[(done + i) * stride] = buffer[i];
  }
}

constexpr auto kCopy = [](const float* x, float* y, std::size_t n) { std::copy_n(x, n, y); };

template <class T>
void copy_run(const std::byte* from, std::int64_t from_offset, std::int64_t from_stride, std::byte* to,
              std::int64_t to_offset, std::int64_t to_stride, std::int64_t n) {
  const T* const x = reinterpret_cast<const T*>(from) + from_offset;
  T* const y = reinterpret_cast<T*>(to) + to_offset;
  if (from_stride == 1 && to_stride == 1)
    std::memcpy(y, x, static_cast<std::size_t>(n) * sizeof(T));
  else
    for (std::int64_t i = 0; i < n; ++i) y[i * to_stride] = x[i * from_stride];
}

/// The axis along which `from` is contiguous, where that is not the innermost one: a transposed copy.
std::optional<std::size_t> transposed_axis(const Loops<2>& loops) {
  if (loops.inner_stride(0) == 1) return std::nullopt;
  for (std::size_t d = 0; d + 1 < loops.rank; ++d)
    if (loops.strides[0][d] == 1) return d;
  return std::nullopt;
}

/// Copies tiles of 16 × 8 of axis `fast` and the innermost one, so that the lines of both sides are still in
/// cache when the rest of them is wanted.
template <class T>
void copy_transposed(const ExecutionContext& context, const Loops<2>& loops, std::size_t fast,
                     const std::byte* from, std::byte* to) {
  const std::size_t inner = loops.rank - 1;
  const std::int64_t rows = loops.dims[fast], cols = loops.dims[inner];
  const std::int64_t from_col = loops.strides[0][inner], to_row = loops.strides[1][fast],
                     to_col = loops.strides[1][inner];
  Loops<2> rest;  // the other axes
  rest.rank = 0;
  for (std::size_t d = 0; d < inner; ++d) {
    if (d == fast) continue;
    rest.dims[rest.rank] = loops.dims[d];
    for (std::size_t i = 0; i < 2; ++i) rest.strides[i][rest.rank] = loops.strides[i][d];
    ++rest.rank;
  }
  rest.rank = std::max<std::size_t>(rest.rank, 1);
  for_each_run(context, rest, [&](const std::array<std::int64_t, 2>& at, std::int64_t n) {
    for (std::int64_t i = 0; i < n; ++i) {
      const T* const x = reinterpret_cast<const T*>(from) + at[0] + i * rest.inner_stride(0);
      T* const y = reinterpret_cast<T*>(to) + at[1] + i * rest.inner_stride(1);
      for (std::int64_t r0 = 0; r0 < rows; r0 += 16)
        for (std::int64_t c0 = 0; c0 < cols; c0 += 8)
          for (std::int64_t r = r0; r < std::min(r0 + 16, rows); ++r)
            for (std::int64_t c = c0; c < std::min(c0 + 8, cols); ++c)
              y[r * to_row + c * to_col] = x[r + c * from_col];
    }
  });
}

template <class T>
void copy_any(const ExecutionContext& context, const Loops<2>& loops, const std::byte* x, std::byte* y) {
  if (const auto fast = transposed_axis(loops)) return copy_transposed<T>(context, loops, *fast, x, y);
  for_each_run(context, loops, [&](const std::array<std::int64_t, 2>& at, std::int64_t n) {
    copy_run<T>(x, at[0], loops.inner_stride(0), y, at[1], loops.inner_stride(1), n);
  });
}

}  // namespace

const ExecutionContext& one_thread() {
  static const ExecutionContext context({.threads = 1, .isa = default_isa()});
  return context;
}

Tables tables(Isa isa) { return {tested_f32_kernels(isa), tested_tensor_kernels(isa)}; }

Tensor make_tensor(const ExecutionContext& context, DType dtype, const Shape& shape) {
  return Tensor::uninitialized(dtype, shape, context.memory());
}

void load_f32(const Tables& t, DType dtype, const std::byte* data, std::int64_t offset, std::int64_t stride,
              float* to, std::int64_t n) noexcept {
  switch (dtype) {
    case DType::kF32:
      return load_through<float>(kCopy, data, offset, stride, to, n);
    case DType::kF16:
      return load_through<std::uint16_t>(t.f32.f16_to_f32, data, offset, stride, to, n);
    case DType::kBF16:
      return load_through<std::uint16_t>(t.f32.bf16_to_f32, data, offset, stride, to, n);
    case DType::kI8:
      return load_through<std::int8_t>(t.tensor.i8_to_f32, data, offset, stride, to, n);
    case DType::kI32:
      return load_through<std::int32_t>(t.tensor.i32_to_f32, data, offset, stride, to, n);
    case DType::kTernary:
      return;
  }
}

void store_f32(const Tables& t, const float* from, DType dtype, std::byte* data, std::int64_t offset,
               std::int64_t stride, std::int64_t n) noexcept {
  switch (dtype) {
    case DType::kF32:
      return store_through<float>(kCopy, from, data, offset, stride, n);
    case DType::kF16:
      return store_through<std::uint16_t>(t.tensor.f32_to_f16, from, data, offset, stride, n);
    case DType::kBF16:
      return store_through<std::uint16_t>(t.tensor.f32_to_bf16, from, data, offset, stride, n);
    case DType::kI8:
      return store_through<std::int8_t>(t.tensor.f32_to_i8, from, data, offset, stride, n);
    case DType::kI32:
      return store_through<std::int32_t>(t.tensor.f32_to_i32, from, data, offset, stride, n);
    case DType::kTernary:
      return;
  }
}

double load_element(DType dtype, const std::byte* data, std::int64_t i) noexcept {
  switch (dtype) {
    case DType::kF32:
      return get<float>(data, i);
    case DType::kF16:
      return f16_to_f32(get<std::uint16_t>(data, i));
    case DType::kBF16:
      return bf16_to_f32(get<std::uint16_t>(data, i));
    case DType::kI8:
      return get<std::int8_t>(data, i);
    case DType::kI32:
      return get<std::int32_t>(data, i);
    case DType::kTernary:
      return ((std::to_integer<int>(data[i / 4]) >> (2 * (i % 4))) & 3) - 1;
  }
  return 0;
}

void store_element(DType dtype, std::byte* data, std::int64_t i, double v) noexcept {
  switch (dtype) {
    case DType::kF32:
      reinterpret_cast<float*>(data)[i] = static_cast<float>(v);
      break;
    case DType::kF16:
      reinterpret_cast<std::uint16_t*>(data)[i] = f32_to_f16(to_odd(v));
      break;
    case DType::kBF16:
      reinterpret_cast<std::uint16_t*>(data)[i] = f32_to_bf16(to_odd(v));
      break;
    case DType::kI8:
      reinterpret_cast<std::int8_t*>(data)[i] = static_cast<std::int8_t>(to_integer(v, -128, 127));
      break;
    case DType::kI32:
      reinterpret_cast<std::int32_t*>(data)[i] = static_cast<std::int32_t>(
          to_integer(v, std::numeric_limits<std::int32_t>::min(), std::numeric_limits<std::int32_t>::max()));
      break;
    case DType::kTernary: {
      const auto code = static_cast<unsigned>(to_integer(v, -1, 1) + 1);
      const auto shift = 2 * static_cast<unsigned>(i % 4);
      auto byte = std::to_integer<unsigned>(data[i / 4]);
      byte = (byte & ~(3u << shift)) | (code << shift);
      data[i / 4] = static_cast<std::byte>(byte);
      break;
    }
  }
}

void copy_elements(const ExecutionContext& context, const Tensor& from, Tensor& to) {
  const auto loops = make_loops<2>(to.shape(), {from.strides(), to.strides()});
  if (to.numel() == 0) return;
  switch (bits_of(from.dtype())) {
    case 8:
      return copy_any<std::uint8_t>(context, loops, from.data(), to.data());
    case 16:
      return copy_any<std::uint16_t>(context, loops, from.data(), to.data());
    default:
      return copy_any<std::uint32_t>(context, loops, from.data(), to.data());
  }
}

Tensor copy_of(const ExecutionContext& context, const Tensor& from) {
  Tensor copy = make_tensor(context, from.dtype(), from.shape());
  copy_elements(context, from, copy);
  return copy;
}

void convert_elements(const ExecutionContext& context, const Tensor& from, Tensor& to) {
  if (from.dtype() == to.dtype() && from.dtype() != DType::kTernary) return copy_elements(context, from, to);
  const auto loops = make_loops<2>(to.shape(), {from.strides(), to.strides()});
  const Tables t = tables(context.isa());
  const auto has_kernel = [](DType d) { return is_float(d) || d == DType::kI8; };
  const bool vector = has_kernel(from.dtype()) ? to.dtype() != DType::kTernary
                                               : from.dtype() == DType::kI32 && to.dtype() == DType::kF32;
  for_each_run(context, loops, [&](const std::array<std::int64_t, 2>& at, std::int64_t n) {
    if (vector) {
      float buffer[kRun];
      load_f32(t, from.dtype(), from.data(), at[0], loops.inner_stride(0), buffer, n);
      store_f32(t, buffer, to.dtype(), to.data(), at[1], loops.inner_stride(1), n);
      return;
    }
    for (std::int64_t i = 0; i < n; ++i)
      store_element(to.dtype(), to.data(), at[1] + i * loops.inner_stride(1),
                    load_element(from.dtype(), from.data(), at[0] + i * loops.inner_stride(0)));
  });
}

Tensor contiguous(const ExecutionContext& context, const Tensor& from) {
  return from.is_contiguous() ? from : copy_of(context, from);
}

Tensor converted(const ExecutionContext& context, const Tensor& from, DType dtype) {
  Tensor copy = make_tensor(context, dtype, from.shape());
  convert_elements(context, from, copy);
  return copy;
}

}  // namespace bitnet::ops
