// Live buffers by handle, spare ones by size, and what both add up to.
#include "device_memory_pool.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <new>
#include <utility>

#include "bitnet/core/log.hpp"

namespace bitnet::gpu {
namespace {

constexpr std::size_t kUnit = 256;

/// Eight sizes to each doubling, so that buffers of about one size can take each other's place.
std::size_t size_of(std::size_t bytes) {
  const std::size_t step = std::max(kUnit, std::bit_ceil(bytes) / 16);
  return (bytes + step - 1) / step * step;
}

/// Weights stay as long as their model: nothing of another size takes their place.
bool stays(MemoryTag tag) { return std::string_view(tag) == "weights"; }

/// Of a buffer where there is room.
std::size_t roomy_size_of(std::size_t bytes, MemoryTag tag) {
  return stays(tag) ? (bytes + kUnit - 1) / kUnit * kUnit : size_of(bytes);
}

ClQueue make_queue(cl_context context) {
  cl_device_id device = nullptr;
  check(clGetContextInfo(context, CL_CONTEXT_DEVICES, sizeof device, &device, nullptr), "clGetContextInfo");
  cl_int status = CL_SUCCESS;
  ClQueue queue(clCreateCommandQueue(context, device, 0, &status));
  check(status, "clCreateCommandQueue");
  return queue;
}

}  // namespace

DeviceMemoryPool::DeviceMemoryPool(std::string name, cl_context context, std::size_t limit,
                                   std::size_t largest, bool shares_host_memory)
    : name_(std::move(name)),
      limit_(limit),
      largest_(std::min(limit, largest)),
      flags_(CL_MEM_READ_WRITE | (shares_host_memory ? CL_MEM_ALLOC_HOST_PTR : 0)) {
  check(clRetainContext(context), "clRetainContext");
  context_ = ClContext(context);
  queue_ = make_queue(context);
}

DeviceMemoryPool::~DeviceMemoryPool() {
  if (live_.empty()) return;
  log(LogLevel::kWarning, fmt::format("memory pool '{}' ends with {} bytes in use", name_, used_));
  for (const auto& [buffer, live] : live_) ClMem(static_cast<cl_mem>(buffer));  // releases it
}

std::size_t DeviceMemoryPool::release_spare() {
  std::size_t bytes = 0;
  std::vector<cl_mem> leaving;
  for (const auto& [size, buffer] : spare_) {
    bytes += size;
    leaving.push_back(buffer.get());
  }
  tell(leaving);
  spare_.clear();
  held_ -= bytes;
  return bytes;
}

void DeviceMemoryPool::on_release(std::function<void(std::span<const cl_mem>)> leaving) {
  const std::lock_guard lock(mutex_);
  leaving_ = std::move(leaving);
}

void DeviceMemoryPool::tell(std::span<const cl_mem> leaving) const {
  if (leaving_ && !leaving.empty()) leaving_(leaving);
}

/// Uses a buffer: from here on it has its memory, or the driver has said that there is none.
cl_int DeviceMemoryPool::commit(cl_mem buffer) {
  const cl_uchar zero = 0;
  cl_event filled = nullptr;
  cl_int status =
      clEnqueueFillBuffer(queue_.get(), buffer, &zero, sizeof zero, 0, sizeof zero, 0, nullptr, &filled);
  if (status != CL_SUCCESS) return status;
  const ClEvent event(filled);
  status = clWaitForEvents(1, &filled);
  if (status == CL_SUCCESS) return status;
  const cl_int of_the_fill = state_of(filled);
  return of_the_fill < 0 ? of_the_fill : status;
}

ClMem DeviceMemoryPool::create(std::size_t bytes, cl_int& status) {
  ClMem buffer(clCreateBuffer(context_.get(), flags_, bytes, nullptr, &status));
  if (status == CL_SUCCESS) status = commit(buffer.get());
  return status == CL_SUCCESS ? std::move(buffer) : ClMem();
}

ClMem DeviceMemoryPool::make(std::size_t bytes, cl_int& status) {
  if (held_ + bytes > limit_) release_spare();
  status = CL_SUCCESS;
  if (held_ + bytes > limit_) return {};
  ClMem buffer = create(bytes, status);
  if (means_memory(status) && release_spare() != 0) buffer = create(bytes, status);
  if (!buffer) return {};
  held_ += bytes;
  peak_held_ = std::max(peak_held_, held_);
  return buffer;
}

void* DeviceMemoryPool::take(std::size_t bytes, std::size_t alignment, MemoryTag tag, cl_int& status) {
  if (bytes == 0)
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("memory pool '{}': asked for 0 bytes, a block has at least 1", name_));
  if (!std::has_single_bit(alignment) || alignment > kMaxAlignment)
    throw Error(
        ErrorCode::kInvalidArgument,
        fmt::format("memory pool '{}': asked for an alignment of {}: expected a power of two up to {}", name_,
                    alignment, kMaxAlignment));
  status = CL_SUCCESS;
  if (bytes > largest_) {
    ++refusals_;
    return nullptr;
  }
  std::size_t size = std::min(roomy_size_of(bytes, tag), largest_);
  TagStats& use = tags_.try_emplace(tag).first->second;
  OfASize& of_a_size = sizes_[size_of(bytes)];
  ClMem buffer;
  const auto spare = spare_.lower_bound(bytes);
  const bool used_before = spare != spare_.end() && spare->first <= size;
  if (used_before) {
    size = spare->first;
    buffer = std::move(spare->second);
    spare_.erase(spare);
    ++reused_;
  } else {
    buffer = make(size, status);
    if (!buffer && size > bytes && (status == CL_SUCCESS || means_memory(status)))
      buffer = make(size = bytes, status);
  }
  if (!buffer) {
    if (status == CL_SUCCESS || means_memory(status)) ++refusals_;
    return nullptr;
  }
  try {
    live_.emplace(buffer.get(), Live{bytes, size, tag, used_before});
  } catch (const std::bad_alloc&) {
    held_ -= size;
    throw;
  }
  used_ += size;
  peak_used_ = std::max(peak_used_, used_);
  ++allocations_;
  asked_ += bytes;
  given_ += size;
  ++of_a_size.allocations;
  ++of_a_size.live;
  ++use.allocations;
  use.used += bytes;
  use.peak = std::max(use.peak, use.used);
  return buffer.release();
}

