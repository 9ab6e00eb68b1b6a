// Every program that the backend can ask for, in both versions of OpenCL C that it names: the driver builds
// it with and without the macros that say "arithmetic with f16" and "sub-groups", and Clang, where it is
// installed, makes the same code of it for a device that has the two and for one that has neither. That the
// results are the CPU's is tests/conformance. Functions of this executable's own stand before the driver's
// and write down what it is asked for.
#include <CL/cl.h>
#include <dlfcn.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <regex>
#include <set>
#include <string>
#include <vector>

#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/testing/opencl.hpp"
#include "bitnet/testing/testing.hpp"
#include "kernel_set.hpp"
#include "kernels.hpp"

namespace {

struct Driver {
  std::string in_front;                                 // of every source
  std::map<cl_program, std::string> sources;            // without that
  std::set<std::pair<std::string, std::string>> built;  // sources and options
  std::set<std::string> kernels;                        // made, by name
};
Driver driver;

template <class Function>
Function* real(Function*, const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

}  // namespace

extern "C" {

__attribute__((visibility("default"))) cl_program CL_API_CALL clCreateProgramWithSource(
    cl_context context, cl_uint n, const char** texts, const size_t* lengths, cl_int* status) {
  static const auto own = real(&clCreateProgramWithSource, "clCreateProgramWithSource");
  std::string all;
  for (cl_uint i = 0; i < n; ++i) all += std::string(texts[i], lengths[i]);
  const char* both[] = {driver.in_front.c_str(), all.c_str()};
  const cl_program program = own(context, 2, both, nullptr, status);
  driver.sources[program] = std::move(all);
  return program;
}

__attribute__((visibility("default"))) cl_int CL_API_CALL
clBuildProgram(cl_program program, cl_uint n, const cl_device_id* devices, const char* options,
               void(CL_CALLBACK* notify)(cl_program, void*), void* data) {
  static const auto own = real(&clBuildProgram, "clBuildProgram");
  driver.built.emplace(driver.sources[program], options);
  return own(program, n, devices, options, notify, data);
}

__attribute__((visibility("default"))) cl_kernel CL_API_CALL clCreateKernel(cl_program program,
                                                                            const char* name,
                                                                            cl_int* status) {
  static const auto own = real(&clCreateKernel, "clCreateKernel");
  driver.kernels.insert(name);
  return own(program, name, status);
}

}  // extern "C"

namespace bitnet::gpu {
namespace {

constexpr const char* kStandards[] = {"CL1.2", "CL3.0"};

// The sources that have kernels; common.cl and kv_cache.cl stand in front of others.
constexpr std::string_view kSources[] = {kernels::attention,
                                         kernels::dense_matmul,
                                         kernels::int8_matmul,
                                         kernels::kv_store,
                                         kernels::normalize_quantize,
                                         kernels::peaks,
                                         kernels::read_bandwidth,
                                         kernels::rows,
                                         kernels::ternary_groups,
                                         kernels::ternary_matmul,
                                         kernels::top};

std::set<std::string> kernels_in(std::string_view source) {
  static const std::regex kKernel(R"((__kernel|_KERNEL)[^\n]*\n?void (\w+)\()");
  std::set<std::string> names;
  const std::string text(source);
  for (std::sregex_iterator i(text.begin(), text.end(), kKernel), end; i != end; ++i) names.insert((*i)[2]);
  return names;
}

/// Everything that a KernelSet has to give, and what measures devices.
void ask_for_all(KernelSet& set, ProgramCache& programs) {
  static const std::set<std::string> row_ops = kernels_in(kernels::rows);
  for (const std::string& name : row_ops) set.rows_op(name.c_str());
  for (const int gate : {0, 1, 2}) {
    for (const bool norm : {false, true}) {
      set.normalize(gate, norm, false);
      for (const ActivationForm form :
           {ActivationForm::kInt8, ActivationForm::kInt4Absmax, ActivationForm::kInt4Absmean})
        set.normalize(gate, norm, true, form);
    }
  }
  for (const std::int64_t rows : {1, 2, 3, 5, 9, 17, 300}) {
    set.ternary(rows);
    set.groups(rows);
    set.int8(rows);
    for (const DType type : {DType::kF32, DType::kF16, DType::kBF16}) set.dense(type, rows);
  }
  set.group_sums();
  // Pages and heads that are multiples of 16, and others: they are different code.
  for (const DType type : {DType::kF32, DType::kF16, DType::kI8})
    for (const AttentionShape& shape :
         {AttentionShape{type, 64, 16, 4}, {type, 10, 5, 1}, {type, 144, 48, 6}})
      set.attention_in_parts(shape);
  set.top(false);
  set.top(true);
  const std::string peaks = fmt::format("{}{}", kernels::common, kernels::peaks);
  static_cast<void>(programs.kernel(peaks, "", "integer_peak"));
  static_cast<void>(programs.kernel(peaks, "-DBN_PEAK_WG=1", "nothing"));
  static_cast<void>(programs.kernel(kernels::read_bandwidth, "", "read_bandwidth"));
}

class KernelPrograms : public ::testing::Test {
 protected:
  void SetUp() override {
    DeviceList list = list_devices();
    BITNET_REQUIRE_OPENCL_DEVICE(!list.devices.empty());
    device_ = list.devices[0];
    cl_int status = CL_SUCCESS;
    context_ = ClContext(clCreateContext(nullptr, 1, &device_.id, nullptr, nullptr, &status));
    check(status, "clCreateContext");
    driver = Driver();
  }

