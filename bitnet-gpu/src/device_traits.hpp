#pragma once
// What the kernels may make use of on a device, as flags of their build. Which kernels there are is
// kernel_set.hpp's business; what single drivers need beside that is quirks.hpp's.
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "bitnet/gpu/register.hpp"
#include "device_list.hpp"

namespace bitnet::gpu {

struct DeviceTraits {
  bool wide = false;                 ///< BN_WIDE of the kernels
  bool exact_divide = false;         ///< BN_EXACT_DIVIDE
  bool integer_dot = false;          ///< BN_INTEGER_DOT
  const char* c_standard = "CL1.2";  ///< OpenCL C of the build; a later one where that has functions to use
  bool doubles = false;              ///< has numbers of 64 bits, which some activations of 4 bits want
  bool zero_copy = false;            ///< its buffers, mapped, are memory of the host
  bool own_transfers = false;        ///< uploads travel on a queue of their own
  std::optional<bool>
      split_attention;  ///< tiles of keys at a time; none: where a step has too few heads and rows
  std::size_t max_work_group = 0;
  std::int64_t compute_units = 1;

  /// Options of every build, and `more` after them, whose -cl-std, if it has one, is the only one.
  std::string build_flags(std::string_view more) const;
};

/// Asks the driver what `choice` leaves open. Throws Error(kDevice).
DeviceTraits traits_of(const ClDevice& device, const KernelChoice& choice);

}  // namespace bitnet::gpu
