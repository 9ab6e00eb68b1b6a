// Ternary forms on their way between processes: trits as codes of 2 bits. Making a ternary form is
// fake_quant.cpp.
#include <algorithm>
#include <atomic>

#include "bitnet/training/fake_quant.hpp"
#include "ops_common.hpp"

namespace bitnet::training {
namespace {

constexpr std::size_t kTritsPerByte = 4, kBytesPerPiece = 4096;

/// Calls body(first byte, end) for pieces of `bytes`, in parallel.
template <class Body>
void for_pieces(const ExecutionContext& context, std::size_t bytes, Body&& body) {
  context.parallel_for((bytes + kBytesPerPiece - 1) / kBytesPerPiece, 1,
                       [&](std::size_t begin, std::size_t end) {
                         for (std::size_t p = begin; p < end; ++p)
                           body(p * kBytesPerPiece, std::min(bytes, (p + 1) * kBytesPerPiece));
                       });
}

}  // namespace

void TernaryCache::pack(const ExecutionContext& context, std::span<std::uint8_t> codes) const {
  BITNET_REQUIRE(codes.size() == code_bytes(), "ternary codes", "their number of bytes is another one");
  const std::span<const std::int8_t> trits = trits_.span();
  for_pieces(context, codes.size(), [&](std::size_t begin, std::size_t end) {
    for (std::size_t b = begin; b < end; ++b) {
      unsigned byte = 0;
      const std::size_t last = std::min(trits.size(), (b + 1) * kTritsPerByte);
      for (std::size_t i = b * kTritsPerByte; i < last; ++i)
        byte |= static_cast<unsigned>(trits[i] + 1) << 2 * (i % kTritsPerByte);
      codes[b] = static_cast<std::uint8_t>(byte);
    }
  });
}

void TernaryCache::assign(const ExecutionContext& context, std::span<const std::uint8_t> codes,
                          std::span<const float> scales) {
  BITNET_REQUIRE(codes.size() == code_bytes() && scales.size() == scales_.size(), "ternary codes",
                 "codes or scales have another number");
  const std::span<std::int8_t> trits = trits_.span();
  std::atomic<std::int64_t> zeros{0}, flips{0};
  for_pieces(context, codes.size(), [&](std::size_t begin, std::size_t end) {
    std::int64_t zero = 0, flipped = 0;
    for (std::size_t i = begin * kTritsPerByte; i < std::min(trits.size(), end * kTritsPerByte); ++i) {
      const int code = codes[i / kTritsPerByte] >> 2 * (i % kTritsPerByte) & 3;
      const auto trit = static_cast<std::int8_t>(code - 1);
      zero += trit == 0;
      flipped += trit != trits[i];
      trits[i] = trit;
    }
    zeros += zero;
    flips += flipped;
  });
  zeros_ = zeros;
  flips_ = fresh_ ? 0 : flips.load();
  fresh_ = false;
  lambda_ = 1;
  std::copy(scales.begin(), scales.end(), scales_.data());
  if (packed_) packed_->assign(trits, scales_.span());
}

}  // namespace bitnet::training
