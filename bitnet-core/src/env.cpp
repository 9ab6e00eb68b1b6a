// The only getenv of the workspace's libraries.
#include "bitnet/core/env.hpp"

#include <fmt/format.h>

#include <array>
#include <cstdlib>
#include <string_view>

#include "bitnet/core/error.hpp"

namespace bitnet {
namespace {

constexpr std::array kVariables{
    EnvVariable{"BITNET_ISA",
                "instruction set of new contexts, e.g. avx2; an unknown or unsupported one is an error"},
    EnvVariable{"BITNET_TILE_CODE",
                "code of ternary weights in memory, two_bit or base3; default: what suits the ISA"},
    EnvVariable{"BITNET_THREADS",
                "threads of new contexts, 1 to 1024; 0, the default: the cores this process may use"},
    EnvVariable{"BITNET_DEVICE",
                "device of `bitnet` commands unless --device is given: cpu, opencl:P:D or auto"},
    EnvVariable{"BITNET_MODEL", "model of `bitnet` commands unless -m is given"},
    EnvVariable{"BITNET_MEMORY_LIMIT",
                "most memory of `bitnet` commands unless --memory-limit is given, e.g. 4GiB"},
    EnvVariable{"OMPI_COMM_WORLD_SIZE", "set by mpirun: the processes that train together (BITNET_WITH_MPI)"},
    EnvVariable{"PMI_SIZE",
                "set by MPICH's launcher: above 1 an error of `bitnet train`, which knows mpirun only"},
    EnvVariable{"SLURM_STEP_NUM_TASKS", "set by srun: the same"},
    EnvVariable{"XDG_CACHE_HOME",
                "where compiled OpenCL programs are kept, in bitnet/opencl; default: ~/.cache"},
    EnvVariable{"BITNET_OPENCL_TUNING",
                "table of work-group sizes of OpenCL devices; default: what is found in XDG_DATA_HOME"},
    EnvVariable{"XDG_DATA_HOME", "where that table is found; default: ~/.local/share"},
    EnvVariable{"HOME", "whose .cache and .local/share those are"},
    EnvVariable{"BITNET_LOG",
                "diagnostics of the libraries: warning (the default) or off; another name is an error"},
};

}  // namespace

std::span<const EnvVariable> env_variables() noexcept { return kVariables; }

std::optional<std::string> env(const char* name) {
  for (const EnvVariable& v : kVariables) {
    if (std::string_view(v.name) != name) continue;
    const char* value = std::getenv(name);
    if (value == nullptr || *value == '\0') return std::nullopt;
    return std::string(value);
  }
  throw Error(ErrorCode::kInternal, fmt::format("environment variable {} is not listed in env.cpp", name));
}

}  // namespace bitnet
