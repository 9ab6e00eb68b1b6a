#pragma once
// Which backends an application has, by name. An explicit object that the application fills
// (inference::register_cpu_backend, gpu::register_backends), not a global filled by static initialisers: the
// linker drops those from static archives.
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "bitnet/core/device/backend.hpp"
#include "bitnet/core/device/device.hpp"
#include "bitnet/core/execution.hpp"

namespace bitnet {

/// A backend with the execution context that is its own.
struct OpenedDevice {
  std::unique_ptr<Backend> backend;
  std::shared_ptr<const ExecutionContext> context;  ///< of the host: its threads run or feed the device
  Selection selection;                              ///< its reason names devices that failed before
};

/// Maps device names to factories. Not thread-safe while it is being filled.
class BackendRegistry {
 public:
  using Factory = std::function<std::unique_ptr<Backend>(std::shared_ptr<const ExecutionContext>)>;

  /// Throws Error(kInvalidArgument) on a name that is taken.
  void add(Device device, Factory factory);
  /// `name`: a device's name or "auto". Throws Error(kNotFound) listing the devices there are.
  std::unique_ptr<Backend> create(std::string_view name,
                                  std::shared_ptr<const ExecutionContext> context) const;
  /// create() of what the request selects, with `context` or, where that is null, a default one of its own;
  /// then `use`, if there is one, which may take the backend (to load a model). With `auto` alone, a device
  /// that fails in either (kDevice, kUnsupported, kOutOfMemory) is followed by the next of
  /// Selection::alternatives, with a warning; the Error is that of the last one.
  OpenedDevice open(const DeviceRequest& request, std::shared_ptr<const ExecutionContext> context,
                    const std::function<void(OpenedDevice&)>& use = {}) const;
  /// What "auto" (or an explicit name) resolves to and why: see select_device(). The notes are added to an
  /// Error(kNotFound).
  Selection select(std::string_view name) const;
  Selection select(const DeviceRequest& request) const;
  std::vector<Device> devices() const;
  /// Measures the read bandwidth of the device "cpu" with all threads of `context` (about a second); others
  /// stay as they are, since no driver tells. Throws as BandwidthProbe, and Error(kNotFound) without a CPU.
  void measure_bandwidth(std::shared_ptr<const ExecutionContext> context);

  /// Notes of registration (a driver that failed to start, say) for `bitnet devices` and for errors.
  void add_note(std::string note) { notes_.push_back(std::move(note)); }
  const std::vector<std::string>& notes() const noexcept { return notes_; }

 private:
  struct Entry {
    Device device;
    Factory factory;
  };
  std::vector<Entry> entries_;
  std::vector<std::string> notes_;
};

}  // namespace bitnet
