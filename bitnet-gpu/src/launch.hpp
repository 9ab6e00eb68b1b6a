#pragma once
// A launch of a kernel as a value: the kernel, its arguments and how many work-groups. Who enqueues it is
// command_queue.hpp.
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cl_objects.hpp"

namespace bitnet::gpu {

/// A kernel with its own work-group size (reqd_work_group_size).
struct Kernel {
  ClKernel object;
  const char* name = "";  ///< of static storage
  std::array<std::size_t, 2> local{};
};

/// Owns none of what it names: kernel and buffers have to be there when it is enqueued. Not thread-safe.
class Launch {
 public:
  using Groups = std::array<std::size_t, 2>;
  static constexpr std::size_t kMostArguments = 28;

  /// Of nothing.
  Launch() = default;
  template <class... Args>
  Launch(const Kernel& kernel, Groups groups, const Args&... args)
      : kernel_(&kernel), groups_(groups), count_(sizeof...(Args)) {
    static_assert(sizeof...(Args) <= kMostArguments);
    std::size_t index = 0;
    (put(index++, args), ...);
  }

  /// In place of an argument of the same type.
  template <class T>
  void set(std::size_t index, const T& value) {
    put(index, value);
  }

  bool is_none() const noexcept { return kernel_ == nullptr; }
  const Kernel& kernel() const noexcept { return *kernel_; }
  Groups groups() const noexcept { return groups_; }
  std::size_t arguments() const noexcept { return count_; }
  std::size_t bytes(std::size_t index) const noexcept { return kinds_[index] & ~kBuffer; }
  /// The argument's buffer, or null where it is a number.
  cl_mem buffer(std::size_t index) const noexcept {
    cl_mem mem = nullptr;
    if ((kinds_[index] & kBuffer) != 0) std::memcpy(&mem, &values_[index], sizeof mem);
    return mem;
  }
  /// Work-items.
  Groups global() const noexcept { return {groups_[0] * kernel_->local[0], groups_[1] * kernel_->local[1]}; }
  /// Gives a kernel, `kernel()` or one that is like it, the arguments. Throws Error(kDevice).
  void set_arguments(cl_kernel kernel) const;
  /// Of the same kernel, with the same arguments and as many work-groups.
  bool operator==(const Launch& other) const noexcept;
  /// Of this behind what has the hash `before`.
  std::uint64_t hash(std::uint64_t before) const noexcept;
  bool uses(cl_mem mem) const noexcept {
    for (std::size_t i = 0; i < count_; ++i)
      if (buffer(i) == mem) return true;
    return false;
  }

 private:
  static constexpr std::uint8_t kBuffer = 0x80;

  template <class T>
  void put(std::size_t index, const T& value) {
    static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= sizeof(std::uint64_t));
    values_[index] = 0;
    std::memcpy(&values_[index], &value, sizeof value);
    kinds_[index] = sizeof value | (std::is_same_v<T, cl_mem> ? kBuffer : 0);
  }

  const Kernel* kernel_ = nullptr;
  Groups groups_{};
  std::size_t count_ = 0;
  // Of what is beyond count_ nothing is read: a launch is made and copied for every kernel of a step.
  std::array<std::uint64_t, kMostArguments> values_;
  std::array<std::uint8_t, kMostArguments> kinds_;  // bytes, and kBuffer
};

}  // namespace bitnet::gpu
