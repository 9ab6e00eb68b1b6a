// Uploads on a queue of their own: what needs one waits for it, what does not goes on; a buffer that launches
// still read is written after them; an upload that fails is an error. Functions of this executable stand
// before the driver's and hold a write or a launch back until the test lets it go.
#include <CL/cl.h>
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "bitnet/core/profiler.hpp"
#include "bitnet/testing/testing.hpp"
#include "queue_fixture.hpp"
#include "step_inputs.hpp"
#include "weight_writer.hpp"

namespace bitnet::gpu {
namespace {

constexpr cl_int kFault = -5;  // CL_OUT_OF_RESOURCES

/// What the driver is made to do: a gate is one more event that the next such call waits for.
struct Driver {
  cl_event write_gate = nullptr, launch_gate = nullptr;
  std::vector<ClEvent> writes = {}, launches = {};  // that were enqueued since reset()
  std::vector<std::vector<cl_event>> needs = {};    // wait lists of those launches
  void reset() { *this = {}; }
};
Driver driver;

/// Keeps an event for the test, whether the caller wants one or not.
cl_int kept(cl_int status, cl_event made, cl_event* asked, std::vector<ClEvent>& all) {
  if (status != CL_SUCCESS) return status;
  all.emplace_back(made);
  if (asked != nullptr) {
    clRetainEvent(made);
    *asked = made;
  }
  return status;
}

std::vector<cl_event> with_gate(cl_uint n, const cl_event* events, cl_event& gate) {
  std::vector<cl_event> all(events, events + n);
  if (gate != nullptr) all.push_back(std::exchange(gate, nullptr));
  return all;
}

cl_int state_of(const ClEvent& event) { return gpu::state_of(event.get()); }

/// Whether it comes; a minute is long enough for anything that nothing holds.
bool comes(const ClEvent& event) {
  for (int i = 0; i < 60'000 && state_of(event) > CL_COMPLETE; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  return state_of(event) == CL_COMPLETE;
}

class TransferQueue : public QueueFixture {
 protected:
  void SetUp() override {
    driver.reset();
    open(true);
  }
  void TearDown() override {
    if (gate_) open_gate();
    if (queue_ != nullptr) queue_->finish();
    driver.reset();
  }

  /// Not left for a flush.
  void add_one(const PooledMem& from, const PooledMem& to) {
    QueueFixture::add_one(from, to);
    queue_->flush();
  }
  /// For the next write or launch.
  cl_event new_gate() {
    cl_int status = CL_SUCCESS;
    gate_ = ClEvent(clCreateUserEvent(context_.get(), &status));
    check(status, "clCreateUserEvent");
    return gate_.get();
  }
  void open_gate(cl_int status = CL_COMPLETE) {
    check(clSetUserEventStatus(gate_.get(), status), "clSetUserEventStatus");
    gate_ = ClEvent();
  }

  ClEvent gate_;
};

TEST_F(TransferQueue, WhatDoesNotNeedAnUploadGoesOn) {
  const PooledMem a = buffer(10), b = buffer(20), out_a = buffer(), out_b = buffer();
  queue_->finish();
  driver.reset();
  driver.write_gate = new_gate();
  const std::vector<cl_int> later = numbers(500);
  const ClEvent uploaded = queue_->upload_later(b.get(), 0, std::as_bytes(std::span(later)));
  add_one(a, out_a);
  ASSERT_EQ(driver.launches.size(), 1u);
  EXPECT_TRUE(driver.needs[0].empty());
  EXPECT_TRUE(comes(driver.launches[0]));
  EXPECT_GT(state_of(uploaded), CL_COMPLETE);  // the gate is shut

  add_one(b, out_b);
  add_one(b, out_a);
  ASSERT_EQ(driver.launches.size(), 3u);
  EXPECT_EQ(driver.needs[1], std::vector<cl_event>{uploaded.get()});
  EXPECT_TRUE(driver.needs[2].empty());  // behind the one that waits
  for (const std::size_t i : {1u, 2u}) EXPECT_GT(state_of(driver.launches[i]), CL_COMPLETE);
  open_gate();
  EXPECT_EQ(content(out_b), numbers(501));
  EXPECT_EQ(content(out_a), numbers(501));
  EXPECT_EQ(state_of(uploaded), CL_COMPLETE);
}

TEST_F(TransferQueue, AnUploadIntoWhatALaunchReadsComesAfterIt) {
  const PooledMem a = buffer(10), out = buffer(), again = buffer();
  queue_->finish();
  driver.reset();
  driver.launch_gate = new_gate();
  add_one(a, out);
  const std::vector<cl_int> later = numbers(500);
  const ClEvent uploaded = queue_->upload_later(a.get(), 0, std::as_bytes(std::span(later)));
  add_one(a, again);
  EXPECT_GT(state_of(uploaded), CL_COMPLETE);
  open_gate();
  EXPECT_EQ(content(out), numbers(11));
  EXPECT_EQ(content(again), numbers(501));
}

TEST_F(TransferQueue, ArraysOfAStepAreFilledAnewAfterWhatReadsThem) {
  StepInputs inputs(*queue_, pool_);
  constexpr std::size_t kSteps = 2 * StepInputs::kArrays + 1;
  std::vector<PooledMem> outs;
  for (std::size_t i = 0; i < kSteps; ++i) outs.push_back(buffer());
  queue_->finish();
  driver.reset();
  driver.launch_gate = new_gate();
  for (std::size_t i = 0; i < kSteps; ++i) {
    const std::vector<cl_int> values = numbers(static_cast<cl_int>(100 * i));
    if (i == 2 * StepInputs::kArrays) open_gate();  // values have to travel before others take their place
    const cl_mem array = inputs.get(values);
    queue_->launch(kernel_, {1, 1}, array, outs[i].get());
    queue_->flush();
  }
  for (std::size_t i = 0; i < kSteps; ++i)
    EXPECT_EQ(content(outs[i]), numbers(static_cast<cl_int>(100 * i + 1))) << i;
}

TEST_F(TransferQueue, AStepsFirstArraysDoNotWaitForTheStepBefore) {
  StepInputs inputs(*queue_, pool_);
  const PooledMem out = buffer(), other = buffer(7), idle = buffer();
  queue_->launch(kernel_, {1, 1}, inputs.get(numbers(0)), out.get());
  EXPECT_EQ(content(out), numbers(1));  // the step has ended
  for (std::size_t i = 1; i < StepInputs::kArrays; ++i) inputs.get(numbers(static_cast<cl_int>(i)));
  queue_->finish();
  driver.reset();
  driver.launch_gate = new_gate();
  add_one(other, idle);  // something of the next step, which is held
  const cl_mem array = inputs.get(numbers(900));
  ASSERT_EQ(driver.writes.size(), 1u);
  EXPECT_TRUE(comes(driver.writes[0]));
  queue_->launch(kernel_, {1, 1}, array, out.get());
  open_gate();
  EXPECT_EQ(content(out), numbers(901));
}

TEST_F(TransferQueue, ANewBufferIsFilledAtOnceAndAUsedOneAfterItsUsers) {
  WeightWriter writer(
      std::make_shared<const ExecutionContext>(ExecutionContext::Options{.threads = 1, .isa = {}}), *queue_,
      pool_, false);
  const std::vector<cl_int> weights = numbers(300);
  const auto fill = [&](std::size_t begin, std::size_t end, std::byte* to) {
    std::copy_n(std::as_bytes(std::span(weights)).begin() + static_cast<std::ptrdiff_t>(begin * 4),
                (end - begin) * 4, to);
  };
  const PooledMem out = buffer(), again = buffer();
  auto a = std::make_unique<PooledMem>(buffer(10));
  queue_->finish();
  driver.launch_gate = new_gate();
  add_one(*a, out);
  const PooledMem copied = writer.copy(std::as_bytes(std::span(weights)));
  const PooledMem written = writer.write(kValues, 4, fill);  // returned, though the launch is held
  EXPECT_FALSE(copied.used_before());
  EXPECT_GT(state_of(driver.launches.back()), CL_COMPLETE);
  const cl_mem was = a->get();
  a.reset();
  std::thread later([this] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    open_gate();
  });
  const PooledMem reused = writer.write(kValues, 4, fill);
  later.join();
  ASSERT_EQ(reused.get(), was);
  EXPECT_TRUE(reused.used_before());
  EXPECT_EQ(content(out), numbers(11));  // of what had been in it
  for (const PooledMem* from : {&copied, &written, &reused}) {
    add_one(*from, again);
    EXPECT_EQ(content(again), numbers(301));
  }
}

TEST_F(TransferQueue, DownloadsWaitForUploads) {
  const PooledMem a = buffer(10);
  driver.write_gate = new_gate();
  const std::vector<cl_int> values = numbers(40);
  queue_->upload_later(a.get(), 0, std::as_bytes(std::span(values)));
  std::thread later([this] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    open_gate();
  });
  EXPECT_EQ(content(a), numbers(40));
  later.join();
}

TEST_F(TransferQueue, AnUploadThatFailsOnItsWayIsAnErrorOnce) {
  const PooledMem a = buffer(10), out = buffer();
  const std::vector<cl_int> values = numbers(40);
  for (const bool is_read : {true, false}) {
    SCOPED_TRACE(is_read);
    const std::uint64_t failures = queue_->failures();
    driver.write_gate = new_gate();
    const ClEvent uploaded = queue_->upload_later(a.get(), 0, std::as_bytes(std::span(values)));
    if (is_read) add_one(a, out);
    open_gate(kFault);
    BITNET_EXPECT_ERROR(queue_->finish(), ErrorCode::kDevice, "failed with");
    EXPECT_GT(queue_->failures(), failures);
    // The next attempt is another one.
    const ClEvent again = queue_->upload_later(a.get(), 0, std::as_bytes(std::span(values)));
    add_one(a, out);
    EXPECT_EQ(content(out), numbers(41));
  }
}

TEST_F(TransferQueue, AProfilerGetsTheTimesOfBothQueues) {
  const PooledMem a = buffer(10), out = buffer();
  const std::vector<cl_int> values = numbers(40);
  const ClEvent before = queue_->upload_later(a.get(), 0, std::as_bytes(std::span(values)));
  Profiler profiler;
  queue_->set_profiler(&profiler, true);
  add_one(a, out);
  EXPECT_EQ(content(out), numbers(41));
  const std::vector<cl_int> more = numbers(60);
  const ClEvent uploaded = queue_->upload_later(a.get(), 0, std::as_bytes(std::span(more)));
  add_one(a, out);
  EXPECT_EQ(content(out), numbers(61));
  queue_->set_profiler(nullptr, false);
  add_one(a, out);
  queue_->finish();
  const DeviceStatistics s = queue_->statistics();
  EXPECT_EQ(s.launches, 3u);
  EXPECT_EQ(s.timed_upload_bytes, kValues * sizeof(cl_int));
  EXPECT_EQ(s.timed_download_bytes, 2 * kValues * sizeof(cl_int));
  EXPECT_EQ(s.uploads, 3u);
}

}  // namespace
}  // namespace bitnet::gpu

