// What a device says that it can do, and what kernels are told of it. See device_traits.hpp.
#include "device_traits.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>

#include "quirks.hpp"

namespace bitnet::gpu {
namespace {

constexpr std::size_t kLargestDefault = 128;  // of the work-groups in kernels/*.cl

bool divides_exactly(cl_device_id id) {
  cl_device_fp_config config = 0;
  check(clGetDeviceInfo(id, CL_DEVICE_SINGLE_FP_CONFIG, sizeof config, &config, nullptr), "clGetDeviceInfo");
  return (config & CL_FP_CORRECTLY_ROUNDED_DIVIDE_SQRT) != 0;
}

bool has(const ClDevice& device, std::string_view extension) {
  const auto& all = device.device.capabilities.features;
  return std::find(all.begin(), all.end(), extension) != all.end();
}

}  // namespace

DeviceTraits traits_of(const ClDevice& device, const KernelChoice& choice) {
  DeviceTraits t;
  // A CPU runs the work-items of a group in a loop: sharing by local memory and barriers costs it, vectors
  // gain.
  t.wide = choice.wide.value_or(device.device.kind == DeviceKind::kCpu);
  t.exact_divide = choice.exact_divide.value_or(divides_exactly(device.id));
  t.integer_dot = choice.integer_dot.value_or(has(device, "cl_khr_integer_dot_product"));
  if (t.integer_dot) t.c_standard = standard_with_dot_products(device.id);
  t.doubles = choice.doubles.value_or(has(device, "cl_khr_fp64"));
  t.zero_copy = choice.zero_copy.value_or(device.device.capabilities.shares_host_memory);
  // Where memory is shared, what is uploaded in a step are a few integers.
  t.own_transfers = choice.transfer_queue.value_or(!t.zero_copy);
  t.split_attention = choice.split_attention;
  t.compute_units = std::max<std::int64_t>(device.device.capabilities.compute_units, 1);
  t.max_work_group = device.max_work_group;
  return t;
}

std::string DeviceTraits::build_flags(std::string_view more) const {
  std::string flags;
  if (more.find("-cl-std=") == std::string_view::npos) flags = fmt::format("-cl-std={} ", c_standard);
  flags += fmt::format("-DBN_WIDE={:d} -DBN_EXACT_DIVIDE={:d} -DBN_INTEGER_DOT={:d}", wide, exact_divide,
                       integer_dot);
  if (exact_divide) flags += " -cl-fp32-correctly-rounded-divide-sqrt";
  if (max_work_group < kLargestDefault) {
    const std::size_t n = std::max<std::size_t>(std::bit_floor(max_work_group), 16);
    flags += fmt::format(
        " -DBN_QUANT_WG={0} -DBN_OUT_WG={0} -DBN_ROWS_WG={0} -DBN_ATTENTION_WG={0} -DBN_STORE_WG=16 "
        "-DBN_DENSE_WG=16",
        n);
  }
  if (!more.empty()) flags += fmt::format(" {}", more);
  return flags;
}

}  // namespace bitnet::gpu
