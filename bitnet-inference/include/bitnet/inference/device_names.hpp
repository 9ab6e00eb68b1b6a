#pragma once
// Lists of devices by name, as EngineOptions::device has them. Which devices there are is
// bitnet/core/device/registry.hpp's business.
#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace bitnet::inference {

/// "opencl:0:0,opencl:1:0" as two names; a list without commas is one. Names may be empty. Thread-safe, as
/// all of these.
std::vector<std::string> split_device_names(std::string_view list);

/// Whether two names stand for the same memory: one device twice, or one and a part of it ("opencl:0:0" and
/// "opencl:0:0/1").
bool share_memory(std::string_view a, std::string_view b) noexcept;

/// Of each name: how many of `names`, itself included, stand for its memory. Who gives each of them its
/// memory divided by that gives nothing twice.
std::vector<std::size_t> sharers(std::span<const std::string> names);

}  // namespace bitnet::inference
