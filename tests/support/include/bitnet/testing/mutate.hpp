#pragma once
// Damaged copies of a small file, the same ones on every machine: what the tests of readers feed them. The
// open-ended search for bad input is fuzz/.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>

#include "bitnet/core/rng.hpp"

namespace bitnet::testing {

/// One to three edits of `bytes`: a flipped bit, a replaced byte, an integer set to an extreme, a cut, a
/// repeat.
inline std::string mutate(std::string bytes, Rng& rng) {
  const std::uint64_t extremes[] = {0,          1,          0x7f,       0xff,
                                    0x7fffffff, 0x80000000, 0xffffffff, 1ull << 32,
                                    1ull << 60, ~0ull >> 1, ~0ull,      0x2020202020202020};
  for (std::uint64_t edits = 1 + rng.below(3); edits > 0 && !bytes.empty(); --edits) {
    // Half of the edits hit the first 256 bytes, where headers are.
    const std::size_t span = rng.below(2) ? bytes.size() : std::min<std::size_t>(bytes.size(), 256);
    const std::size_t at = rng.below(span);
    switch (rng.below(6)) {
      case 0:
        bytes[at] = static_cast<char>(bytes[at] ^ (1 << rng.below(8)));
        break;
      case 1:
        bytes[at] = static_cast<char>(rng.below(256));
        break;
      case 2: {
        const std::uint64_t v = extremes[rng.below(std::size(extremes))];
        const std::size_t n = std::min<std::size_t>(rng.below(2) ? 8 : 4, bytes.size() - at);
        std::memcpy(bytes.data() + at, &v, n);
        break;
      }
      case 3:
        bytes.resize(at);
        break;
      case 4:
        bytes.insert(at, bytes.substr(rng.below(bytes.size()), 1 + rng.below(64)));
        break;
      default:
        bytes.erase(at, 1 + rng.below(16));
        break;
    }
  }
  return bytes;
}

}  // namespace bitnet::testing
