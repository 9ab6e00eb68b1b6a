// Names of tracking levels, and the errors of handles.
#include <fmt/format.h>

#include "bitnet/core/error.hpp"
#include "bitnet/core/log.hpp"
#include "bitnet/core/memory/memory_handle.hpp"

namespace bitnet {
namespace {

constexpr std::string_view kLevels[] = {"none", "basic", "standard", "detailed"};

}  // namespace

std::string_view to_string(TrackingLevel level) noexcept { return kLevels[static_cast<std::size_t>(level)]; }

TrackingLevel parse_tracking_level(std::string_view name) {
  for (std::size_t i = 0; i < std::size(kLevels); ++i) {
    if (kLevels[i] == name) return static_cast<TrackingLevel>(i);
  }
  throw Error(ErrorCode::kInvalidArgument,
              fmt::format("unknown tracking level '{}': there are {}", name, fmt::join(kLevels, ", ")));
}

namespace detail {

void throw_stale_handle(const MemoryResource* resource, std::uint64_t generation) {
  if (resource == nullptr)
    throw Error(ErrorCode::kInvalidArgument,
                "use of an empty memory handle: its block was given back or moved");
  throw Error(ErrorCode::kInvalidArgument,
              fmt::format("use of a stale memory handle: made before reset {} of '{}', which has had {}",
                          generation + 1, resource->name(), resource->generation()));
}

void throw_array_too_long(std::size_t count, std::size_t element_bytes) {
  throw Error(ErrorCode::kInvalidArgument,
              fmt::format("{} elements of {} bytes are more than an address space", count, element_bytes));
}

void deallocate_or_log(MemoryResource& resource, void* block) noexcept {
  try {
    resource.deallocate(block);
  } catch (const std::exception& e) {  // in a destructor: nobody can catch it
    log(LogLevel::kWarning, e.what());
  }
}

}  // namespace detail
}  // namespace bitnet
