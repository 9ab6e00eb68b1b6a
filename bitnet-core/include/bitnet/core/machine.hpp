#pragma once
// What this machine calls itself. What it can run is isa.hpp, how fast it is device/bandwidth.hpp.
// Thread-safe.
#include <filesystem>
#include <string>

namespace bitnet {

/// The processor's name, e.g. "AMD EPYC 9755 128-Core Processor", from `cpuinfo`; on Arm, which gives numbers
/// only, "CPU implementer 0x41, part 0xd49"; "unknown" where there is nothing. Throws std::bad_alloc.
std::string cpu_name(const std::filesystem::path& cpuinfo = "/proc/cpuinfo");

}  // namespace bitnet
