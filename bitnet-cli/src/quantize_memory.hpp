#pragma once
// What quantising takes of memory, and how --memory-limit is divided.
#include <cstdint>
#include <ostream>
#include <vector>

#include "bitnet/quant/quantizer.hpp"
#include "options.hpp"

namespace bitnet::cli {

/// Most bytes of each part of the work, which are there at the same time; the program itself comes on top.
struct QuantizeMemory {
  std::uint64_t model = 0;    ///< that reads the calibration text
  std::uint64_t moments = 0;  ///< second moments of inputs
  std::uint64_t linears = 0;  ///< that are worked on at a time
  std::uint64_t trials = 0;   ///< of --evaluate, when the rest is gone: both models
  /// What the parts are told to keep to.
  std::uint64_t stream_limit = 0;     ///< quant::StreamOptions::memory
  std::uint64_t quantizer_limit = 0;  ///< quant::QuantizerOptions::memory

  std::uint64_t all() const;
};

/// As the options ask for it, within --memory-limit where that is given. Throws Error(kOutOfMemory) when the
/// least that there is to be had is more.
QuantizeMemory plan_memory(const Values& values, const quant::ModelReader& model,
                           const std::vector<quant::PlannedLinear>& plans, std::size_t threads);

/// "needs up to 3.1 GiB: …"
void say_need(const QuantizeMemory& memory, std::ostream& to);

}  // namespace bitnet::cli