  void build_all(const char* standard, bool wide) {
    Options options;
    options.kernels.wide = wide;
    options.build_options = fmt::format("-w -cl-std={}", standard);  // of pragmas about what a device lacks
    options.tuning_file.emplace();
    const DeviceTraits traits = traits_of(device_, options.kernels);
    ProgramCache programs(context_.get(), device_.id, traits.build_flags(options.build_options));
    KernelSet set(programs, traits,
                  tuning_of(device_.own_name, device_.max_work_group,
                            wide ? KernelForm::kWide : KernelForm::kGroups, options),
                  device_.id);
    ask_for_all(set, programs);
    EXPECT_EQ(programs.compiled(), programs.programs());
  }

  ClDevice device_;
  ClContext context_;
};

// OpenCL C's own words for the two, which Clang and every driver define.
constexpr const char* kHasNeither =
    "#pragma OPENCL EXTENSION cl_khr_fp16 : disable\n"
    "#pragma OPENCL EXTENSION cl_khr_subgroups : disable\n"
    "#undef cl_khr_fp16\n#undef __opencl_c_fp16\n#undef cl_khr_subgroups\n#undef __opencl_c_subgroups\n";
constexpr const char* kHasBoth =
    "#undef cl_khr_fp16\n#undef __opencl_c_fp16\n#undef cl_khr_subgroups\n#undef __opencl_c_subgroups\n"
    "#define cl_khr_fp16 1\n#define __opencl_c_fp16 1\n#define cl_khr_subgroups 1\n"
    "#define __opencl_c_subgroups 1\n";

// Each version and each form with the extensions or without; that it makes no difference is the other test.
TEST_F(KernelPrograms, AreBuiltByTheDriverInEveryVersionWithAndWithoutExtensions) {
  bool has = false;
  for (const char* const standard : kStandards) {
    for (const bool wide : {false, true}) {
      SCOPED_TRACE(fmt::format("{}, {}, {}", standard, wide ? "vectors" : "work-groups", has));
      driver.in_front = has ? kHasBoth : kHasNeither;
      ASSERT_NO_THROW(build_all(standard, wide));
      has = !has;
    }
    has = !has;
  }
  // A kernel that is added is asked for here, too.
  std::set<std::string> all;
  for (const std::string_view source : kSources) {
    const std::set<std::string> names = kernels_in(source);
    EXPECT_FALSE(names.empty()) << source.substr(0, 80);
    all.insert(names.begin(), names.end());
  }
  EXPECT_EQ(driver.kernels, all);
  for (const std::string_view source : {kernels::common, kernels::kv_cache})
    EXPECT_TRUE(kernels_in(source).empty());
}

#ifdef BITNET_CLANG

std::string output_of(const std::string& command) {
  std::string text;
  std::FILE* const pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return text;
  char part[4096];
  for (std::size_t n = 0; (n = std::fread(part, 1, sizeof part, pipe)) > 0;) text.append(part, n);
  if (pclose(pipe) != 0) return {};
  return text;
}

/// Clang for a device with everything that SPIR may have, but for the two where `has` is false.
class Compiler {
 public:
  Compiler(std::string standard, bool has, const std::filesystem::path& folder)
      : flags_(fmt::format("{0} -x cl -cl-std={1} --target=spir64-unknown-unknown -w -cl-no-stdinc "
                           "-cl-opt-disable -Xclang "
                           "-cl-ext={2}cl_khr_fp16,{2}cl_khr_subgroups,{2}__opencl_c_subgroups",
                           BITNET_CLANG, standard, has ? '+' : '-')),
        declared_(folder / fmt::format("{}{}.pch", standard, has ? '+' : '-')),
        source_(folder / "program.cl") {
    // Its own declarations lack vload_half16() without cl_khr_fp16, which the standard has in any case.
    std::string headers = output_of(fmt::format("{} -print-resource-dir", BITNET_CLANG));
    while (!headers.empty() && headers.back() == '\n') headers.pop_back();
    const std::filesystem::path all = declared_.string() + ".h";
    write_file(all, fmt::format("#include \"{0}/include/opencl-c-base.h\"\n"
                                "#include \"{0}/include/opencl-c.h\"\n",
                                headers));
    works_ = std::system(fmt::format("{} -fsyntax-only -Xclang -emit-pch -Xclang -o -Xclang '{}' '{}'",
                                     flags_, declared_.string(), all.string())
                             .c_str()) == 0;
  }
  bool works() const { return works_; }

