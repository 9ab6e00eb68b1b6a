#pragma once
// What is measured: the shapes of linear layers, and random weights and rows of those shapes, made in memory.
// Whole models are models.hpp; how long it takes is bench/*.cpp's business. Pure functions, thread-safe.
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "bitnet/quant/quantize.hpp"

namespace bitnet::benchmarks {

/// A linear layer's shape. Names that begin with "tiny" are for checks that run everywhere.
struct LinearShape {
  std::string_view name;
  std::int64_t out = 0, in = 0;
};

/// "tiny", then the linears of microsoft/bitnet-b1.58-2B-4T by what they are for.
std::span<const LinearShape> linear_shapes() noexcept;

/// Uniform trits with one scale; the same for the same arguments everywhere.
quant::TernaryWeights random_weights(const LinearShape& shape, std::uint64_t seed);
/// Standard normal f32 [rows, cols].
std::vector<float> random_rows(std::int64_t rows, std::int64_t cols, std::uint64_t seed);

}  // namespace bitnet::benchmarks
