// See device_report.hpp.
#include "device_report.hpp"

#include "common.hpp"

namespace bitnet::cli {
namespace {

std::string number(std::uint64_t n) { return grouped(static_cast<std::int64_t>(n)); }

std::string copies(std::uint64_t n, std::uint64_t bytes, double seconds, std::uint64_t timed_bytes) {
  std::string text = number(n) + " copies of " + human_bytes(bytes);
  if (seconds > 0) text += " at " + fixed(static_cast<double>(timed_bytes) / seconds / 1e9, 2) + " GB/s";
  return text;
}

}  // namespace

std::string device_lines(const DeviceStatistics& s) {
  if (s.launches == 0) return {};
  std::string text =
      "device: " + number(s.launches) + " launches, the host waited " + number(s.waits) + " times\n";
  text += "device: to it " + copies(s.uploads, s.upload_bytes, s.upload_seconds, s.timed_upload_bytes) +
          ", from it " + copies(s.downloads, s.download_bytes, s.download_seconds, s.timed_download_bytes) +
          '\n';
  text += "device: " + number(s.buffers) + " buffers, " + number(s.reused_buffers) + " of them used again; " +
          number(s.programs) + " programs, " + number(s.compiled_programs) + " of them compiled\n";
  for (const DeviceStatistics::KernelTime& k : s.kernels)
    text +=
        "device: " + k.name + ": " + number(k.launches) + " launches, " + fixed(k.seconds * 1e3, 2) + " ms\n";
  return text;
}

}  // namespace bitnet::cli
