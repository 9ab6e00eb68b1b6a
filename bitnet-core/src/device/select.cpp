// Choosing a device by a policy, with the reason as a sentence; see device.hpp.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>

#include "bitnet/core/device/device.hpp"
#include "bitnet/core/error.hpp"

namespace bitnet {
namespace {

constexpr std::array kPolicies{DevicePolicy::kLatency, DevicePolicy::kThroughput, DevicePolicy::kMemory};

double gib(std::size_t bytes) { return static_cast<double>(bytes) / (std::size_t{1} << 30); }

double compute(const Device& d) {
  return static_cast<double>(d.capabilities.compute_units) * d.capabilities.clock_mhz;
}

/// Memory that it can give; all of it where the driver does not tell how much is free.
std::size_t room(const Device& d) {
  return d.capabilities.available_bytes > 0 ? d.capabilities.available_bytes : d.memory_bytes;
}

/// −1, 0, 1: a is worse, alike, better. `why` is set where they differ.
template <class T>
int compare(T a, T b, const char* reason, std::string_view& why) {
  if (a == b) return 0;
  why = reason;
  return a > b ? 1 : -1;
}

int compare(const Device& a, const Device& b, DevicePolicy policy, std::string_view& why) {
  int c = 0;
  if (policy != DevicePolicy::kMemory) {
    c = compare(a.kind != DeviceKind::kCpu, b.kind != DeviceKind::kCpu, "the device that is not the CPU",
                why);
    if (c != 0) return c;
    const auto &x = a.capabilities.bandwidth, &y = b.capabilities.bandwidth;
    if (policy == DevicePolicy::kLatency && x && y)
      c = compare(*x, *y, "the device that reads memory fastest", why);
    if (c != 0) return c;
    if (compute(a) > 0 && compute(b) > 0)
      c = compare(compute(a), compute(b), "the device with the most compute units × clock", why);
    if (c != 0) return c;
  }
  return compare(room(a), room(b), "the device with the most memory", why);
}

[[noreturn]] void not_found(std::span<const Device> devices, std::string_view name) {
  std::vector<std::string_view> names;
  for (const Device& d : devices) names.push_back(d.name);
  throw Error(ErrorCode::kNotFound, fmt::format("there is no device '{}' (there are: {}{}auto)", name,
                                                fmt::join(names, ", "), names.empty() ? "" : ", "));
}

/// What a candidate of `auto` lost to, or why there was no choice.
std::string reason_of(const std::vector<const Device*>& ranked, bool emulated, bool some_too_small,
                      const DeviceRequest& r) {
  if (ranked.size() == 1) {
    if (some_too_small) return "the only one with enough memory";
    return emulated ? "the other devices run on this CPU too" : "no other device was found";
  }
  std::string_view why = "the first of its kind";
  compare(*ranked[0], *ranked[1], r.policy, why);
  return fmt::format("{} (policy {})", why, to_string(r.policy));
}

}  // namespace

std::string_view to_string(DeviceKind kind) noexcept {
  switch (kind) {
    case DeviceKind::kCpu:
      return "cpu";
    case DeviceKind::kGpu:
      return "gpu";
    case DeviceKind::kAccelerator:
      return "accelerator";
  }
  return "?";
}

std::string_view to_string(DevicePolicy policy) noexcept {
  switch (policy) {
    case DevicePolicy::kLatency:
      return "latency";
    case DevicePolicy::kThroughput:
      return "throughput";
    case DevicePolicy::kMemory:
      return "memory";
  }
  return "?";
}

DevicePolicy device_policy_from_name(std::string_view name) {
  std::vector<std::string_view> names;
  for (const DevicePolicy p : kPolicies) {
    if (to_string(p) == name) return p;
    names.push_back(to_string(p));
  }
  throw Error(ErrorCode::kInvalidArgument,
              fmt::format("device policy '{}': expected one of {}", name, fmt::join(names, ", ")));
}

Selection select_device(std::span<const Device> devices, const DeviceRequest& request) {
  if (request.name != "auto") {
    for (const Device& d : devices)
      if (d.name == request.name) return {d, fmt::format("{}: asked for by name", d.name)};
    not_found(devices, request.name);
  }
  std::vector<const Device*> ranked;
  std::vector<std::string> too_small;
  bool emulated = false;
  for (const Device& d : devices) {
    emulated = emulated || d.emulated;
    if (d.emulated) continue;
    if (room(d) < request.needed_bytes) {
      too_small.push_back(fmt::format("{} has {:.1f} GiB", d.name, gib(room(d))));
    } else {
      ranked.push_back(&d);
    }
  }
  const std::string passed_over = too_small.empty()
                                      ? ""
                                      : fmt::format("{:.1f} GiB are needed and {}", gib(request.needed_bytes),
                                                    fmt::join(too_small, ", "));
  if (ranked.empty())
    throw Error(ErrorCode::kNotFound,
                "no device for 'auto'" + (too_small.empty() ? std::string() : ": " + passed_over));
  std::stable_sort(ranked.begin(), ranked.end(), [&](const Device* a, const Device* b) {
    std::string_view unused;
    return compare(*a, *b, request.policy, unused) > 0;
  });
  Selection s{*ranked[0], fmt::format("{}: {}", ranked[0]->name,
                                      reason_of(ranked, emulated, !too_small.empty(), request))};
  if (!too_small.empty()) s.reason += "; " + passed_over;
  for (std::size_t i = 1; i < ranked.size() && request.fall_back; ++i)
    s.alternatives.push_back(ranked[i]->name);
  return s;
}

}  // namespace bitnet
