#pragma once
// The one door to the OpenCL backend: an application calls register_backends() and then knows the devices
// only by name, through bitnet::BackendRegistry. No OpenCL type is visible here. Filling a registry is not
// thread-safe (BackendRegistry), nor are the backends: one thread at a time issues ops.
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "bitnet/core/device/registry.hpp"

namespace bitnet::gpu {

/// What kernels may make use of; none: what the device says. For tests and for tuning: all choices give the
/// same bits.
struct KernelChoice {
  /// Kernels whose work-items use vectors of 16 values, for devices that run them one after another (CPUs),
  /// in place of those whose work-groups share a row or a tile.
  std::optional<bool> wide;
  /// The device's own division and square root, where it rounds them as IEEE 754 does; else integers do it.
  std::optional<bool> exact_divide;
  /// The dot product of four bytes (cl_khr_integer_dot_product) in place of plain code.
  std::optional<bool> integer_dot;
  /// Numbers of 64 bits (cl_khr_fp64). Without them linears that are more than one ternary plane with scales
  /// of whole rows on int8, or a dense matrix, are not held: the CPU runs them.
  std::optional<bool> doubles;
  /// Attention over tiles of keys at a time, which are merged afterwards, wherever there are several; else
  /// where there are fewer heads and rows than keep the device busy.
  std::optional<bool> split_attention;
  /// Weights packed where the device reads them, in place of staging buffers that are copied.
  std::optional<bool> zero_copy;
  /// Uploads on a queue of their own, so that launches which do not need them go on; else, and where none is
  /// said and weights are packed in place, on the one that launches are on.
  std::optional<bool> transfer_queue;
  /// Launches of a step that come again recorded and enqueued whole (cl_khr_command_buffer); true on a device
  /// without the extension: they are not. None: as the table of sizes says.
  std::optional<bool> record;
};

/// How the device programs are built.
struct Options {
  /// Passed to the device's compiler, e.g. "-DBN_OUT_WG=128": every work-group size of
  /// bitnet-gpu/kernels/*.cl is a macro with a default, and what is defined here is not taken from a table of
  /// sizes. What the compiler makes of it is the caller's affair;
  /// a program that does not build is an Error(kDevice) with the build log when the backend is created.
  std::string build_options;
  KernelChoice kernels;
  /// Folder in which compiled programs are kept for later processes; empty: none are. None given:
  /// `bitnet/opencl` in XDG_CACHE_HOME or in ~/.cache.
  std::optional<std::filesystem::path> program_folder;
  /// Table of tile and work-group sizes that comes before the shipped one (docs/formats/opencl-tuning.md);
  /// one that cannot be read is an error when the backend is created. Empty: none. None given:
  /// user_tuning_file() of bitnet/gpu/tuning.hpp.
  std::optional<std::filesystem::path> tuning_file = {};
  /// Bytes that buffers of a backend may take, where the device has more; 0: what the device has.
  std::size_t memory_limit = 0;
  /// Each device that can be divided into so many equal parts is listed with them behind it, as
  /// "opencl:0:0/0", "opencl:0:0/1", …, with that share of its memory, and a note says how many; below 2:
  /// none is.
  std::int64_t sub_devices = 0;
};

/// Adds one entry "opencl:<platform>:<device>" for every usable device of every OpenCL platform, in the order
/// of the ICD loader. A device that runs on the host's own cores (CL_DEVICE_TYPE_CPU, such as PoCL) is
/// `emulated`. No driver, a platform that fails to answer, a device without a compiler: each becomes a note
/// in the registry, never an exception. The devices are opened only when the registry creates a backend: that
/// throws Error(kDevice) when the driver refuses and Error(kOutOfMemory) when it has no memory.
///
/// The backend runs every op, on ternary and on dense weights, with the CPU's results bit for bit (of the
/// instruction sets with fused multiply-adds; docs/numerics.md).
void register_backends(BackendRegistry& registry, const Options& options = {});

}  // namespace bitnet::gpu
