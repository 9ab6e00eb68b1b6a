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
#include "bitnet/core/execution.hpp"

namespace bitnet {

enum class DeviceKind : std::uint8_t { kCpu, kGpu, kAccelerator };

/// A device that a backend can be made for.
struct Device {
  std::string name;  ///< "cpu", "opencl:<platform>:<device>"
  DeviceKind kind{};
  std::string description;  ///< vendor, model, driver
  std::size_t memory_bytes = 0;
  bool emulated = false;  ///< runs on the host's own cores (PoCL): never chosen by `auto`
};

/// Result of automatic selection.
struct Selection {
  Device device;
  std::string reason;  ///< e.g. "cpu: no GPU found", one sentence for `--verbose`
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
  /// What "auto" (or an explicit name) resolves to and why: the real GPU with the most memory, else the CPU.
  Selection select(std::string_view name) const;
  std::vector<Device> devices() const;

  /// Notes of registration (a driver that failed to start, say) for `bitnet devices` and for errors.
  void add_note(std::string note) { notes_.push_back(std::move(note)); }
  const std::vector<std::string>& notes() const noexcept { return notes_; }

 private:
  struct Entry {
    Device device;
    Factory factory;
  };
  const Entry& find(std::string_view name) const;
  std::vector<Entry> entries_;
  std::vector<std::string> notes_;
};

}  // namespace bitnet