void* DeviceMemoryPool::allocate(std::size_t bytes, std::size_t alignment, MemoryTag tag) {
  const std::lock_guard lock(mutex_);
  cl_int status = CL_SUCCESS;
  void* buffer = with_context(name_, [&] { return take(bytes, alignment, tag, status); });
  if (buffer != nullptr) return buffer;
  if (status == CL_SUCCESS)
    throw Error(ErrorCode::kOutOfMemory, fmt::format("{}; at most {} fit", story(bytes, tag), left()));
  if (means_memory(status)) throw_refusal(bytes, tag, error_name(status));
  check(status, fmt::format("{}: a buffer of {} bytes", name_, bytes));
  return nullptr;
}

void* DeviceMemoryPool::try_allocate(std::size_t bytes, std::size_t alignment, MemoryTag tag) {
  const std::lock_guard lock(mutex_);
  cl_int status = CL_SUCCESS;
  void* buffer = with_context(name_, [&] { return take(bytes, alignment, tag, status); });
  if (buffer == nullptr && !means_memory(status))
    check(status, fmt::format("{}: a buffer of {} bytes", name_, bytes));
  return buffer;
}

void DeviceMemoryPool::refuse(std::size_t bytes, MemoryTag tag, std::string_view why) const {
  const std::lock_guard lock(mutex_);
  throw_refusal(bytes, tag, why);
}

void DeviceMemoryPool::throw_refusal(std::size_t bytes, MemoryTag tag, std::string_view why) const {
  throw Error(ErrorCode::kOutOfMemory,
              fmt::format("{}; the limit leaves {}, but the driver has not {} bytes (others may use the "
                          "device): {}",
                          story(bytes, tag), left(), bytes, why));
}

/// Bytes that the limit leaves for one buffer.
std::size_t DeviceMemoryPool::left() const { return std::min(largest_, limit_ - std::min(limit_, used_)); }

std::string DeviceMemoryPool::story(std::size_t bytes, MemoryTag tag) const {
  return fmt::format(
      "memory pool '{}': asked for {} bytes ({}), {} used ({} held), limit {} bytes, {} of one buffer", name_,
      bytes, tag, used_, held_, limit_, largest_);
}

void DeviceMemoryPool::deallocate(void* buffer) {
  if (buffer == nullptr) return;
  const std::lock_guard lock(mutex_);
  const auto found = live_.find(buffer);
  if (found == live_.end())
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("memory pool '{}': {} is no live buffer of it: free already, or another's", name_,
                            fmt::ptr(buffer)));
  const Live live = found->second;
  live_.erase(found);
  ClMem given(static_cast<cl_mem>(buffer));
  try {
    spare_.emplace(live.bytes, std::move(given));
  } catch (const std::bad_alloc&) {  // then the driver gets it now
    const cl_mem one = static_cast<cl_mem>(buffer);
    tell({&one, 1});
    held_ -= live.bytes;
  }
  used_ -= live.bytes;
  ++frees_;
  --sizes_.at(size_of(live.asked)).live;
  tags_.at(live.tag).used -= live.asked;
}

TrimReport DeviceMemoryPool::trim() {
  const std::lock_guard lock(mutex_);
  return {.offered = release_spare(), .returned = 0};
}

std::size_t DeviceMemoryPool::free_bytes() const {
  const std::lock_guard lock(mutex_);
  return limit_ - std::min(limit_, used_);
}

std::uint64_t DeviceMemoryPool::reused() const {
  const std::lock_guard lock(mutex_);
  return reused_;
}

bool DeviceMemoryPool::used_before(const void* buffer) const {
  const std::lock_guard lock(mutex_);
  const auto found = live_.find(const_cast<void*>(buffer));
  return found != live_.end() && found->second.used_before;
}

MemoryStats DeviceMemoryPool::stats() const {
  const std::lock_guard lock(mutex_);
  MemoryStats out;
  out.name = name_;
  out.used = used_;
  out.held = held_;
  out.limit = limit_;
  out.peak_used = peak_used_;
  out.peak_held = peak_held_;
  out.allocations = allocations_;
  out.frees = frees_;
  out.refusals = refusals_;
  out.large_asked = asked_;
  out.large_given = given_;
  out.free_bytes = held_ - used_;
  out.largest_free = spare_.empty() ? 0 : spare_.rbegin()->first;
  for (const auto& [bytes, use] : sizes_)
    if (use.allocations != 0) out.size_classes.push_back({bytes, use.allocations, use.live});
  return out;
}

std::vector<TagStats> DeviceMemoryPool::tags() const {
  const std::lock_guard lock(mutex_);
  std::vector<TagStats> out;
  for (const auto& [tag, use] : tags_) out.push_back({std::string(tag), use.allocations, use.used, use.peak});
  return out;
}

}  // namespace bitnet::gpu
