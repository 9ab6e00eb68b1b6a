#pragma once
// A device that lacks some ops, completed by the CPU. Nothing falls back silently: the list of ops that do is
// here. Like every Backend's, its ops are issued by one thread at a time; what is asked about it here is not
// thread-safe while it prepares weights.
#include <memory>
#include <string>
#include <vector>

#include "bitnet/core/device/backend.hpp"

namespace bitnet::inference {

/// Ops of `backend` that it cannot run.
std::vector<BackendOp> missing_ops(const Backend& backend);
/// How many weights the device of with_cpu_fallback() refused (kUnsupported), which run on the CPU though the
/// op does not; the sum over the stages of with_layers_split(); 0 for another backend.
std::int64_t refused_weights(const Backend& backend);
/// "embed, rms_norm, …", for messages.
std::string list_ops(const std::vector<BackendOp>& ops);

/// A backend that runs each op on `device` where it is supported and on `cpu` otherwise, and copies between
/// their memories only the bytes that the other side needs and has not got. Returns `device` itself when it
/// lacks nothing: no op and, where `extended_linears` are to come (ModelReader::extended_linears()), not
/// those. A weight that the device refuses with Error(kUnsupported) runs on the CPU, too, and is logged once.
/// With `device_only`: throws Error(kUnsupported) listing the missing ops, and refused weights stay errors.
std::unique_ptr<Backend> with_cpu_fallback(std::unique_ptr<Backend> device, std::unique_ptr<Backend> cpu,
                                           bool device_only = false, bool extended_linears = false);

}  // namespace bitnet::inference
