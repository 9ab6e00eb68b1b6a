// The devices of an application and the making of their backends. What devices there are, backends add
// themselves (register_*_backend functions that the application calls); choosing one is select.cpp.
#include "bitnet/core/device/registry.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <utility>

#include "bitnet/core/device/bandwidth.hpp"
#include "bitnet/core/error.hpp"
#include "bitnet/core/log.hpp"
#include "bitnet/core/recovery.hpp"

namespace bitnet {

void BackendRegistry::add(Device device, Factory factory) {
  for (const Entry& e : entries_) {
    if (e.device.name == device.name) {
      throw Error(ErrorCode::kInvalidArgument, fmt::format("device '{}' is registered already", device.name));
    }
  }
  entries_.push_back({std::move(device), std::move(factory)});
}

Selection BackendRegistry::select(const DeviceRequest& request) const {
  try {
    return select_device(devices(), request);
  } catch (const Error& e) {
    if (notes_.empty()) throw;
    throw Error(e.code(), fmt::format("{}; {}", e.what(), fmt::join(notes_, "; ")));
  }
}

Selection BackendRegistry::select(std::string_view name) const {
  return select(DeviceRequest{.name = std::string(name)});
}

std::unique_ptr<Backend> BackendRegistry::create(std::string_view name,
                                                 std::shared_ptr<const ExecutionContext> context) const {
  const std::string resolved = select(name).device.name;
  return with_context(fmt::format("device '{}'", resolved), [&] {
    for (const Entry& e : entries_)
      if (e.device.name == resolved) return e.factory(std::move(context));
    throw Error(ErrorCode::kInternal, "the device that was selected is not there");
  });
}

OpenedDevice BackendRegistry::open(const DeviceRequest& request,
                                   std::shared_ptr<const ExecutionContext> context,
                                   const std::function<void(OpenedDevice&)>& use) const {
  if (context == nullptr) context = std::make_shared<const ExecutionContext>();
  OpenedDevice opened{nullptr, std::move(context), select(request)};
  const auto attempt = [&] {
    opened.backend = create(opened.selection.device.name, opened.context);
    if (use) use(opened);
  };
  if (opened.selection.alternatives.empty()) {
    attempt();
    return opened;
  }
  // Kept here, since `use` may take the selection, too.
  std::vector<std::string> others = opened.selection.alternatives;
  std::string present = opened.selection.device.name, failed;
  const auto go_on = [&](const Error& e) {
    if (others.empty()) return false;
    const bool named = e.context().starts_with("device '");  // by create()
    failed += fmt::format("; {}{}", named ? "" : fmt::format("device '{}': ", present), e.what());
    log(LogLevel::kWarning,
        fmt::format("device '{}' failed, going on with '{}': {}", present, others.front(), e.what()));
    present = others.front();
    others.erase(others.begin());
    opened.selection = select(present);
    opened.selection.reason = fmt::format("{}: what comes before it failed{}", present, failed);
    opened.selection.alternatives = others;
    return true;
  };
  static_cast<void>(Recovery({fall_back(go_on)}).run("device 'auto'", attempt));  // no rule of it skips
  return opened;
}

void BackendRegistry::measure_bandwidth(std::shared_ptr<const ExecutionContext> context) {
  const std::string name = select("cpu").device.name;
  DeviceCapabilities& cpu = std::find_if(entries_.begin(), entries_.end(), [&](const Entry& e) {
                              return e.device.name == name;
                            })->device.capabilities;
  // Eight times the last cache, so that it is memory's rate and not the cache's.
  constexpr std::size_t kLeast = std::size_t{128} << 20, kMost = std::size_t{1} << 30;
  BandwidthProbe probe(std::move(context), std::clamp(8 * cpu.l3_bytes, kLeast, kMost));
  for (int i = 0; i < 3; ++i) probe.sample();
  cpu.bandwidth = probe.gigabytes_per_second();
}

std::vector<Device> BackendRegistry::devices() const {
  std::vector<Device> all;
  for (const Entry& e : entries_) all.push_back(e.device);
  return all;
}

}  // namespace bitnet
