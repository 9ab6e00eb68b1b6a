// See launch.hpp.
#include "launch.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>

namespace bitnet::gpu {
namespace {

std::uint64_t mixed(std::uint64_t hash, std::uint64_t value) {
  return (std::rotl(hash, 23) ^ value) * 0x9e3779b97f4a7c15u;  // 2^64 over the golden ratio
}

}  // namespace

void Launch::set_arguments(cl_kernel kernel) const {
  for (std::size_t i = 0; i < count_; ++i) {
    const cl_int status = clSetKernelArg(kernel, static_cast<cl_uint>(i), bytes(i), &values_[i]);
    if (status != CL_SUCCESS) check_op(status, fmt::format("clSetKernelArg {} of {}", i, kernel_->name));
  }
}

bool Launch::operator==(const Launch& other) const noexcept {
  return kernel_ == other.kernel_ && groups_ == other.groups_ && count_ == other.count_ &&
         std::equal(values_.begin(), values_.begin() + count_, other.values_.begin()) &&
         std::equal(kinds_.begin(), kinds_.begin() + count_, other.kinds_.begin());
}

std::uint64_t Launch::hash(std::uint64_t before) const noexcept {
  std::uint64_t hash = mixed(before, std::bit_cast<std::uintptr_t>(kernel_));
  hash = mixed(mixed(hash, groups_[0]), groups_[1]);
  for (std::size_t i = 0; i < count_; ++i) hash = mixed(hash, values_[i]);
  return hash;
}

}  // namespace bitnet::gpu
