#pragma once
// The loops that tensors of one shape share, whatever their strides: axes of size 1 dropped, neighbouring
// axes merged where every tensor's strides allow it, and a walk over runs of the last axis, on all threads.
// What is done with a run is its caller's.
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "bitnet/core/execution.hpp"
#include "bitnet/core/shape.hpp"

namespace bitnet::ops {

/// Elements of the longest run: three buffers of them stay in L1.
inline constexpr std::int64_t kRun = 2048;
/// Elements below which another thread is not worth its hand-over (about 1 µs).
inline constexpr std::int64_t kParallel = 32768;

using Strides = std::array<std::int64_t, Shape::kMaxRank>;

/// N tensors over one shape. dims and strides are in elements; rank ≥ 1.
template <std::size_t N>
struct Loops {
  std::size_t rank = 1;
  Strides dims{1};
  std::array<Strides, N> strides{};

  std::int64_t outer() const noexcept {  ///< runs of the last axis
    std::int64_t n = 1;
    for (std::size_t d = 0; d + 1 < rank; ++d) n *= dims[d];
    return n;
  }
  std::int64_t inner() const noexcept { return dims[rank - 1]; }
  std::int64_t inner_stride(std::size_t i) const noexcept { return strides[i][rank - 1]; }
};

template <std::size_t N>
Loops<N> make_loops(const Shape& shape, const std::array<std::span<const std::int64_t>, N>& strides) {
  Loops<N> loops;
  std::size_t rank = 0;
  for (std::size_t d = 0; d < shape.rank(); ++d) {
    const std::int64_t size = shape.dims()[d];
    if (size == 1) continue;
    bool merge = rank > 0;
    for (std::size_t i = 0; merge && i < N; ++i) merge = loops.strides[i][rank - 1] == strides[i][d] * size;
    const std::size_t at = merge ? rank - 1 : rank++;
    loops.dims[at] = merge ? loops.dims[at] * size : size;
    for (std::size_t i = 0; i < N; ++i) loops.strides[i][at] = strides[i][d];
  }
  loops.rank = rank == 0 ? 1 : rank;
  return loops;
}

/// Calls body(offsets, n) for runs of at most kRun elements that cover the loops; offsets[i] is tensor i's
/// first element of the run, from which it goes on with inner_stride(i). Runs of one range come in order;
/// ranges run on all threads of `context`, so bodies must write to different places.
template <std::size_t N, class Body>
void for_each_run(const ExecutionContext& context, const Loops<N>& loops, Body&& body) {
  const std::int64_t inner = loops.inner(), outer = loops.outer();
  if (inner == 0 || outer == 0) return;
  const std::int64_t pieces = (inner + kRun - 1) / kRun, length = inner < kRun ? inner : kRun;
  const std::size_t grain = static_cast<std::size_t>((kParallel + length - 1) / length);
  context.parallel_for(
      static_cast<std::size_t>(outer * pieces), grain, [&](std::size_t begin, std::size_t end) {
        Strides at{};
        std::array<std::int64_t, N> base{};
        std::int64_t rest = static_cast<std::int64_t>(begin) / pieces;
        for (std::size_t d = loops.rank - 1; d-- > 0;) {
          at[d] = rest % loops.dims[d];
          rest /= loops.dims[d];
          for (std::size_t i = 0; i < N; ++i) base[i] += at[d] * loops.strides[i][d];
        }
        std::int64_t piece = static_cast<std::int64_t>(begin) % pieces;
        for (std::size_t item = begin; item < end; ++item) {
          const std::int64_t first = piece * kRun, n = inner - first < kRun ? inner - first : kRun;
          std::array<std::int64_t, N> offsets = base;
          for (std::size_t i = 0; i < N; ++i) offsets[i] += first * loops.inner_stride(i);
          body(offsets, n);
          if (++piece < pieces) continue;
          piece = 0;
          for (std::size_t d = loops.rank - 1; d-- > 0;) {
            for (std::size_t i = 0; i < N; ++i) base[i] += loops.strides[i][d];
            if (++at[d] < loops.dims[d]) break;
            for (std::size_t i = 0; i < N; ++i) base[i] -= loops.strides[i][d] * loops.dims[d];
            at[d] = 0;
          }
        }
      });
}

}  // namespace bitnet::ops
