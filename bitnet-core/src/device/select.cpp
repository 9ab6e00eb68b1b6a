// Choosing a device by a policy, with the reason as a sentence; see device.hpp.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>

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

/// What a policy looks at, the most important first; larger is better. A key that does not count is 0 for
/// every device that it would be compared with, so that the keys order any set of devices.
enum Key : std::size_t { kBandwidthOfAll, kNoCpu, kBandwidth, kCompute, kRoom, kKeys };
using Keys = std::array<double, kKeys>;
constexpr std::array<std::string_view, kKeys> kReasons{
    "the device that reads memory fastest", "the device that is not the CPU",
    "the device that reads memory fastest", "the device with the most compute units × clock",
    "the device with the most memory"};

struct Candidate {
  const Device* device;
  Keys keys{};
};

bool has_bandwidth(const Device& d) {
  return d.capabilities.gigabytes_per_second && std::isfinite(*d.capabilities.gigabytes_per_second);
}

bool has_compute(const Device& d) { return compute(d) > 0 && std::isfinite(compute(d)); }

/// The best first; of equal ones in the order of `devices`.
std::vector<Candidate> rank(const std::vector<const Device*>& devices, DevicePolicy policy) {
  const auto all = [&](auto holds) { return std::all_of(devices.begin(), devices.end(), holds); };
  // Of all those that are alike in kNoCpu with `d`.
  const auto all_like = [&](const Device& d, auto has) {
    return all([&](const Device* other) {
      return (other->kind == DeviceKind::kCpu) != (d.kind == DeviceKind::kCpu) || has(*other);
    });
  };
  const bool latency = policy == DevicePolicy::kLatency;
  const bool across = latency && all([](const Device* d) { return has_bandwidth(*d); });
  std::vector<Candidate> ranked;
  for (const Device* d : devices) {
    Candidate c{d};
    c.keys[kRoom] = static_cast<double>(room(*d));
    if (policy != DevicePolicy::kMemory) {
      if (across) c.keys[kBandwidthOfAll] = *d->capabilities.gigabytes_per_second;
      c.keys[kNoCpu] = d->kind == DeviceKind::kCpu ? 0 : 1;
      if (latency && all_like(*d, has_bandwidth)) c.keys[kBandwidth] = *d->capabilities.gigabytes_per_second;
      if (all_like(*d, has_compute)) c.keys[kCompute] = compute(*d);
    }
    ranked.push_back(c);
  }
  std::stable_sort(ranked.begin(), ranked.end(),
                   [](const Candidate& a, const Candidate& b) { return a.keys > b.keys; });
  return ranked;
}

/// "80.0 GB/s" behind a reason that is one.
std::string figure_of(std::size_t key, const Device& d) {
  if (key != kBandwidthOfAll && key != kBandwidth) return {};
  return fmt::format(", {:.1f} GB/s", *d.capabilities.gigabytes_per_second);
}

[[noreturn]] void not_found(std::span<const Device> devices, std::string_view name) {
  std::vector<std::string_view> names;
  for (const Device& d : devices) names.push_back(d.name);
  throw Error(ErrorCode::kNotFound, fmt::format("there is no device '{}' (there are: {}{}auto)", name,
                                                fmt::join(names, ", "), names.empty() ? "" : ", "));
}

/// What a candidate of `auto` lost to, or why there was no choice.
std::string reason_of(const std::vector<Candidate>& ranked, bool emulated, bool some_too_small,
                      DevicePolicy policy) {
  if (ranked.size() == 1) {
    if (some_too_small) return "the only one with enough memory";
    return emulated ? "the other devices run on this CPU too" : "no other device was found";
  }
  std::size_t key = 0;
  while (key < kKeys && ranked[0].keys[key] == ranked[1].keys[key]) ++key;
  if (key == kKeys) return fmt::format("the first of its kind (policy {})", to_string(policy));
  return fmt::format("{}{} (policy {})", kReasons[key], figure_of(key, *ranked[0].device), to_string(policy));
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
  std::vector<const Device*> candidates;
  std::vector<std::string> too_small;
  bool emulated = false;
  for (const Device& d : devices) {
    emulated = emulated || d.emulated;
    if (d.emulated) continue;
    if (room(d) < request.needed_bytes) {
      too_small.push_back(fmt::format("{} has {:.1f} GiB", d.name, gib(room(d))));
    } else {
      candidates.push_back(&d);
    }
  }
  const std::string passed_over = too_small.empty()
                                      ? ""
                                      : fmt::format("{:.1f} GiB are needed and {}", gib(request.needed_bytes),
                                                    fmt::join(too_small, ", "));
  if (candidates.empty())
    throw Error(ErrorCode::kNotFound,
                "no device for 'auto'" + (too_small.empty() ? std::string() : ": " + passed_over));
  const std::vector<Candidate> ranked = rank(candidates, request.policy);
  const Device& best = *ranked[0].device;
  Selection s{best, fmt::format("{}: {}", best.name,
                                reason_of(ranked, emulated, !too_small.empty(), request.policy))};
  if (!too_small.empty()) s.reason += "; " + passed_over;
  for (std::size_t i = 1; i < ranked.size() && request.fall_back; ++i)
    s.alternatives.push_back(ranked[i].device->name);
  return s;
}

}  // namespace bitnet
