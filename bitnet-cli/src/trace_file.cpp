// See trace_file.hpp.
#include "trace_file.hpp"

#include <exception>
#include <ostream>
#include <utility>

#include "common.hpp"

namespace bitnet::cli {

TraceFile::TraceFile(const Values& values, std::string process)
    : file_(report_path(values, opt::kProfile, "trace")), process_(std::move(process)) {}

void TraceFile::write(const nlohmann::ordered_json& device, const nlohmann::ordered_json& pools, Io& io) {
  constexpr auto kReplace = nlohmann::ordered_json::error_handler_t::replace;
  const std::string other = "\"device_statistics\":" + device.dump(-1, ' ', false, kReplace) +
                            ",\"memory_pools\":" + pools.dump(-1, ' ', false, kReplace);
  profiler_.chrome_trace(
      process_, [&](std::string_view piece) { file_.write(piece); }, other);
  file_.commit();
  io.err << profiler_.table();
}

void TraceFile::write_after_failure(Io& io) {
  if (profiler_.events().empty()) return;
  try {
    write(nullptr, nullptr, io);
  } catch (const std::exception& e) {
    io.err << "note: no trace: " << e.what() << '\n';
  }
}

}  // namespace bitnet::cli