  /// LLVM's code; empty where the source is wrong.
  std::string code_of(const std::string& source, const std::string& options) const {
    write_file(source_, source);
    return output_of(fmt::format("{} -include-pch '{}' {} -S -emit-llvm -o - '{}'", flags_,
                                 declared_.string(), options, source_.string()));
  }

 private:
  std::string flags_;
  std::filesystem::path declared_, source_;
  bool works_ = false;
};

/// What of a build's options is Clang's affair.
std::string definitions(const std::string& options) {
  static const std::regex kOther(R"(-cl-\S+)");
  return std::regex_replace(options, kOther, "");
}

TEST_F(KernelPrograms, AreTheSameCodeForDevicesWithAndWithoutF16ArithmeticAndSubGroups) {
  const testing::TempDir dir;
  for (const char* const standard : kStandards) {
    SCOPED_TRACE(standard);
    const Compiler with(standard, true, dir.path()), without(standard, false, dir.path());
    if (!with.works()) GTEST_SKIP() << "this Clang lacks the declarations of OpenCL C";
    ASSERT_TRUE(without.works());
    // It would notice; Clang has sub-groups from OpenCL C 2.0 on.
    std::vector<std::string> uses{
        "#ifdef cl_khr_fp16\n"
        "#pragma OPENCL EXTENSION cl_khr_fp16 : enable\n"
        "__kernel void uses(__global float* x) { half h = x[1]; x[0] = h * h; }\n"
        "#else\n"
        "__kernel void uses(__global float* x) { x[0] = x[1] * x[1]; }\n"
        "#endif\n"};
    if (standard != std::string("CL1.2"))
      uses.emplace_back(
          "__kernel void uses(__global float* x) {\n"
          "#ifdef cl_khr_subgroups\n"
          "  x[0] = sub_group_reduce_add(x[1]);\n"
          "#endif\n"
          "}\n");
    for (const std::string& source : uses) {
      const std::string one = with.code_of(source, ""), other = without.code_of(source, "");
      EXPECT_FALSE(one.empty() || other.empty()) << source;
      EXPECT_TRUE(one != other) << source;
    }
    for (const bool wide : {false, true}) {
      driver.built.clear();
      ASSERT_NO_THROW(build_all(standard, wide));
      EXPECT_GT(driver.built.size(), 50u);
      for (const auto& [source, options] : driver.built) {
        const std::string one = with.code_of(source, definitions(options));
        const std::string other = without.code_of(source, definitions(options));
        EXPECT_FALSE(other.empty()) << options;
        EXPECT_TRUE(one == other) << options;
      }
    }
  }
}

#endif

}  // namespace
}  // namespace bitnet::gpu
