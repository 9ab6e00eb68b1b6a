#pragma once
// The OpenCL backends that the conformance table runs on: what kernels may make use of, how they are built,
// and what stands in front of their sources.
#include <cstdint>
#include <span>
#include <string>

#include "bitnet/gpu/register.hpp"

namespace bitnet::conformance {

/// Half of the time is the compilation of kernels: variants that share most of their code with another one
/// run every fourth case, and those whose values are the hard ones.
enum class Table : std::uint8_t { kWhole, kFourth };

struct Variant {
  const char* name;
  Table table = Table::kWhole;
  gpu::Options options = {};
  const char* in_front = "";  ///< of every source, when the driver gets it
};

/// A new backend is a line of this list.
std::span<const Variant> opencl_variants();

/// While it lives, sources come to the driver with this text in front. Programs that were kept come without
/// it: such backends need an empty program_folder. One at a time, on the thread that builds.
class TextInFront {
 public:
  explicit TextInFront(std::string text);
  ~TextInFront();
  TextInFront(const TextInFront&) = delete;
  TextInFront& operator=(const TextInFront&) = delete;
  int sources() const;  ///< that came so far
};

}  // namespace bitnet::conformance
