#pragma once
// What a device is and can do, and how one is chosen among several. Which devices an application has is
// registry.hpp; what a device must do is backend.hpp.
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace bitnet {

enum class DeviceKind : std::uint8_t { kCpu, kGpu, kAccelerator };
std::string_view to_string(DeviceKind kind) noexcept;  ///< "cpu", "gpu", "accelerator"

/// What is known of a device; 0 and empty: not known. Sizes in bytes.
struct DeviceCapabilities {
  std::vector<std::string> isas;   ///< instruction sets that it runs, weakest first (CPUs)
  std::int64_t compute_units = 0;  ///< of a CPU the cores that this process may use
  double clock_mhz = 0;            ///< at most; of a CPU that of its fastest core, where cpufreq tells
  std::size_t l1_bytes = 0, l2_bytes = 0, l3_bytes = 0;  ///< data caches, of one instance (CPUs)
  std::size_t l3_total_bytes = 0;    ///< of all instances beside the cores that this process may use
  std::size_t cache_bytes = 0;       ///< before its memory, as a driver says
  std::size_t available_bytes = 0;   ///< of its memory, when the device was listed
  std::size_t allocation_bytes = 0;  ///< one buffer at most
  std::size_t local_bytes = 0;       ///< of a work-group
  std::size_t work_group_items = 0;  ///< work-items of a work-group at most
  bool shares_host_memory = false;   ///< its buffers lie in the host's memory: CPUs, integrated GPUs
  std::string vendor, driver;
  std::vector<std::string> features;  ///< what the driver adds: OpenCL extensions
  std::optional<double>
      gigabytes_per_second;  ///< measured reading of its memory, in 10^9 bytes; 0: it failed
};

/// A device that a backend can be made for.
struct Device {
  std::string name;  ///< "cpu", "opencl:<platform>:<device>"
  DeviceKind kind{};
  std::string description;       ///< vendor, model, driver
  std::size_t memory_bytes = 0;  ///< all of it
  bool emulated = false;         ///< runs on the host's own cores (PoCL): never chosen by `auto`
  DeviceCapabilities capabilities = {};
};

/// What `auto` looks for. Of two devices the first line that tells them apart decides:
///   kLatency     read bandwidth, measured, if it is known of all candidates;
///                the one that is no CPU; their read bandwidth; their compute units × clock; memory
///   kThroughput  the one that is no CPU; compute units × clock; memory
///   kMemory      memory
/// Bandwidth and compute units × clock count among devices of which all have them, memory is what is
/// available (all of it where that is not known), and of equal devices the first is taken. Bandwidth says how
/// fast a token's weights can be read, not what starting programs on a device and copying to it cost.
enum class DevicePolicy : std::uint8_t {
  kLatency,     ///< one sequence as fast as possible
  kThroughput,  ///< many sequences
  kMemory,      ///< the largest models and caches
};
std::string_view to_string(DevicePolicy policy) noexcept;  ///< "latency", "throughput", "memory"
/// Throws Error(kInvalidArgument) listing the policies.
DevicePolicy device_policy_from_name(std::string_view name);

struct DeviceRequest {
  std::string name = "auto";  ///< or a device's own
  DevicePolicy policy =
      DevicePolicy::kLatency;    ///< of `auto`; the default is that of `bitnet run` and `chat`
  std::size_t needed_bytes = 0;  ///< devices with less memory are passed over by `auto`; 0: none
  bool fall_back = true;         ///< false: a device that fails is an error for `auto`, too
};

struct Selection {
  Device device;
  std::string reason;  ///< e.g. "cpu: no other device was found", one sentence for `--verbose`
  /// Of `auto` alone: what to try next when this device fails, in order. Empty where a name was asked for or
  /// DeviceRequest::fall_back is false, since nothing falls back silently.
  std::vector<std::string> alternatives = {};
};

/// Chooses among `devices`. With `auto`, emulated ones and those with too little memory are left out; of the
/// others DevicePolicy takes one, whatever their order unless they are equal. Throws Error(kNotFound) for a
/// name that is not there, listing those that are, and when nothing is left to `auto`, saying why. A pure
/// function, thread-safe.
Selection select_device(std::span<const Device> devices, const DeviceRequest& request = {});

/// The CPU as this process may use it: instruction sets, cores, caches and clock (from `sysfs`, of `cores`;
/// empty: those of the affinity mask). Caches of one instance are the largest where cores differ. What memory
/// is available is the caller's to add. Thread-safe.
DeviceCapabilities cpu_capabilities(const std::filesystem::path& sysfs = "/sys",
                                    std::span<const int> cores = {});

}  // namespace bitnet
