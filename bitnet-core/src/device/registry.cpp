// The devices of an application and the making of their backends. What devices there are, backends add
// themselves (register_*_backend functions that the application calls); choosing one is select.cpp.
#include "bitnet/core/device/registry.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <mutex>
#include <utility>

#include "bitnet/core/error.hpp"
#include "bitnet/core/log.hpp"
#include "bitnet/core/recovery.hpp"

namespace bitnet {

struct BackendRegistry::Measured {
  std::mutex mutex;
  bool done = false;
  std::optional<double> gigabytes_per_second;
};

void BackendRegistry::add(Device device, Factory factory) {
  for (const Entry& e : entries_) {
    if (e.device.name == device.name) {
      throw Error(ErrorCode::kInvalidArgument, fmt::format("device '{}' is registered already", device.name));
    }
  }
  entries_.push_back({std::move(device), std::move(factory), std::make_shared<Measured>()});
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
  const Entry& e = entry(select(name).device.name);
  return with_context(fmt::format("device '{}'", e.device.name), [&] {
    std::unique_ptr<Backend> backend = e.factory(std::move(context));
    if (backend == nullptr) throw Error(ErrorCode::kInternal, "its factory made no backend");
    return backend;
  });
}

const BackendRegistry::Entry& BackendRegistry::entry(std::string_view name) const {
  for (const Entry& e : entries_)
    if (e.device.name == name) return e;
  throw Error(ErrorCode::kInternal, "the device that was selected is not there");
}

OpenedDevice BackendRegistry::open(const DeviceRequest& request,
                                   std::shared_ptr<const ExecutionContext> context,
                                   const std::function<void(OpenedDevice&)>& use) const {
  if (context == nullptr) context = std::make_shared<const ExecutionContext>();
  for (const std::string& line : measure_bandwidth(request, context)) log(LogLevel::kWarning, line);
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

std::optional<double> BackendRegistry::measure(const Entry& e,
                                               const std::shared_ptr<const ExecutionContext>& context,
                                               std::vector<std::string>& failed) {
  if (const auto& known = e.device.capabilities.gigabytes_per_second) return known;
  const std::lock_guard lock(e.measured->mutex);
  std::optional<double>& figure = e.measured->gigabytes_per_second;
  if (std::exchange(e.measured->done, true)) return figure;
  const std::string doing = fmt::format("device '{}': its bandwidth could not be measured", e.device.name);
  try {
    with_context(doing, [&] {
      const std::unique_ptr<Backend> backend =
          e.factory(context != nullptr ? context : std::make_shared<const ExecutionContext>());
      if (backend != nullptr) figure = backend->measure_bandwidth();
    });
  } catch (const Error& error) {
    figure = 0;  // so that it comes after all that answer
    failed.emplace_back(error.what());
  }
  return figure;
}

std::vector<std::string> BackendRegistry::measure_bandwidth(
    const std::shared_ptr<const ExecutionContext>& context) const {
  std::vector<std::string> failed;
  for (const Entry& e : entries_) measure(e, context, failed);
  return failed;
}

std::vector<std::string> BackendRegistry::measure_bandwidth(
    const DeviceRequest& request, const std::shared_ptr<const ExecutionContext>& context) const {
  std::vector<std::string> failed;
  if (request.name != "auto" || request.policy != DevicePolicy::kLatency) return failed;
  DeviceRequest all = request;
  all.fall_back = true;  // names the other candidates
  const Selection first = select(all);
  if (first.alternatives.empty()) return failed;
  std::vector<const Entry*> candidates{&entry(first.device.name)};
  for (const std::string& name : first.alternatives) candidates.push_back(&entry(name));
  std::stable_partition(candidates.begin(), candidates.end(),
                        [](const Entry* e) { return e->device.kind != DeviceKind::kCpu; });
  bool known = true;
  for (const Entry* e : candidates)
    if (known || e->device.kind != DeviceKind::kCpu) known = measure(*e, context, failed) && known;
  return failed;
}

std::vector<Device> BackendRegistry::devices() const {
  std::vector<Device> all;
  for (const Entry& e : entries_) {
    all.push_back(e.device);
    const std::lock_guard lock(e.measured->mutex);
    if (const auto& figure = e.measured->gigabytes_per_second)
      all.back().capabilities.gigabytes_per_second = figure;
  }
  return all;
}

}  // namespace bitnet