#define BITNET_CL_STANDS_BEFORE extern "C" __attribute__((visibility("default")))

BITNET_CL_STANDS_BEFORE cl_int CL_API_CALL clEnqueueWriteBuffer(cl_command_queue queue, cl_mem buffer,
                                                                cl_bool blocking, size_t offset, size_t size,
                                                                const void* from, cl_uint n_events,
                                                                const cl_event* events, cl_event* event) {
  using namespace bitnet::gpu;
  static const auto real =
      reinterpret_cast<decltype(&clEnqueueWriteBuffer)>(dlsym(RTLD_NEXT, "clEnqueueWriteBuffer"));
  const std::vector<cl_event> needs = with_gate(n_events, events, driver.write_gate);
  cl_event made = nullptr;
  const cl_int status = real(queue, buffer, blocking, offset, size, from, static_cast<cl_uint>(needs.size()),
                             needs.empty() ? nullptr : needs.data(), &made);
  return kept(status, made, event, driver.writes);
}

BITNET_CL_STANDS_BEFORE cl_int CL_API_CALL clEnqueueNDRangeKernel(cl_command_queue queue, cl_kernel kernel,
                                                                  cl_uint dimensions, const size_t* offset,
                                                                  const size_t* global, const size_t* local,
                                                                  cl_uint n_events, const cl_event* events,
                                                                  cl_event* event) {
  using namespace bitnet::gpu;
  static const auto real =
      reinterpret_cast<decltype(&clEnqueueNDRangeKernel)>(dlsym(RTLD_NEXT, "clEnqueueNDRangeKernel"));
  driver.needs.emplace_back(events, events + n_events);
  const std::vector<cl_event> needs = with_gate(n_events, events, driver.launch_gate);
  cl_event made = nullptr;
  const cl_int status =
      real(queue, kernel, dimensions, offset, global, local, static_cast<cl_uint>(needs.size()),
           needs.empty() ? nullptr : needs.data(), &made);
  return kept(status, made, event, driver.launches);
}
