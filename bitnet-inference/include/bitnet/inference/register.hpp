#pragma once
// The CPU backend: how an application gets it. Its ops are in src/cpu/; the seam is
// bitnet/core/device/backend.hpp. Making a backend is thread-safe, filling a registry is not
// (BackendRegistry).
#include <memory>

#include "bitnet/core/device/backend.hpp"
#include "bitnet/core/device/registry.hpp"
#include "bitnet/core/execution.hpp"

namespace bitnet::inference {

/// Adds the device "cpu". Throws Error(kInvalidArgument) when it is there already.
void register_cpu_backend(BackendRegistry& registry);

/// The CPU backend itself; supports every op. Results do not depend on context->threads().
std::unique_ptr<Backend> make_cpu_backend(std::shared_ptr<const ExecutionContext> context);

}  // namespace bitnet::inference
