#pragma once
// Launches that wait to be issued together, and lists of them that came before, recorded. When a list is
// issued is command_queue.cpp's business, what a recording is command_buffer.hpp's.
#include <cstdint>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "command_buffer.hpp"
#include "launch.hpp"

namespace bitnet::gpu {

/// A list that comes a second time is recorded; from then on lists that equal it, argument by argument, are
/// replayed. A recording that still runs is not replayed: its launches are to be enqueued one by one. One
/// thread at a time, except that forget() may be called by any: memory that goes back to the driver is not
/// kept by a recording, and stays there as long as a launch that waits needs it.
class LaunchRecorder {
 public:
  explicit LaunchRecorder(const CommandBufferApi& api) : api_(api) {}
  LaunchRecorder(const LaunchRecorder&) = delete;
  LaunchRecorder& operator=(const LaunchRecorder&) = delete;

  static constexpr std::size_t kMostWaiting = 512;   ///< launches: more than a step of a large model has
  static constexpr std::size_t kMostRecordings = 8;  ///< the one that was not used for longest goes

  void add(const Launch& launch);
  /// Those that wait, in their order.
  std::span<const Launch> waiting() const noexcept { return waiting_; }
  bool waits_for(cl_mem mem) const noexcept;
  void clear();

  /// Enqueues what waits on `queue`, behind `needs`, as a recording if it is one or has become one. False:
  /// nothing was enqueued. A driver that does not record is said once in the log, and not asked again.
  /// Throws Error(kDevice) where a recording cannot be enqueued: there are none from then on.
  bool replay(cl_command_queue queue, std::span<const cl_event> needs);

  /// Releases recordings that name one of these buffers.
  void forget(std::span<const cl_mem> buffers);
  /// Releases all of them, as for another queue.
  void forget();

 private:
  struct Recording {
    std::uint64_t hash;
    std::vector<Launch> launches;
    CommandBuffer commands;
    std::uint64_t used;  // clock_ of the last use
  };
  Recording* recording(cl_command_queue queue);
  bool seen(std::uint64_t hash);
  void stop(const std::string& why);

  const CommandBufferApi api_;
  mutable std::mutex mutex_;  // everything below is changed under it, and read under it by forget()
  std::vector<Launch> waiting_;
  std::uint64_t hash_ = 0;   // of waiting_
  std::vector<ClMem> kept_;  // of waiting_, what the pool gave back
  std::vector<Recording> recordings_;
  std::vector<std::uint64_t> seen_;  // hashes of the last lists that were no recordings
  std::size_t next_seen_ = 0;
  std::uint64_t clock_ = 0;
  bool stopped_ = false;
};

}  // namespace bitnet::gpu
