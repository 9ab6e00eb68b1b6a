#pragma once
// Byte layouts of ternary matrices in files: Hugging Face uint8, I2_S, TQ1_0, TQ2_0. Facts with examples:
// docs/formats/ternary-layouts.md. Layouts in memory (per ISA) are kernels' business, not these.
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "bitnet/quant/quantize.hpp"

namespace bitnet::quant {

enum class TernaryLayout : std::uint8_t {
  kHfUint8,  ///< [ceil(out/4), in]; scale is a tensor of its own
  kI2_S,     ///< in a multiple of 128; one f32 scale at the end
  kTQ1_0,    ///< in a multiple of 256; an f16 scale per 256
  kTQ2_0,    ///< in a multiple of 256; an f16 scale per 256
};

std::string_view to_string(TernaryLayout layout) noexcept;

/// Whether a matrix with `in` columns and `n_scales` scales can be stored; if not, `why` names the rule.
bool layout_holds(TernaryLayout layout, const TernaryWeights& w, std::string* why = nullptr);
/// Bytes of a packed [out, in] matrix. Throws Error(kInvalidArgument) when `in` does not fit or sizes
/// overflow.
std::size_t packed_bytes(TernaryLayout layout, std::int64_t out, std::int64_t in);
/// The bytes of `w`. The TQ types hold a scale per tensor, row or group of columns (a multiple of 256), each
/// rounded to the nearest f16, ties to even: at most 2^−11 of it where the f16 is normal (from 2^−14 on).
/// Throws Error(kUnsupported) naming the layouts that would do when this one cannot hold `w`,
/// Error(kInvalidArgument) when `w` contradicts itself. Thread-safe.
std::vector<std::byte> pack(TernaryLayout layout, const TernaryWeights& w);
/// Throws Error(kCorruptFile) on a wrong size, an invalid code (position given) or a scale that is not
/// finite. kHfUint8 has no scale inside: `scales` stays empty. TQ types: one scale per tensor when all blocks
/// agree, one per row (rows_per_scale 1) when each row's agree, else one per block: cols_per_scale is 256 and
/// scales are [out, in / 256] with rows_per_scale 1.
TernaryWeights unpack(TernaryLayout layout, std::span<const std::byte> bytes, std::int64_t out,
                      std::int64_t in);

/// A packed matrix in memory (a mapped file), read in parts: the scales first, then any rows. Does not own.
/// Thread-safe.
class PackedMatrix {
 public:
  /// Throws as unpack() on a wrong size or a bad scale; codes are not looked at.
  PackedMatrix(TernaryLayout layout, std::span<const std::byte> bytes, std::int64_t out, std::int64_t in);

  const std::vector<float>& scales() const noexcept { return scales_; }  ///< as unpack() gives them
  std::int64_t rows_per_scale() const noexcept { return rows_per_scale_; }
  /// Columns that share a scale, 256 or (all of them) 0, as in TernaryWeights.
  std::int64_t cols_per_scale() const noexcept { return cols_per_scale_; }
  /// Trits of rows [begin, end) to `to` [end − begin, in]. Throws Error(kCorruptFile) on an invalid code.
  void unpack_rows(std::int64_t begin, std::int64_t end, std::int8_t* to) const;

 private:
  TernaryLayout layout_;
  std::span<const std::byte> bytes_;
  std::int64_t out_, in_;
  std::vector<float> scales_;
  std::int64_t rows_per_scale_, cols_per_scale_ = 0;
};

}  // namespace bitnet::quant
