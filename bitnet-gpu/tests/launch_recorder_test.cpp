// Recorded launches: what comes again is replayed to the same results, what differs is not; memory goes back
// to the driver; every call of the extension may fail. Functions of this executable stand before the
// driver's.
#include <CL/cl.h>
#include <CL/cl_ext.h>
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <memory>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "bitnet/core/log.hpp"
#include "bitnet/core/profiler.hpp"
#include "bitnet/testing/testing.hpp"
#include "queue_fixture.hpp"

namespace bitnet::gpu {
namespace {

constexpr cl_int kFault = -5;  // CL_OUT_OF_RESOURCES

/// What the extension is made to do, and how often each of its functions was called.
struct Extension {
  bool reported = true;
  const char* missing = "";
  const char* failing = "";  // a function, until it is another one
  cl_int fault = kFault;
  int created = 0, released = 0, enqueued = 0, launches = 0;
  cl_event gate = nullptr;  // of the next write
  bool fails(const char* function) const { return std::strcmp(failing, function) == 0; }
};
Extension extension;

CommandBufferApi real;

cl_command_buffer_khr CL_API_CALL create(cl_uint n, const cl_command_queue* queues,
                                         const cl_command_buffer_properties_khr* properties, cl_int* status) {
  ++extension.created;
  if (!extension.fails("clCreateCommandBufferKHR")) return real.create(n, queues, properties, status);
  *status = extension.fault;
  return nullptr;
}
cl_int CL_API_CALL record(cl_command_buffer_khr buffer, cl_command_queue queue,
                          const cl_ndrange_kernel_command_properties_khr* properties, cl_kernel kernel,
                          cl_uint dimensions, const size_t* offset, const size_t* global, const size_t* local,
                          cl_uint n, const cl_sync_point_khr* points, cl_sync_point_khr* point,
                          cl_mutable_command_khr* handle) {
  if (extension.fails("clCommandNDRangeKernelKHR")) return extension.fault;
  return real.record(buffer, queue, properties, kernel, dimensions, offset, global, local, n, points, point,
                     handle);
}
cl_int CL_API_CALL finalize(cl_command_buffer_khr buffer) {
  return extension.fails("clFinalizeCommandBufferKHR") ? extension.fault : real.finalize(buffer);
}
cl_int CL_API_CALL enqueue(cl_uint n_queues, cl_command_queue* queues, cl_command_buffer_khr buffer,
                           cl_uint n, const cl_event* needs, cl_event* event) {
  ++extension.enqueued;
  if (extension.fails("clEnqueueCommandBufferKHR")) return extension.fault;
  // PoCL notes that a buffer is done a moment after its event.
  cl_int status = CL_INVALID_OPERATION;
  for (int i = 0; i < 10'000 && status == CL_INVALID_OPERATION; ++i) {
    if (i > 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    status = real.enqueue(n_queues, queues, buffer, n, needs, event);
  }
  return status;
}
cl_int CL_API_CALL release(cl_command_buffer_khr buffer) {
  ++extension.released;
  const cl_int status = real.release(buffer);
  return extension.fails("clReleaseCommandBufferKHR") ? extension.fault : status;
}

/// The test's function in place of the driver's.
template <class Function>
void* stand_before(const char* name, void* drivers, Function& kept, Function own) {
  if (std::strcmp(extension.missing, name) == 0) return nullptr;
  kept = reinterpret_cast<Function>(drivers);
  return drivers == nullptr ? nullptr : reinterpret_cast<void*>(own);
}

void* instead_of(const char* name, void* drivers) {
  const std::string_view n = name;
  if (n == "clCreateCommandBufferKHR") return stand_before(name, drivers, real.create, &create);
  if (n == "clCommandNDRangeKernelKHR") return stand_before(name, drivers, real.record, &record);
  if (n == "clFinalizeCommandBufferKHR") return stand_before(name, drivers, real.finalize, &finalize);
  if (n == "clEnqueueCommandBufferKHR") return stand_before(name, drivers, real.enqueue, &enqueue);
  if (n == "clReleaseCommandBufferKHR") return stand_before(name, drivers, real.release, &release);
  return drivers;
}

constexpr const char* kFunctions[] = {"clCreateCommandBufferKHR", "clCommandNDRangeKernelKHR",
                                      "clFinalizeCommandBufferKHR", "clEnqueueCommandBufferKHR",
                                      "clReleaseCommandBufferKHR"};

class RecordedLaunches : public QueueFixture {
 protected:
  void SetUp() override {
    extension = {};
    open(true);
    if (queue_ == nullptr) return;
    if (!queue_->record(device_.platform)) GTEST_SKIP() << "this device has no cl_khr_command_buffer";
    pool_->on_release([this](std::span<const cl_mem> buffers) { queue_->forget(buffers); });
  }
  void TearDown() override {
    if (pool_ != nullptr) pool_->on_release(nullptr);
    if (queue_ != nullptr) queue_->stop_recording();
    EXPECT_EQ(extension.created - (extension.fails("clCreateCommandBufferKHR") ? 1 : 0), extension.released);
  }

  /// Adds two to `from` in two launches.
  void step(const PooledMem& from, const PooledMem& between, const PooledMem& to) {
    add_one(from, between);
    add_one(between, to);
  }
  std::uint64_t replays() const { return queue_->statistics().replays; }
};

TEST_F(RecordedLaunches, ListsThatComeAgainAreReplayed) {
  const PooledMem a = buffer(10), b = buffer(), c = buffer();
  for (cl_int i = 0; i < 5; ++i) {
    upload(a, 100 * i);
    step(a, b, c);
    EXPECT_EQ(content(c), numbers(100 * i + 2));
  }
  const DeviceStatistics s = queue_->statistics();
  EXPECT_EQ(s.launches, 10u);
  EXPECT_EQ(s.replays, 4u);  // all but the first
  EXPECT_EQ(s.replayed_launches, 8u);
  EXPECT_EQ(extension.created, 1);
  EXPECT_EQ(extension.enqueued, 4);
  EXPECT_EQ(extension.launches, 2);  // of the first, one by one
}

TEST_F(RecordedLaunches, LaunchesOfOneKernelKeepTheirOwnArguments) {
  std::vector<PooledMem> chain;
  chain.push_back(buffer(10));
  for (int i = 0; i < 40; ++i) chain.push_back(buffer());
  const PooledMem other = buffer(1000), out = buffer();
  for (int i = 0; i < 4; ++i) {
    upload(chain[0], i);
    for (std::size_t j = 0; j + 1 < chain.size(); ++j) add_one(chain[j], chain[j + 1]);
    queue_->flush();
    add_one(other, out);  // by itself, and so not recorded
    EXPECT_EQ(content(chain.back()), numbers(i + 40));
    EXPECT_EQ(content(out), numbers(1001));
  }
  EXPECT_EQ(replays(), 3u);
}

TEST_F(RecordedLaunches, WhatDiffersInAnArgumentOrInGroupsIsNot) {
  const PooledMem a = buffer(10), b = buffer(), c = buffer(), d = buffer(0);
  for (int i = 0; i < 3; ++i) {
    step(a, b, c);
    EXPECT_EQ(content(c), numbers(12));
  }
  EXPECT_EQ(replays(), 2u);
  step(a, b, d);
  EXPECT_EQ(content(d), numbers(12));
  step(d, b, c);
  EXPECT_EQ(content(c), numbers(14));
  queue_->launch(kernel_, {0, 1}, a.get(), b.get());  // refused: no work-groups
  queue_->launch(kernel_, {1, 1}, b.get(), c.get());
  EXPECT_THROW(queue_->flush(), Error);
  step(a, b, c);
  add_one(c, d);  // a list that begins as the recorded one
  EXPECT_EQ(content(d), numbers(13));
  EXPECT_EQ(replays(), 2u);
}

TEST_F(RecordedLaunches, ARecordingThatStillRunsIsNotReplayed) {
  const PooledMem a = buffer(10), b = buffer(), c = buffer();
  for (int i = 0; i < 2; ++i) {
    step(a, b, c);
    queue_->finish();
  }
  ASSERT_EQ(replays(), 1u);
  cl_int status = CL_SUCCESS;
  const ClEvent gate(clCreateUserEvent(context_.get(), &status));
  ASSERT_EQ(status, CL_SUCCESS);
  extension.gate = gate.get();
  const std::vector<cl_int> later = numbers(500);
  const ClEvent uploaded = queue_->upload_later(a.get(), 0, std::as_bytes(std::span(later)));
  extension.launches = 0;
  step(a, b, c);
  queue_->flush();
  EXPECT_EQ(replays(), 2u);  // waits for the upload
  step(a, b, c);
  queue_->flush();
  EXPECT_EQ(replays(), 2u);
  EXPECT_EQ(extension.launches, 2);
  check(clSetUserEventStatus(gate.get(), CL_COMPLETE), "clSetUserEventStatus");
  EXPECT_EQ(content(c), numbers(502));
  step(a, b, c);
  queue_->finish();
  EXPECT_EQ(replays(), 3u);
  EXPECT_EQ(content(c), numbers(502));
}

TEST_F(RecordedLaunches, AnUploadIntoWhatWaitsComesAfterIt) {
  const PooledMem a = buffer(10), b = buffer(), c = buffer(), other = buffer();
  step(a, b, c);
  upload(other, 7);
  EXPECT_EQ(extension.launches, 0);  // they may go on waiting
  upload(a, 100);
  EXPECT_EQ(extension.launches, 2);
  step(a, other, b);
  EXPECT_EQ(content(c), numbers(12));
  EXPECT_EQ(content(b), numbers(102));
}

TEST_F(RecordedLaunches, ListsOfAnyLengthAreIssued) {
  const PooledMem a = buffer(0), b = buffer();
  for (std::size_t i = 0; i < LaunchRecorder::kMostWaiting; ++i)
    add_one(i % 2 == 0 ? a : b, i % 2 == 0 ? b : a);
  EXPECT_EQ(extension.launches, static_cast<int>(LaunchRecorder::kMostWaiting));
  add_one(a, b);
  EXPECT_EQ(content(b), numbers(static_cast<cl_int>(LaunchRecorder::kMostWaiting) + 1));
}

TEST_F(RecordedLaunches, TheOneNotUsedForLongestGoes) {
  const PooledMem a = buffer(10);
  std::vector<PooledMem> outs;
  for (std::size_t i = 0; i <= LaunchRecorder::kMostRecordings; ++i) outs.push_back(buffer());
  for (const PooledMem& out : outs)
    for (int i = 0; i < 2; ++i) {
      step(a, out, out);
      EXPECT_EQ(content(out), numbers(12));
    }
  EXPECT_EQ(extension.created, static_cast<int>(outs.size()));
  EXPECT_EQ(extension.released, 1);
  step(a, outs[1], outs[1]);
  EXPECT_EQ(content(outs[1]), numbers(12));
  EXPECT_EQ(extension.created, static_cast<int>(outs.size()));
  step(a, outs[0], outs[0]);
  EXPECT_EQ(content(outs[0]), numbers(12));
  EXPECT_EQ(extension.created, static_cast<int>(outs.size()) + 1);
}

/// Of a buffer, by whichever thread of the driver lets go of it last.
struct Destroyed {
  explicit Destroyed(cl_mem mem) {
    check(clSetMemObjectDestructorCallback(
              mem, [](cl_mem, void* self) { static_cast<Destroyed*>(self)->yes = true; }, this),
          "clSetMemObjectDestructorCallback");
  }
  bool comes() const {
    for (int i = 0; i < 10'000 && !yes; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return yes;
  }
  std::atomic<bool> yes = false;
};

TEST_F(RecordedLaunches, ABufferThatIsUsedAgainHasItsNewContent) {
  const PooledMem a = buffer(10), c = buffer();
  auto b = std::make_unique<PooledMem>(buffer());
  const cl_mem was = b->get();
  for (int i = 0; i < 2; ++i) {
    step(a, *b, c);
    queue_->finish();
  }
  step(a, *b, c);  // waits
  b.reset();
  const PooledMem again = buffer(70);
  ASSERT_EQ(again.get(), was);
  EXPECT_EQ(content(c), numbers(12));
  EXPECT_EQ(content(again), numbers(70));
  step(a, again, c);
  EXPECT_EQ(content(again), numbers(11));
  EXPECT_EQ(replays(), 3u);
}

TEST_F(RecordedLaunches, MemoryThatGoesBackToTheDriverIsNotKept) {
  const PooledMem a = buffer(10), c = buffer();
  auto b = std::make_unique<PooledMem>(buffer());
  const Destroyed destroyed(b->get());
  for (int i = 0; i < 2; ++i) {
    step(a, *b, c);
    queue_->finish();
  }
  ASSERT_EQ(replays(), 1u);
  b.reset();
  EXPECT_FALSE(destroyed.yes);  // the pool has it
  pool_->trim();
  EXPECT_EQ(extension.released, 1);
  EXPECT_TRUE(destroyed.comes());
  EXPECT_EQ(pool_->stats().held, pool_->stats().used);
}

TEST_F(RecordedLaunches, MemoryOfWhatWaitsStaysUntilThatIsIssued) {
  const PooledMem a = buffer(10), c = buffer();
  auto b = std::make_unique<PooledMem>(buffer());
  const Destroyed destroyed(b->get());
  step(a, *b, c);
  b.reset();
  pool_->trim();
  EXPECT_FALSE(destroyed.yes);
  EXPECT_EQ(content(c), numbers(12));
  step(a, a, c);
  queue_->finish();
  EXPECT_TRUE(destroyed.comes());
}

TEST_F(RecordedLaunches, EachCallMayFail) {
  const PooledMem a = buffer(10), b = buffer(), c = buffer();
  for (const char* function : kFunctions) {
    SCOPED_TRACE(function);
    queue_->stop_recording();
    extension = {};
    ASSERT_TRUE(queue_->record(device_.platform));
    extension.failing = function;
    int lines = 0;
    set_log_sink([&lines](LogLevel, std::string_view text) {
      lines += text.find("not recorded any more") != std::string_view::npos ? 1 : 0;
    });
    const std::uint64_t before = replays();
    const bool is_enqueue = extension.fails("clEnqueueCommandBufferKHR");
    const bool is_release = extension.fails("clReleaseCommandBufferKHR");
    int errors = 0;
    for (int i = 0; i < 5; ++i) {
      upload(a, 10 * i);
      step(a, b, c);
      try {
        EXPECT_EQ(content(c), numbers(10 * i + 2));
      } catch (const Error& e) {
        ++errors;
        EXPECT_EQ(e.code(), ErrorCode::kDevice);
        EXPECT_THAT(e.what(), ::testing::HasSubstr("clEnqueueCommandBufferKHR failed with CL_OUT_OF"));
      }
    }
    set_log_sink({});
    EXPECT_EQ(errors, is_enqueue ? 1 : 0);
    EXPECT_EQ(lines, is_release ? 0 : 1);
    EXPECT_EQ(extension.created, 1);
    EXPECT_EQ(replays() - before, is_release ? 4u : 0u);
  }
}

TEST_F(RecordedLaunches, ADriverThatSaysItStillRunsIsBelieved) {
  const PooledMem a = buffer(10), b = buffer(), c = buffer();
  extension.failing = "clEnqueueCommandBufferKHR";
  extension.fault = CL_INVALID_OPERATION;
  for (int i = 0; i < 3; ++i) {
    step(a, b, c);
    EXPECT_EQ(content(c), numbers(12));
  }
  EXPECT_EQ(replays(), 0u);
  extension.failing = "";
  step(a, b, c);
  EXPECT_EQ(content(c), numbers(12));
  EXPECT_EQ(replays(), 1u);
  EXPECT_EQ(extension.created, 1);
}

TEST_F(RecordedLaunches, ALaunchThatFailsTakesTheRestOfItsListAlong) {
  const PooledMem a = buffer(10), b = buffer(), c = buffer();
  const std::uint64_t failures = queue_->failures();
  queue_->launch(kernel_, {0, 1}, a.get(), b.get());
  add_one(b, c);
  EXPECT_THROW(queue_->finish(), Error);
  EXPECT_GT(queue_->failures(), failures);
  step(a, b, c);
  EXPECT_EQ(content(c), numbers(12));
}

TEST_F(RecordedLaunches, WithAProfilerEachLaunchIsTimed) {
  const PooledMem a = buffer(10), b = buffer(), c = buffer();
  const auto twice = [&] {
    for (int i = 0; i < 2; ++i) {
      step(a, b, c);
      EXPECT_EQ(content(c), numbers(12));
    }
  };
  twice();
  EXPECT_EQ(replays(), 1u);
  step(a, b, c);  // waits until the profiler joins
  Profiler profiler;
  queue_->set_profiler(&profiler, true);
  twice();
  queue_->set_profiler(nullptr, false);
  EXPECT_EQ(extension.released, 1);  // it was of the queue without times
  twice();
  const DeviceStatistics s = queue_->statistics();
  ASSERT_EQ(s.kernels.size(), 1u);
  EXPECT_EQ(s.kernels[0].launches, 4u);
  EXPECT_GT(s.replays, 2u);
}

TEST_F(RecordedLaunches, NotWhereTheDriverLacksAnything) {
  queue_->stop_recording();
  for (const char* function : kFunctions) {
    SCOPED_TRACE(function);
    extension.missing = function;
    EXPECT_FALSE(queue_->record(device_.platform));
  }
  extension.missing = "";
  extension.reported = false;
  EXPECT_FALSE(queue_->record(device_.platform));
  const PooledMem a = buffer(10), b = buffer(), c = buffer();
  for (int i = 0; i < 3; ++i) {
    step(a, b, c);
    EXPECT_EQ(content(c), numbers(12));
  }
  EXPECT_EQ(replays(), 0u);
  extension.reported = true;
  EXPECT_TRUE(queue_->record(device_.platform));
}

}  // namespace
}  // namespace bitnet::gpu

#define BITNET_CL_STANDS_BEFORE extern "C" __attribute__((visibility("default")))

BITNET_CL_STANDS_BEFORE void* CL_API_CALL clGetExtensionFunctionAddressForPlatform(cl_platform_id platform,
                                                                                   const char* name) {
  static const auto real = reinterpret_cast<decltype(&clGetExtensionFunctionAddressForPlatform)>(
      dlsym(RTLD_NEXT, "clGetExtensionFunctionAddressForPlatform"));
  return bitnet::gpu::instead_of(name, real(platform, name));
}

BITNET_CL_STANDS_BEFORE cl_int CL_API_CALL clGetDeviceInfo(cl_device_id device, cl_device_info what,
                                                           size_t room, void* to, size_t* bytes) {
  static const auto real = reinterpret_cast<decltype(&clGetDeviceInfo)>(dlsym(RTLD_NEXT, "clGetDeviceInfo"));
  if (what != CL_DEVICE_EXTENSIONS || bitnet::gpu::extension.reported)
    return real(device, what, room, to, bytes);
  constexpr const char* kOthers = "cl_khr_command_buffer_of_another_kind cl_khr_fp64";
  if (bytes != nullptr) *bytes = std::strlen(kOthers) + 1;
  if (to != nullptr) std::memcpy(to, kOthers, std::min(room, std::strlen(kOthers) + 1));
  return CL_SUCCESS;
}

BITNET_CL_STANDS_BEFORE cl_int CL_API_CALL clEnqueueNDRangeKernel(cl_command_queue queue, cl_kernel kernel,
                                                                  cl_uint dimensions, const size_t* offset,
                                                                  const size_t* global, const size_t* local,
                                                                  cl_uint n_events, const cl_event* events,
                                                                  cl_event* event) {
  static const auto real =
      reinterpret_cast<decltype(&clEnqueueNDRangeKernel)>(dlsym(RTLD_NEXT, "clEnqueueNDRangeKernel"));
  ++bitnet::gpu::extension.launches;
  if (global[0] == 0) return CL_INVALID_GLOBAL_WORK_SIZE;
  return real(queue, kernel, dimensions, offset, global, local, n_events, events, event);
}

BITNET_CL_STANDS_BEFORE cl_int CL_API_CALL clEnqueueWriteBuffer(cl_command_queue queue, cl_mem buffer,
                                                                cl_bool blocking, size_t offset, size_t size,
                                                                const void* from, cl_uint n_events,
                                                                const cl_event* events, cl_event* event) {
  static const auto real =
      reinterpret_cast<decltype(&clEnqueueWriteBuffer)>(dlsym(RTLD_NEXT, "clEnqueueWriteBuffer"));
  std::vector<cl_event> needs(events, events + n_events);
  if (bitnet::gpu::extension.gate != nullptr)
    needs.push_back(std::exchange(bitnet::gpu::extension.gate, nullptr));
  return real(queue, buffer, blocking, offset, size, from, static_cast<cl_uint>(needs.size()),
              needs.empty() ? nullptr : needs.data(), event);
}
