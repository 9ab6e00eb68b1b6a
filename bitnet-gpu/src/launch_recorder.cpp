// See launch_recorder.hpp.
#include "launch_recorder.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "bitnet/core/log.hpp"

namespace bitnet::gpu {
namespace {

constexpr std::size_t kLeastLaunches = 2;  // one is enqueued as fast by itself
constexpr std::size_t kMostSeen = 32;      // steps of several lengths, in turn

bool uses_any(std::span<const Launch> launches, std::span<const cl_mem> sorted) {
  return std::any_of(launches.begin(), launches.end(), [&](const Launch& launch) {
    for (std::size_t i = 0; i < launch.arguments(); ++i)
      if (std::binary_search(sorted.begin(), sorted.end(), launch.buffer(i), std::less<>())) return true;
    return false;
  });
}

}  // namespace

void LaunchRecorder::add(const Launch& launch) {
  const std::lock_guard lock(mutex_);
  waiting_.push_back(launch);
  hash_ = launch.hash(hash_);
}

bool LaunchRecorder::waits_for(cl_mem mem) const noexcept {
  return std::any_of(waiting_.begin(), waiting_.end(), [mem](const Launch& l) { return l.uses(mem); });
}

void LaunchRecorder::clear() {
  const std::lock_guard lock(mutex_);
  waiting_.clear();
  kept_.clear();
  hash_ = 0;
}

bool LaunchRecorder::seen(std::uint64_t hash) {
  if (std::find(seen_.begin(), seen_.end(), hash) != seen_.end()) return true;
  if (seen_.size() < kMostSeen) {
    seen_.push_back(hash);
  } else {
    seen_[next_seen_++ % kMostSeen] = hash;
  }
  return false;
}

void LaunchRecorder::stop(const std::string& why) {
  stopped_ = true;
  recordings_.clear();
  log(LogLevel::kWarning, fmt::format("the device's launches are not recorded any more: {}", why));
}

LaunchRecorder::Recording* LaunchRecorder::recording(cl_command_queue queue) {
  const auto found = std::find_if(recordings_.begin(), recordings_.end(), [&](const Recording& r) {
    return r.hash == hash_ &&
           std::equal(r.launches.begin(), r.launches.end(), waiting_.begin(), waiting_.end());
  });
  if (found != recordings_.end()) return &*found;
  if (!seen(hash_)) return nullptr;
  try {
    CommandBuffer commands(api_, queue, waiting_);
    if (recordings_.size() == kMostRecordings)
      recordings_.erase(std::min_element(recordings_.begin(), recordings_.end(),
                                         [](const auto& a, const auto& b) { return a.used < b.used; }));
    recordings_.push_back({hash_, waiting_, std::move(commands), 0});
  } catch (const Error& e) {
    stop(e.what());
    return nullptr;
  }
  return &recordings_.back();
}

bool LaunchRecorder::replay(cl_command_queue queue, std::span<const cl_event> needs) {
  const std::lock_guard lock(mutex_);
  if (stopped_ || waiting_.size() < kLeastLaunches) return false;
  Recording* const r = recording(queue);
  if (r == nullptr || r->commands.runs()) return false;
  r->used = ++clock_;
  try {
    return r->commands.enqueue(queue, needs);
  } catch (const Error& e) {
    stop(e.what());
    throw;
  }
}

void LaunchRecorder::forget(std::span<const cl_mem> buffers) {
  std::vector<cl_mem> sorted(buffers.begin(), buffers.end());
  std::sort(sorted.begin(), sorted.end(), std::less<>());
  const std::lock_guard lock(mutex_);
  std::erase_if(recordings_, [&](const Recording& r) { return uses_any(r.launches, sorted); });
  for (const cl_mem mem : sorted)
    if (waits_for(mem) && clRetainMemObject(mem) == CL_SUCCESS) kept_.emplace_back(mem);
}

void LaunchRecorder::forget() {
  const std::lock_guard lock(mutex_);
  recordings_.clear();
}

}  // namespace bitnet::gpu
