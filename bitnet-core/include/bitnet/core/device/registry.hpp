#pragma once
// Which backends an application has, by name. An explicit object that the application fills
// (inference::register_cpu_backend, gpu::register_backends), not a global filled by static initialisers: the
// linker drops those from static archives.
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bitnet/core/device/backend.hpp"
#include "bitnet/core/device/device.hpp"
#include "bitnet/core/execution.hpp"

namespace bitnet {

/// A backend with the execution context that it was made with. What a device itself keeps of the kind (an
/// OpenCL context, its queue and its memory pool) is inside the backend, one each.
struct OpenedDevice {
  std::unique_ptr<Backend> backend;
  std::shared_ptr<const ExecutionContext> context;  ///< of the host: its threads run or feed the device
  Selection selection;                              ///< its reason names devices that failed before
};

/// Maps device names to factories. Not thread-safe while it is being filled (add, add_note); then all const
/// members are. Copies share what was measured.
class BackendRegistry {
 public:
  using Factory = std::function<std::unique_ptr<Backend>(std::shared_ptr<const ExecutionContext>)>;

  /// Throws Error(kInvalidArgument) on a name that is taken.
  void add(Device device, Factory factory);
  /// `name`: a device's name or "auto". Throws Error(kNotFound) listing the devices there are.
  std::unique_ptr<Backend> create(std::string_view name,
                                  std::shared_ptr<const ExecutionContext> context) const;
  /// create() of what the request selects, after measure_bandwidth(request, …), with `context` or, where that
  /// is null, a default one of its own; then `use`, if there is one, which may take the backend (to load a
  /// model). With `auto` alone, a device that fails in either (kDevice, kUnsupported, kOutOfMemory) is
  /// followed by the next of Selection::alternatives, with a warning; the Error is that of the last one. A
  /// device asked for by name is not exchanged (that the CPU may run ops which it lacks is inference's
  /// doing). What is no fault of a device (a model that cannot be read) should be found out before.
  OpenedDevice open(const DeviceRequest& request, std::shared_ptr<const ExecutionContext> context,
                    const std::function<void(OpenedDevice&)>& use = {}) const;
  /// What "auto" (or an explicit name) resolves to and why, with what is known now: see select_device(). The
  /// notes are added to an Error(kNotFound).
  Selection select(std::string_view name) const;
  /// The same with a policy and a need of memory.
  Selection select(const DeviceRequest& request) const;
  std::vector<Device> devices() const;  ///< in the order in which they were added
  /// Backend::measure_bandwidth() of every device, on a backend made for it, some tenths of a second each;
  /// devices() and select() then have the figure, which is measured once. Returns a line for each device that
  /// failed: its figure is 0. `context`: of the host; null: a default one.
  std::vector<std::string> measure_bandwidth(const std::shared_ptr<const ExecutionContext>& context) const;
  /// Of the devices alone that `request` chooses among by it: `auto`, policy latency, and no other device
  /// without a figure. The CPU comes last, since it counts only where all others have one.
  std::vector<std::string> measure_bandwidth(const DeviceRequest& request,
                                             const std::shared_ptr<const ExecutionContext>& context) const;

  /// Notes of registration (a driver that failed to start, say) for `bitnet devices` and for errors.
  void add_note(std::string note) { notes_.push_back(std::move(note)); }
  const std::vector<std::string>& notes() const noexcept { return notes_; }

 private:
  struct Measured;
  struct Entry {
    Device device;
    Factory factory;
    std::shared_ptr<Measured> measured;
  };
  const Entry& entry(std::string_view name) const;
  static std::optional<double> measure(const Entry& e, const std::shared_ptr<const ExecutionContext>& context,
                                       std::vector<std::string>& failed);
  std::vector<Entry> entries_;
  std::vector<std::string> notes_;
};

}  // namespace bitnet
