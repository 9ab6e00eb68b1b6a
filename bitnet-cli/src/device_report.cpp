// See device_report.hpp.
#include "device_report.hpp"

#include <filesystem>
#include <set>
#include <utility>

#include "bitnet/core/io/atomic_file.hpp"
#include "common.hpp"

namespace bitnet::cli {
namespace {

std::string number(std::uint64_t n) { return grouped(static_cast<std::int64_t>(n)); }

using Json = nlohmann::ordered_json;

Json ratio(double of, double all) { return all > 0 ? Json(of / all) : Json(nullptr); }

Json copies_json(std::uint64_t n, std::uint64_t bytes, double seconds, std::uint64_t timed_bytes) {
  return {{"copies", n},
          {"bytes", bytes},
          {"timed_bytes", timed_bytes},
          {"seconds", seconds},
          {"gbps", ratio(static_cast<double>(timed_bytes) / 1e9, seconds)}};
}

Json pool_json(const MemoryStats& s) {
  const std::uint64_t asked = s.small_asked + s.large_asked, given = s.small_given + s.large_given;
  const auto share_left = [](double part, double all) {
    return all > 0 ? Json(1 - part / all) : Json(nullptr);
  };
  return {{"name", s.name},
          {"used_bytes", s.used},
          {"held_bytes", s.held},
          {"limit_bytes", s.limit == kNoMemoryLimit ? Json(nullptr) : Json(s.limit)},
          {"peak_used_bytes", s.peak_used},
          {"peak_held_bytes", s.peak_held},
          {"allocations", s.allocations},
          {"refusals", s.refusals},
          {"internal_fragmentation", share_left(static_cast<double>(asked), static_cast<double>(given))},
          {"external_fragmentation",
           share_left(static_cast<double>(s.largest_free), static_cast<double>(s.free_bytes))}};
}

std::string copies(std::uint64_t n, std::uint64_t bytes, double seconds, std::uint64_t timed_bytes) {
  std::string text = number(n) + " copies, " + human_bytes(bytes) + " in all";
  if (seconds > 0) text += ", at " + fixed(static_cast<double>(timed_bytes) / seconds / 1e9, 2) + " GB/s";
  return text;
}

}  // namespace

std::string device_lines(const DeviceStatistics& s) {
  if (s.launches == 0) return {};
  std::string text =
      "device: " + number(s.launches) + " launches, the host waited " + number(s.waits) + " times\n";
  if (s.replays != 0)
    text += "device: " + number(s.replayed_launches) + " of them in " + number(s.replays) +
            " recorded lists enqueued whole\n";
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

nlohmann::ordered_json device_json(const DeviceStatistics& s) {
  if (s.launches == 0) return nullptr;
  Json kernels = Json::array();
  for (const DeviceStatistics::KernelTime& k : s.kernels)
    kernels.push_back({{"name", k.name}, {"launches", k.launches}, {"seconds", k.seconds}});
  return {
      {"launches", s.launches},
      {"waits", s.waits},
      {"replays", s.replays},
      {"replayed_launches", s.replayed_launches},
      {"uploads", copies_json(s.uploads, s.upload_bytes, s.upload_seconds, s.timed_upload_bytes)},
      {"downloads", copies_json(s.downloads, s.download_bytes, s.download_seconds, s.timed_download_bytes)},
      {"buffers", s.buffers},
      {"reused_buffers", s.reused_buffers},
      {"buffer_hit_rate", ratio(static_cast<double>(s.reused_buffers), static_cast<double>(s.buffers))},
      {"programs", s.programs},
      {"compiled_programs", s.compiled_programs},
      {"kernels", kernels}};
}

nlohmann::ordered_json pools_json(std::span<const Backend* const> backends) {
  Json all = Json::array();
  std::set<const MemoryResource*> seen;
  for (const Backend* backend : backends)
    for (const MemoryResource* pool : backend->memories())
      if (seen.insert(pool).second) all.push_back(pool_json(pool->stats()));
  return all;
}

struct StatisticsFile::File {
  explicit File(std::filesystem::path path) : file(std::move(path)) {}
  AtomicFile file;
};

StatisticsFile::StatisticsFile(const Values& values) {
  if (!values.has(opt::kStatistics)) return;
  if (values.has(opt::kProfile) && same_file(values.text(opt::kProfile), values.text(opt::kStatistics)))
    throw UsageError("--statistics and --profile name the same file");
  file_ = std::make_unique<File>(report_path(values, opt::kStatistics, "statistics"));
}

StatisticsFile::~StatisticsFile() = default;

void StatisticsFile::write(const nlohmann::ordered_json& figures) {
  if (file_ == nullptr) return;
  file_->file.write(figures.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
  file_->file.commit();
}

}  // namespace bitnet::cli
