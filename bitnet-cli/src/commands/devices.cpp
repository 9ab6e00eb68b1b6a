// `bitnet devices`: what --device can name on this machine.
#include <memory>
#include <nlohmann/json.hpp>
#include <ostream>
#include <type_traits>

#include "commands/commands_list.hpp"
#include "common.hpp"
#include "loading.hpp"

namespace bitnet::cli {
namespace {

using Json = nlohmann::ordered_json;

/// What is known; the rest is left out.
Json to_json(const DeviceCapabilities& c) {
  Json j = Json::object();
  const auto add = [&](const char* key, const auto& value) {
    if (value != std::decay_t<decltype(value)>{}) j[key] = value;
  };
  add("isas", c.isas);
  add("compute_units", c.compute_units);
  add("clock_mhz", c.clock_mhz);
  add("l1_bytes", c.l1_bytes);
  add("l2_bytes", c.l2_bytes);
  add("l3_bytes", c.l3_bytes);
  add("l3_total_bytes", c.l3_total_bytes);
  add("cache_bytes", c.cache_bytes);
  add("available_bytes", c.available_bytes);
  add("allocation_bytes", c.allocation_bytes);
  add("local_bytes", c.local_bytes);
  add("work_group_items", c.work_group_items);
  j["shares_host_memory"] = c.shares_host_memory;
  add("vendor", c.vendor);
  add("driver", c.driver);
  add("features", c.features);
  if (c.gigabytes_per_second) j["gigabytes_per_second"] = *c.gigabytes_per_second;
  return j;
}

void write_json(const BackendRegistry& registry, const Selection& chosen, Io& io) {
  Json devices = Json::array();
  for (const Device& d : registry.devices())
    devices.push_back({{"name", d.name},
                       {"kind", to_string(d.kind)},
                       {"description", d.description},
                       {"memory_bytes", d.memory_bytes},
                       {"emulated", d.emulated},
                       {"capabilities", to_json(d.capabilities)}});
  const Json j{{"devices", devices},
               {"auto", chosen.device.name},
               {"reason", chosen.reason},
               {"alternatives", chosen.alternatives},
               {"notes", registry.notes()}};
  io.out << j.dump(2, ' ', false, Json::error_handler_t::replace) << '\n';
}

void write_line(const Device& d, Io& io) {
  const DeviceCapabilities& c = d.capabilities;
  io.out << d.name << '\t' << d.description;
  if (c.compute_units > 0)
    io.out << ", " << c.compute_units << (d.kind == DeviceKind::kCpu ? " cores" : " units");
  if (c.l3_bytes > 0) io.out << ", " << human_bytes(c.l3_bytes) << " of L3 cache";
  if (d.memory_bytes > 0) io.out << ", " << human_bytes(d.memory_bytes);
  if (c.available_bytes > 0) io.out << ", " << human_bytes(c.available_bytes) << " of it free";
  if (c.gigabytes_per_second) io.out << ", read at " << fixed(*c.gigabytes_per_second, 1) << " GB/s";
  if (d.emulated) io.out << " (runs on this CPU)";
  io.out << '\n';
}

int list_devices(const Values& values, Io& io) {
  BackendRegistry registry = make_registry(true, sub_devices(values, {}));
  const DeviceRequest request{.name = "auto",
                              .policy = device_policy_from_name(values.text(opt::kDevicePolicy))};
  // As `run` does for `auto`, so that the last line says what that would choose.
  const auto failed = values.flag(opt::kMeasure) ? registry.measure_bandwidth(nullptr)
                                                 : registry.measure_bandwidth(request, nullptr);
  for (const std::string& line : failed) registry.add_note(line);
  const Selection chosen = registry.select(request);
  if (values.flag(opt::kJson)) {
    write_json(registry, chosen, io);
    return kOk;
  }
  for (const Device& d : registry.devices()) write_line(d, io);
  io.out << "auto\t" << chosen.reason << '\n';
  for (const std::string& note : registry.notes()) io.err << "note: " << note << '\n';
  return kOk;
}

}  // namespace

const Command kDevicesCommand{
    .name = "devices",
    .summary = "list the devices that --device can name",
    .usage = "[--json] [--measure] [--sub-devices N] [--device-policy POLICY]",
    .description =
        "One device a line: its name, a tab, what it is. The last line says what `--device auto` would "
        "choose and why; --json says all that is known of each, --sub-devices lists the parts of devices "
        "that can be "
        "divided into so many, too.",
    .example = "bitnet devices\nbitnet run -m models/bitnet-demo-i2_s.gguf -p \"Hello\" --device opencl:0:0",
    .arguments = {},
    .options = {&opt::kJson, &opt::kMeasure, &opt::kSubDevices, &opt::kDevicePolicy},
    .body = list_devices,
};

}  // namespace bitnet::cli
