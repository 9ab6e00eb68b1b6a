#pragma once
// What a backend has in order on its device: launches and downloads on one queue, uploads on the same one or
// on a queue of their own beside it, and what they moved. Which kernels there are is kernel_set.hpp's
// business.
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "bitnet/core/device/backend_types.hpp"
#include "bitnet/core/profiler.hpp"
#include "cl_objects.hpp"
#include "launch.hpp"
#include "launch_recorder.hpp"

namespace bitnet::gpu {

/// Everything happens as if in the order of the calls. With a queue for transfers an upload runs beside the
/// launches that do not need it: the first launch that reads its buffer, and with that all later ones, waits
/// for its event; and an upload into a buffer that earlier launches may use waits for those. With recording,
/// launches wait on the host until flush(), download(), finish() or an upload into a buffer of theirs, or
/// till they are very many; lists that come again are replayed (launch_recorder.hpp). One thread at a time
/// issues to it.
class CommandQueue {
 public:
  /// Throws Error(kDevice | kOutOfMemory).
  CommandQueue(cl_context context, cl_device_id device, bool own_transfers);
  ~CommandQueue();
  CommandQueue(const CommandQueue&) = delete;
  CommandQueue& operator=(const CommandQueue&) = delete;

  /// From the next call on, times on the device are taken, or no more: each launch and copy is added up in
  /// statistics() and, where `profiler` is not null (then times are taken anyway), a zone of it. Beginning or
  /// ending that needs other queues of the driver; the old ones' work is waited for. Meanwhile nothing is
  /// recorded.
  void set_profiler(Profiler* profiler, bool times) noexcept {
    profiler_ = profiler;
    wants_times_ = times || profiler != nullptr;
  }

  /// From now on launches are recorded where the device can; returns that. `platform`: the device's.
  bool record(cl_platform_id platform);
  /// Not any more. What has not been issued never is.
  void stop_recording() noexcept { recorder_.reset(); }
  /// Before these buffers go back to the driver; by any thread, but not beside stop_recording().
  void forget(std::span<const cl_mem> buffers);

  /// The queue that launches are on, and that which uploads are on (perhaps the same), for what comes now;
  /// valid until set_profiler(). Throw Error(kDevice).
  cl_command_queue get() {
    choose_queue();
    issue_waiting();
    busy_ = true;
    return queue_.get();
  }
  cl_command_queue transfers() {
    choose_queue();
    return transfers_ ? transfers_.get() : queue_.get();
  }

  /// Enqueues `groups` work-groups. Throws Error(kDevice).
  template <class... Args>
  void launch(const Kernel& kernel, Launch::Groups groups, const Args&... args) {
    issue(Launch(kernel, groups, args...));
  }
  void issue(const Launch& launch);

  /// Copies to the device. `in_use`: false where it is known that nothing issued before has to do with `to`.
  /// Throws Error(kDevice), and Error(kOutOfMemory) where the driver has no memory for it.
  void upload(cl_mem to, std::size_t offset, std::span<const std::byte> from, bool in_use = true);
  /// The same without waiting: `from` has to stay as it is until the event has come. An upload that fails
  /// later is an Error(kDevice) of the next download() or finish().
  ClEvent upload_later(cl_mem to, std::size_t offset, std::span<const std::byte> from, bool in_use = true);
  /// Waits for an upload, and forgets it: what came of it.
  cl_int wait(const ClEvent& uploaded);
  /// Waits for everything issued before, and copies. Throws Error(kDevice).
  void download(cl_mem from, std::size_t offset, std::span<std::byte> to);
  void flush();
  void finish();

  /// What it knows of DeviceStatistics.
  DeviceStatistics statistics() const;
  /// Grows with every call that failed: what was enqueued before need not have been done.
  std::uint64_t failures() const noexcept { return failures_; }
  /// Grows with every download() and finish(): everything that was issued before is done.
  std::uint64_t settled() const noexcept { return settled_; }

 private:
  void checked(cl_int status, std::string_view call);
  void checked_upload(cl_int status);
  /// The queues for what comes now: those that take times where they are wanted.
  void choose_queue();
  /// Where the driver is to put the event of a command, or null where no times are taken.
  cl_event* event_for(const char* name, std::uint64_t bytes = 0);
  /// Takes the times of all that is done by now.
  void collect();

  /// Enqueues a write for what may be in use.
  cl_int write(cl_mem to, std::size_t offset, std::span<const std::byte> from, bool in_use, bool blocking,
               cl_event* event);
  void enqueue(const Launch& launch);
  /// Enqueues what recorder_ has waiting.
  void issue_waiting();
  /// Comes when nothing enqueued so far runs any more; none where that is known.
  ClEvent marker();
  /// What launches have to wait for, in waited_; and that they do, once they are enqueued.
  void find_needs(std::span<const Launch> launches);
  void have_needs(std::span<const Launch> launches);
  /// Uploads that are done leave the list; the first that failed is lost_.
  void forget_done();
  /// finish() within other calls, which settled() does not count.
  void drain();
  /// After everything was waited for. Throws Error(kDevice) of an upload that failed.
  void settle();

  struct Timed {
    const char* name;
    std::uint64_t bytes;
    cl_event event;
  };
  struct Upload {
    cl_mem to;
    ClEvent done;
    bool waited_for;  // by a launch, and so by all later ones
  };
  ClContext context_;
  cl_device_id device_;
  const bool own_transfers_;
  ClQueue queue_, transfers_;
  bool takes_times_ = false, wants_times_ = false;
  bool busy_ = false;            // something was issued to queue_ since settled_ grew
  std::vector<Upload> uploads_;  // on their way, as far as known
  cl_int lost_ = CL_SUCCESS;     // what came of an upload that nobody has been told of
  std::vector<cl_event> waited_;
  std::unique_ptr<LaunchRecorder> recorder_;  // null: launches are enqueued at once
  Profiler* profiler_ = nullptr;
  DeviceStatistics counts_;
  std::map<std::string_view, DeviceStatistics::KernelTime> times_;
  std::vector<Timed> timed_;
  std::chrono::steady_clock::time_point first_;  // enqueued of timed_
  std::uint64_t failures_ = 0, settled_ = 0;
};

}  // namespace bitnet::gpu
