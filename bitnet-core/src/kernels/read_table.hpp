#pragma once
// The boundary between bandwidth.cpp and the ISA objects of read_table.cpp: loops that do nothing but read
// memory. Plain data only, as for all ISA tables.
#include <cstddef>
#include <cstdint>

namespace bitnet {

/// A way of reading [p, p + bytes), bytes a multiple of kReadUnit. The result depends on every byte, so that
/// no load can be left out.
struct ReadLoop {
  const char* name;
  std::uint32_t (*read)(const void* p, std::size_t bytes) noexcept;
};

inline constexpr std::size_t kReadUnit = 4 * 128;  // four streams of two lines each
inline constexpr std::size_t kReadLoops = 6;

struct ReadKernels {
  const char* isa;
  ReadLoop loops[kReadLoops];
};

}  // namespace bitnet
