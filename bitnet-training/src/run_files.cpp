// Names, order and removal of a run's files.
#include "run_files.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <string>
#include <string_view>
#include <utility>

#include "bitnet/core/error.hpp"
#include "bitnet/core/io/safetensors.hpp"
#include "bitnet/core/io/written_aside.hpp"

namespace bitnet::training {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "checkpoint-", kSuffix = ".safetensors";

std::optional<std::int64_t> number(std::string_view text) {
  std::int64_t value = 0;
  const auto r = std::from_chars(text.data(), text.data() + text.size(), value);
  if (r.ec != std::errc{} || r.ptr != text.data() + text.size() || value < 0) return std::nullopt;
  return value;
}

/// The step in the name of an older checkpoint.
std::optional<std::int64_t> step_in(std::string_view name) {
  if (!name.starts_with(kPrefix) || !name.ends_with(kSuffix) || name.size() < kPrefix.size() + kSuffix.size())
    return std::nullopt;
  return number(name.substr(kPrefix.size(), name.size() - kPrefix.size() - kSuffix.size()));
}

using Stepped = std::pair<std::int64_t, fs::path>;

/// From the last step to the first.
std::vector<Stepped> older_in(const fs::path& folder) {
  std::vector<Stepped> found;
  if (!fs::is_directory(folder)) return found;
  for (const auto& entry : fs::directory_iterator(folder))
    if (const auto step = step_in(entry.path().filename().string())) found.emplace_back(*step, entry.path());
  std::sort(found.begin(), found.end(), [](const Stepped& a, const Stepped& b) { return a.first > b.first; });
  return found;
}

/// The step that a checkpoint says it is of, −1 where it cannot be read.
std::int64_t step_of(const fs::path& checkpoint) {
  try {
    const auto file = SafeTensors::open(checkpoint);
    const auto it = file->metadata().find("step");
    return it == file->metadata().end() ? -1 : number(it->second).value_or(-1);
  } catch (const Error&) {
    return -1;
  }
}

}  // namespace

fs::path newest_checkpoint(const fs::path& folder) { return folder / "checkpoint.safetensors"; }

fs::path older_checkpoint(const fs::path& folder, std::int64_t step) {
  return folder / (std::string(kPrefix) + std::to_string(step) + std::string(kSuffix));
}

fs::path best_checkpoint(const fs::path& folder) { return folder / "best.safetensors"; }

std::vector<fs::path> checkpoints_in(const fs::path& folder) {
  std::vector<Stepped> others = older_in(folder);
  if (const fs::path best = best_checkpoint(folder); fs::exists(best)) {
    const std::int64_t step = step_of(best);
    const auto at =
        std::find_if(others.begin(), others.end(), [&](const Stepped& o) { return o.first < step; });
    others.emplace(at, step, best);
  }
  std::vector<fs::path> all;
  if (fs::exists(newest_checkpoint(folder))) all.push_back(newest_checkpoint(folder));
  for (Stepped& o : others) all.push_back(std::move(o.second));
  return all;
}

bool has_checkpoint(const TrainConfig& config, const TrainCallbacks& callbacks, bool resume) {
  if (fs::exists(config.output) && !fs::is_directory(config.output))
    throw Error(ErrorCode::kIo,
                "output.directory '" + config.output.string() + "' is there, but is not a directory");
  const std::vector<fs::path> all = checkpoints_in(config.output);
  if (!all.empty() && !resume)
    throw Error(ErrorCode::kInvalidArgument,
                "'" + all.front().string() + "' exists: resume it, or choose another output.directory");
  if (resume && all.empty() && callbacks.message)
    callbacks.message("no checkpoint to resume in '" + config.output.string() + "': starting at step 0");
  return !all.empty();
}

void keep_as_older(const fs::path& folder, std::int64_t step) {
  const fs::path newest = newest_checkpoint(folder), older = older_checkpoint(folder, step);
  if (!fs::exists(newest)) return;
  fs::remove(older);
  std::error_code refused;
  fs::create_hard_link(newest, older, refused);
  if (refused) fs::rename(newest, older);  // a file system without links
}

void remove_older(const fs::path& folder, std::int64_t count, std::int64_t step) {
  for (const auto& [at, path] : older_in(folder))
    if (at >= step || count-- <= 0) fs::remove(path);
}

std::optional<std::int64_t> take_back_older(const fs::path& folder) {
  const std::vector<Stepped> others = older_in(folder);
  if (others.empty()) return std::nullopt;
  fs::rename(others.front().second, newest_checkpoint(folder));
  return others.front().first;
}

OutputLock::OutputLock(const fs::path& folder)
    : file_(::open((folder / ".lock").c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0666)) {
  if (file_ < 0 || ::flock(file_, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK) return;
  ::close(file_);
  throw Error(ErrorCode::kInvalidArgument, "another run writes into '" + folder.string() +
                                               "' now: wait for its end, or choose another output.directory");
}

OutputLock::~OutputLock() {
  if (file_ >= 0) ::close(file_);
}

void remove_unfinished(const fs::path& folder) {
  for (const char* part : {".", "model", "adapter"}) {
    if (!fs::is_directory(folder / part)) continue;
    std::vector<fs::path> found;
    for (const auto& entry : fs::directory_iterator(folder / part))
      if (is_written_aside(entry.path().filename().string())) found.push_back(entry.path());
    for (const fs::path& path : found) fs::remove_all(path);  // a model's folder is one, too
  }
}

void keep_aside(const fs::path& log, const TrainCallbacks& callbacks) {
  if (!fs::exists(log)) return;
  fs::path other;
  for (int n = 1; other.empty() || fs::exists(other); ++n)
    other = log.parent_path() / (log.stem().string() + "." + std::to_string(n) + log.extension().string());
  fs::rename(log, other);
  if (callbacks.message) callbacks.message("the log of an earlier start is kept as '" + other.string() + "'");
}

fs::path writable_place(const fs::path& output) {
  fs::path place = fs::absolute(output);
  while (!fs::exists(place) && place.has_relative_path()) place = place.parent_path();
  if (!fs::is_directory(place) || ::access(place.c_str(), W_OK | X_OK) != 0)
    throw Error(ErrorCode::kIo,
                "output.directory '" + output.string() + "': '" + place.string() + "' cannot be written to");
  return place;
}

}  // namespace bitnet::training
