// `bitnet devices`: what --device can name on this machine.
#include <nlohmann/json.hpp>
#include <ostream>

#include "commands/commands_list.hpp"
#include "common.hpp"
#include "loading.hpp"

namespace bitnet::cli {
namespace {

std::string_view kind_name(DeviceKind kind) {
  switch (kind) {
    case DeviceKind::kCpu:
      return "cpu";
    case DeviceKind::kGpu:
      return "gpu";
    case DeviceKind::kAccelerator:
      return "accelerator";
  }
  return "unknown";
}

void write_json(const BackendRegistry& registry, Io& io) {
  nlohmann::ordered_json devices = nlohmann::ordered_json::array();
  for (const Device& d : registry.devices())
    devices.push_back({{"name", d.name},
                       {"kind", kind_name(d.kind)},
                       {"description", d.description},
                       {"memory_bytes", d.memory_bytes},
                       {"emulated", d.emulated}});
  const nlohmann::ordered_json j{
      {"devices", devices}, {"auto", registry.select("auto").device.name}, {"notes", registry.notes()}};
  io.out << j.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) << '\n';
}

int list_devices(const Values& values, Io& io) {
  const BackendRegistry registry = make_registry(true);
  if (values.flag(opt::kJson)) {
    write_json(registry, io);
    return kOk;
  }
  for (const Device& d : registry.devices()) {
    io.out << d.name << '\t' << d.description;
    if (d.memory_bytes > 0) io.out << ", " << human_bytes(d.memory_bytes);
    if (d.emulated) io.out << " (runs on this CPU)";
    io.out << '\n';
  }
  io.out << "auto\t" << registry.select("auto").reason << '\n';
  for (const std::string& note : registry.notes()) io.err << "note: " << note << '\n';
  return kOk;
}

}  // namespace

const Command kDevicesCommand{
    .name = "devices",
    .summary = "list the devices that --device can name",
    .usage = "[--json]",
    .description =
        "One device a line: its name, a tab, what it is. The last line says what `--device auto` would "
        "choose and why.",
    .example =
        "bitnet devices\nbitnet run -m models/bitnet-demo-10m-i2_s.gguf -p \"Hello\" --device opencl:0:0",
    .arguments = {},
    .options = {&opt::kJson},
    .body = list_devices,
};

}  // namespace bitnet::cli
