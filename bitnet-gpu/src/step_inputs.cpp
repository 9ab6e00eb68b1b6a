// See step_inputs.hpp.
#include "step_inputs.hpp"

#include <algorithm>

namespace bitnet::gpu {
namespace {

constexpr std::size_t kLeastValues = 256;  // of an array, so that it seldom grows

/// Whatever came of the upload: the host's values are not read any more.
void wait_for(ClEvent& event) {
  if (!event) return;
  const cl_event one = event.get();
  clWaitForEvents(1, &one);
  event = ClEvent();
}

}  // namespace

StepInputs::~StepInputs() {
  for (Array& a : arrays_) wait_for(a.uploaded);
}

bool StepInputs::holds(const Array& a, std::span<const std::int32_t> values) const {
  // After a failure nobody knows what was done of what had been enqueued.
  return a.filled && a.failures == queue_.failures() &&
         std::equal(values.begin(), values.end(), a.values.begin(), a.values.end());
}

cl_mem StepInputs::get(std::span<const std::int32_t> values) {
  if (settled_ != queue_.settled()) {
    settled_ = queue_.settled();
    taken_ = 0;
  }
  const auto end = arrays_.begin() + static_cast<std::ptrdiff_t>(std::min(taken_, kArrays));
  const auto found = std::find_if(arrays_.begin(), end, [&](const Array& a) { return holds(a, values); });
  if (found != end) return found->mem.get();
  Array& a = arrays_[taken_ % kArrays];
  // Nothing that reads the former values is still to be done where the queue has settled since.
  if (!holds(a, values)) fill(a, values, taken_ >= kArrays);
  ++taken_;
  return a.mem.get();
}

void StepInputs::fill(Array& a, std::span<const std::int32_t> values, bool in_use) {
  wait_for(a.uploaded);
  a.filled = false;
  a.values.assign(values.begin(), values.end());
  const std::size_t bytes = std::max(values.size(), kLeastValues) * sizeof(std::int32_t);
  in_op([&] {
    if (a.mem.bytes() < bytes) {
      a.mem = PooledMem(memory_, bytes + bytes / 2, "step inputs");
      in_use = a.mem.used_before();
    }
    a.uploaded =
        queue_.upload_later(a.mem.get(), 0, std::as_bytes(std::span<const std::int32_t>(a.values)), in_use);
  });
  a.failures = queue_.failures();
  a.filled = true;
}

}  // namespace bitnet::gpu
