// Finding a device by name, and choosing one with a stated reason. What devices there are, backends add
// themselves (register_*_backend functions that the application calls).
#include "bitnet/core/device/registry.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <utility>

#include "bitnet/core/error.hpp"

namespace bitnet {

void BackendRegistry::add(Device device, Factory factory) {
  for (const Entry& e : entries_) {
    if (e.device.name == device.name) {
      throw Error(ErrorCode::kInvalidArgument, fmt::format("device '{}' is registered already", device.name));
    }
  }
  entries_.push_back({std::move(device), std::move(factory)});
}

const BackendRegistry::Entry& BackendRegistry::find(std::string_view name) const {
  std::vector<std::string_view> names;
  for (const Entry& e : entries_) {
    if (e.device.name == name) return e;
    names.push_back(e.device.name);
  }
  std::string message =
      fmt::format("there is no device '{}' (there are: {}, auto)", name, fmt::join(names, ", "));
  if (!notes_.empty()) message += fmt::format("; {}", fmt::join(notes_, "; "));
  throw Error(ErrorCode::kNotFound, message);
}

Selection BackendRegistry::select(std::string_view name) const {
  if (name != "auto") {
    const Entry& e = find(name);
    return {e.device, fmt::format("{}: asked for by name", e.device.name)};
  }
  const Entry* best = nullptr;
  for (const Entry& e : entries_) {
    if (e.device.kind == DeviceKind::kCpu || e.device.emulated) continue;
    if (best == nullptr || e.device.memory_bytes > best->device.memory_bytes) best = &e;
  }
  if (best != nullptr)
    return {best->device, fmt::format("{}: the device with the most memory", best->device.name)};
  const bool emulated_only = entries_.size() > 1;
  return {find("cpu").device,
          emulated_only ? "cpu: the other devices run on this CPU too" : "cpu: no other device was found"};
}

std::unique_ptr<Backend> BackendRegistry::create(std::string_view name,
                                                 std::shared_ptr<const ExecutionContext> context) const {
  const std::string resolved = select(name).device.name;
  return with_context(fmt::format("device '{}'", resolved),
                      [&] { return find(resolved).factory(std::move(context)); });
}

std::vector<Device> BackendRegistry::devices() const {
  std::vector<Device> all;
  for (const Entry& e : entries_) all.push_back(e.device);
  return all;
}

}  // namespace bitnet
