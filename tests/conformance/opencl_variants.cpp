// See opencl_variants.hpp. A function of the executable's own stands before the driver's, which gets sources
// with a text in front.
#include "opencl_variants.hpp"

#include <CL/cl.h>
#include <dlfcn.h>

#include <utility>
#include <vector>

namespace bitnet::conformance {
namespace {

struct InFront {
  std::string text;
  int sources = 0;
} in_front;

// Names of the extension's functions as the plain ones that every device has.
constexpr const char* kPlainDots =
    "-DBN_DOT_DECLARED=1 -Ddot_4x8packed_su_int=bn_dot4_plain_su -Ddot_4x8packed_ss_int=bn_dot4_plain_ss";

// What OpenCL C says where a device has arithmetic with f16 and sub-groups, and where it has neither. The
// kernels want neither: on a device with them they are the same programs (docs/guides/opencl-devices.md).
constexpr const char* kNoExtensions =
    "#pragma OPENCL EXTENSION cl_khr_fp16 : disable\n"
    "#pragma OPENCL EXTENSION cl_khr_subgroups : disable\n"
    "#undef cl_khr_fp16\n#undef __opencl_c_fp16\n#undef cl_khr_subgroups\n#undef __opencl_c_subgroups\n";
constexpr const char* kExtensions =
    "#ifndef cl_khr_fp16\n#define cl_khr_fp16 1\n#endif\n"
    "#ifndef cl_khr_subgroups\n#define cl_khr_subgroups 1\n#endif\n"
    "#ifndef __opencl_c_fp16\n#define __opencl_c_fp16 1\n#endif\n"
    "#ifndef __opencl_c_subgroups\n#define __opencl_c_subgroups 1\n#endif\n";

gpu::KernelChoice wide(bool yes) {
  gpu::KernelChoice choice;
  choice.wide = yes;
  return choice;
}
gpu::KernelChoice integer_divide() {
  gpu::KernelChoice choice;
  choice.exact_divide = false;
  return choice;
}
gpu::KernelChoice tiles_of_keys() {
  gpu::KernelChoice choice = wide(true);
  choice.split_attention = true;
  return choice;
}
gpu::KernelChoice tiles_in_groups() {
  gpu::KernelChoice choice = wide(false);
  choice.split_attention = true;
  return choice;
}
gpu::KernelChoice byte_dots() {
  gpu::KernelChoice choice = tiles_in_groups();
  choice.integer_dot = true;
  return choice;
}

gpu::KernelChoice recorded_beside_uploads() {
  gpu::KernelChoice choice;
  choice.record = true;
  choice.transfer_queue = true;
  return choice;
}

gpu::Options options(std::string build_options, const gpu::KernelChoice& kernels) {
  gpu::Options all;
  all.build_options = std::move(build_options);
  all.kernels = kernels;
  return all;
}

/// Nothing kept: what stands in front is part of no key. -w: compilers warn of pragmas about what they lack.
gpu::Options standard(const char* c_standard, const gpu::KernelChoice& kernels) {
  gpu::Options all = options(std::string("-w -cl-std=") + c_standard, kernels);
  all.program_folder.emplace();
  return all;
}

}  // namespace

// The last four: both versions of the language with both forms of the kernels, each version and each form
// once with the extensions and once without. That no program differs between the two is gpu.kernel_programs.
std::span<const Variant> opencl_variants() {
  static const Variant all[] = {
      {"as_the_device_says"},
      {"vectors_and_tiles_of_keys", Table::kFourth, options("", tiles_of_keys())},
      {"recorded_beside_uploads", Table::kFourth, options("", recorded_beside_uploads())},
      {"work_groups", Table::kFourth, options("", wide(false))},
      {"divisions_in_integers_and_32_bytes_a_time", Table::kFourth,
       options("-DBN_MOST_PAIRS=32", integer_divide())},
      {"byte_dots_and_tiles_of_keys_in_work_groups", Table::kFourth, options(kPlainDots, byte_dots())},
      {"no_pairs_of_bytes", Table::kFourth, options("-DBN_MOST_PAIRS=0", wide(true))},
      {"other_work_groups", Table::kFourth,
       options("-DBN_OUT_WG=16 -DBN_QUANT_WG=16 -DBN_ROWS_WG=32 -DBN_ATTENTION_WG=32 -DBN_STORE_WG=8 "
               "-DBN_GEMM_WORDS=3",
               wide(false))},
      {"OpenCL_C_12_vectors_without_extensions", Table::kWhole, standard("CL1.2", tiles_of_keys()),
       kNoExtensions},
      {"OpenCL_C_12_work_groups_with_extensions", Table::kWhole, standard("CL1.2", wide(false)), kExtensions},
      {"OpenCL_C_30_vectors_with_extensions", Table::kWhole, standard("CL3.0", wide(true)), kExtensions},
      {"OpenCL_C_30_work_groups_without_extensions", Table::kWhole, standard("CL3.0", tiles_in_groups()),
       kNoExtensions},
  };
  return all;
}

TextInFront::TextInFront(std::string text) { in_front = {std::move(text), 0}; }
TextInFront::~TextInFront() { in_front = {}; }
int TextInFront::sources() const { return in_front.sources; }

}  // namespace bitnet::conformance

extern "C" __attribute__((visibility("default"))) cl_program CL_API_CALL clCreateProgramWithSource(
    cl_context context, cl_uint n, const char** texts, const size_t* lengths, cl_int* status) {
  auto& front = bitnet::conformance::in_front;
  ++front.sources;
  std::vector<const char*> all{front.text.c_str()};
  std::vector<size_t> sizes{front.text.size()};
  for (cl_uint i = 0; i < n; ++i) {
    all.push_back(texts[i]);
    sizes.push_back(lengths != nullptr ? lengths[i] : 0);  // 0: to the end
  }
  const auto skip = front.text.empty() ? 1 : 0;
  static const auto driver =
      reinterpret_cast<decltype(&clCreateProgramWithSource)>(dlsym(RTLD_NEXT, "clCreateProgramWithSource"));
  return driver(context, static_cast<cl_uint>(all.size()) - static_cast<cl_uint>(skip), all.data() + skip,
                sizes.data() + skip, status);
}
