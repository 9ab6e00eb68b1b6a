// The search for work-group sizes on a device, and that a backend is built with what is found. This
// executable stands before the driver's reading and building, so that a candidate can be made wrong, or
// refused.
#include <CL/cl.h>
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "bitnet/core/execution.hpp"
#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/gpu/register.hpp"
#include "bitnet/gpu/tuning.hpp"
#include "bitnet/testing/opencl.hpp"
#include "bitnet/testing/testing.hpp"

namespace {

struct Driver {
  int reads = 0;
  int first_wrong = -1, last_wrong = -1;  // reads that come with a bit changed
  std::string refused;                    // in options of programs that do not build
  std::size_t large = 0;                  // bytes from which on a buffer counts as one
  int full = 0;                           // of the large ones, the first that there is no memory for
  int made = 0;                           // large ones
  std::set<cl_mem> live = {};             // of these
  std::size_t most_live = 0;
};
Driver driver;

template <class Function>
Function* real(Function*, const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

}  // namespace

extern "C" {

__attribute__((visibility("default"))) cl_int CL_API_CALL
clEnqueueReadBuffer(cl_command_queue queue, cl_mem buffer, cl_bool blocking, size_t offset, size_t size,
                    void* to, cl_uint n_events, const cl_event* events, cl_event* event) {
  static const auto own = real(&clEnqueueReadBuffer, "clEnqueueReadBuffer");
  const cl_int status = own(queue, buffer, blocking, offset, size, to, n_events, events, event);
  const int n = driver.reads++;
  if (n >= driver.first_wrong && n <= driver.last_wrong && size > 0)
    static_cast<unsigned char*>(to)[size - 1] ^= 1;
  return status;
}

__attribute__((visibility("default"))) cl_mem CL_API_CALL clCreateBuffer(cl_context context,
                                                                         cl_mem_flags flags, size_t bytes,
                                                                         void* host, cl_int* status) {
  static const auto own = real(&clCreateBuffer, "clCreateBuffer");
  if (driver.large > 0 && bytes >= driver.large) {
    if (driver.made++ < driver.full) {
      if (status != nullptr) *status = CL_MEM_OBJECT_ALLOCATION_FAILURE;
      return nullptr;
    }
  }
  const cl_mem buffer = own(context, flags, bytes, host, status);
  if (driver.large > 0 && bytes >= driver.large && buffer != nullptr) {
    driver.live.insert(buffer);
    driver.most_live = std::max(driver.most_live, driver.live.size());
  }
  return buffer;
}

__attribute__((visibility("default"))) cl_int CL_API_CALL clReleaseMemObject(cl_mem buffer) {
  static const auto own = real(&clReleaseMemObject, "clReleaseMemObject");
  cl_uint users = 0;  // launches, too
  clGetMemObjectInfo(buffer, CL_MEM_REFERENCE_COUNT, sizeof users, &users, nullptr);
  if (users <= 1) driver.live.erase(buffer);
  return own(buffer);
}

__attribute__((visibility("default"))) cl_int CL_API_CALL
clBuildProgram(cl_program program, cl_uint n, const cl_device_id* devices, const char* options,
               void(CL_CALLBACK* notify)(cl_program, void*), void* data) {
  if (!driver.refused.empty() && std::string(options).find(driver.refused) != std::string::npos)
    return CL_BUILD_PROGRAM_FAILURE;
  static const auto own = real(&clBuildProgram, "clBuildProgram");
  return own(program, n, devices, options, notify, data);
}

}  // extern "C"

namespace bitnet {
namespace {

using ::testing::HasSubstr;

struct Tune : ::testing::Test {
  void SetUp() override {
    driver = Driver();
    gpu::register_backends(registry);
    BITNET_REQUIRE_OPENCL_DEVICE(!registry.devices().empty());
    name = registry.devices()[0].name;
  }

  /// The kernels with vectors, whose candidates are few.
  gpu::TuneOptions small(gpu::TuneShape::Kind kind = gpu::TuneShape::Kind::kTernary) const {
    gpu::TuneOptions options;
    options.device.kernels.wide = true;
    options.device.program_folder = dir.path() / "programs";
    options.shapes = {{kind, 37, 50, 2}};
    options.rounds = 1;
    return options;
  }

  /// A backend with this table and a folder of its own, which has multiplied five rows; the build options of
  /// its programs.
  std::string programs_with(const std::filesystem::path& table, const std::filesystem::path& folder) {
    gpu::Options options;
    options.kernels.wide = true;
    options.tuning_file = table;
    options.program_folder = folder;
    BackendRegistry own;
    gpu::register_backends(own, options);
    backend = own.create(name, context);
    const std::vector<std::int8_t> trits(16 * 16, 1);
    const float scale = 1;
    LinearWeights w;
    w.out = w.in = w.rows_per_scale = 16;
    w.trits = trits;
    w.scales = {&scale, 1};
    const PreparedPtr prepared = backend->prepare(w);
    const BufferPtr x = backend->allocate(5 * 16 * 4), y = backend->allocate(5 * 16 * 4);
    const PreparedWeights* const one = prepared.get();
    const Matrix out{y.get(), 0, 5, 16};
    backend->linear({&one, 1}, {x.get(), 0, 5, 16}, {&out, 1});
    backend->sync();
    std::string all;
    for (const auto& entry : std::filesystem::directory_iterator(folder)) all += read_file(entry.path());
    return all;
  }

  std::shared_ptr<const ExecutionContext> context =
      std::make_shared<const ExecutionContext>(ExecutionContext::Options{.threads = 1, .isa = {}});
  testing::TempDir dir;
  BackendRegistry registry;
  std::string name;
  std::unique_ptr<Backend> backend;
};

TEST_F(Tune, WritesATableThatTheBackendIsBuiltWith) {
  std::size_t done = 0, total = 0;
  gpu::TuneOptions options = small();
  options.shapes.push_back({gpu::TuneShape::Kind::kInt8, 33, 20, 1});
  options.model = "some model";
  options.progress = [&](const gpu::TuneProgress& p) {
    EXPECT_GE(p.done, done);
    done = p.done;
    total = p.total;
  };
  const gpu::TuneResult result = gpu::tune(name, options, context);
  EXPECT_GT(total, 0u);
  EXPECT_EQ(done, total);
  ASSERT_EQ(result.programs.size(), 2u);
  EXPECT_EQ(result.programs[0].program, "ternary_matmul");
  EXPECT_EQ(result.programs[1].program, "int8_matmul");
  for (const gpu::TunedProgram& p : result.programs) {
    EXPECT_EQ(p.rows, "many");
    EXPECT_THAT(p.chosen, ::testing::StartsWith("BN_ROWS="));
    EXPECT_EQ(p.before, "BN_ROWS=8");
    EXPECT_GE(p.candidates, 4u);
    EXPECT_EQ(p.refused + p.unequal, 0u);
    EXPECT_GE(p.gain, 1.0);
  }
  EXPECT_THAT(result.yaml, HasSubstr("model: \"some model\""));
  const auto table = dir / "table.yaml";
  gpu::save_tuning(result, table);
  const std::string built = programs_with(table, dir / "found");
  EXPECT_THAT(built, HasSubstr("-D" + result.programs[0].chosen + " "));
  EXPECT_EQ(backend->description(), registry.devices()[0].description +
                                        "; sizes of work-groups: " + result.device + " of " + table.string());
}

// Sizes are build options, and those are part of a program's key.
TEST_F(Tune, ProgramsOfOtherSizesAreOtherPrograms) {
  const auto table = dir / "table.yaml", folder = dir / "kept";
  const auto write = [&](const char* device, int rows) {
    write_file(table, "format: bitnet-opencl-tuning-1\ndevices:\n  - device: \"" + std::string(device) +
                          "\"\n    wide: {ternary_matmul: {many: {BN_ROWS: " + std::to_string(rows) +
                          "}}}\n");
  };
  write("*", 5);
  EXPECT_THAT(programs_with(table, folder), HasSubstr("-DBN_ROWS=5 "));
  const std::uint64_t programs = backend->statistics().programs;
  EXPECT_EQ(backend->statistics().compiled_programs, programs);
  static_cast<void>(programs_with(table, folder));
  EXPECT_EQ(backend->statistics().programs, programs);
  EXPECT_EQ(backend->statistics().compiled_programs, 0u);
  write("*", 6);
  EXPECT_THAT(programs_with(table, folder), HasSubstr("-DBN_ROWS=6 "));
  EXPECT_EQ(backend->statistics().compiled_programs, 1u);  // that one alone
  write("no such device", 7);                              // no candidate, so in no table
  EXPECT_THAT(programs_with(table, folder), ::testing::Not(HasSubstr("-DBN_ROWS=7 ")));
  EXPECT_THAT(backend->description(), ::testing::Not(HasSubstr(table.string())));
}

TEST_F(Tune, WrongResultsCannotWin) {
  gpu::TuneOptions options = small();
  driver.first_wrong = driver.last_wrong = 2;  // of the first shape's results
  const gpu::TuneResult result = gpu::tune(name, options, context);
  ASSERT_EQ(result.programs.size(), 1u);
  EXPECT_EQ(result.programs[0].unequal, 1u);
  driver = Driver();
  driver.last_wrong = 1 << 20;
  BITNET_EXPECT_ERROR(gpu::tune(name, options, context), ErrorCode::kDevice,
                      name + ": ternary_matmul: none of ");
}

TEST_F(Tune, WhatTheDeviceRefusesIsPassedOver) {
  gpu::TuneOptions options = small(gpu::TuneShape::Kind::kInt8);
  driver.refused = "-DBN_ROWS=8 ";
  const gpu::TuneResult result = gpu::tune(name, options, context);
  ASSERT_EQ(result.programs.size(), 1u);
  EXPECT_EQ(result.programs[0].refused, 1u);
  EXPECT_NE(result.programs[0].chosen, "BN_ROWS=8");
  driver.refused = "-DBN_ROWS=";
  BITNET_EXPECT_ERROR(
      gpu::tune(name, options, context), ErrorCode::kDevice,
      "none of " + std::to_string(result.programs[0].candidates) + " candidates gives the right results: ");
}

TEST_F(Tune, ACandidateWithoutMemoryIsPassedOver) {
  gpu::TuneOptions options = small();
  options.shapes = {{gpu::TuneShape::Kind::kTernary, 1024, 4096, 1}};  // 1 MiB of codes
  driver.large = std::size_t{1} << 20;
  driver.full = 2;  // one that is refused may be asked for again
  const gpu::TuneResult result = gpu::tune(name, options, context);
  ASSERT_EQ(result.programs.size(), 1u);
  EXPECT_GE(result.programs[0].refused, 1u);
  EXPECT_LE(result.programs[0].refused, 2u);
  EXPECT_EQ(result.programs[0].unequal, 0u);
}

// Or a device would need memory for the weights of all candidates.
TEST_F(Tune, OneCandidateHasItsWeightsAtATime) {
  gpu::TuneOptions options = small();
  options.shapes = {
      {gpu::TuneShape::Kind::kTernary, 4096, 2048, 1},  // 2 MiB of codes, more than its rows take
      {gpu::TuneShape::Kind::kTernary, 4096, 4096, 1}};
  driver.large = std::size_t{2} << 20;
  const gpu::TuneResult result = gpu::tune(name, options, context);
  EXPECT_GT(result.programs.at(0).candidates, 3u);
  EXPECT_EQ(driver.most_live, 1u);
  EXPECT_TRUE(driver.live.empty());
}

// Of the f16 head of a large vocabulary some columns are enough.
TEST_F(Tune, LargeHeadsAreMeasuredInPart) {
  gpu::TuneOptions options = small(gpu::TuneShape::Kind::kDense);
  options.shapes = {{gpu::TuneShape::Kind::kDense, std::int64_t{1} << 24, 64, 1}};  // 2 GiB
  driver.large = std::size_t{64} << 20;
  const gpu::TuneResult result = gpu::tune(name, options, context);
  ASSERT_FALSE(result.programs.empty());
  EXPECT_EQ(result.programs[0].refused, 0u);
  EXPECT_EQ(driver.made, 0);
}

TEST_F(Tune, KernelsOfGroupsHaveTheirOwn) {
  gpu::TuneOptions options = small(gpu::TuneShape::Kind::kDense);
  options.device.kernels.wide = false;
  const gpu::TuneResult result = gpu::tune(name, options, context);
  ASSERT_EQ(result.programs.size(), 2u);
  EXPECT_EQ(result.programs[0].rows, "one");
  EXPECT_THAT(result.programs[1].chosen, ::testing::MatchesRegex("BN_DENSE_WG=[0-9]+ BN_ROWS=[0-9]+"));
  EXPECT_EQ(result.programs[0].unequal + result.programs[1].unequal, 0u);
  EXPECT_THAT(result.yaml, HasSubstr("groups:\n      dense_matmul:\n        one: {"));
}

TEST_F(Tune, MistakesAreErrorsBeforeAnythingRuns) {
  BITNET_EXPECT_ERROR(gpu::tune("opencl:99:0", small(), context), ErrorCode::kNotFound, name);
  gpu::TuneOptions options = small();
  options.shapes.clear();
  BITNET_EXPECT_ERROR(gpu::tune(name, options, context), ErrorCode::kInvalidArgument, "no shapes");
  for (const gpu::TuneShape& bad : {gpu::TuneShape{.out = 0, .in = 3},
                                    {.out = 3, .in = -1},
                                    {.out = 3, .in = 3, .count = 0},
                                    {.out = std::int64_t{1} << 40, .in = 3}}) {
    options.shapes = {bad};
    BITNET_EXPECT_ERROR(gpu::tune(name, options, context), ErrorCode::kInvalidArgument,
                        "expected sizes from 1 on");
  }
  options = small();
  options.rounds = 0;
  BITNET_EXPECT_ERROR(gpu::tune(name, options, context), ErrorCode::kInvalidArgument, "0 rounds");
  options = small();
  options.progress = [](const gpu::TuneProgress&) { throw Error(ErrorCode::kCancelled, "enough"); };
  BITNET_EXPECT_ERROR(gpu::tune(name, options, context), ErrorCode::kCancelled, "enough");
}

TEST_F(Tune, ATableThatCannotBeReadIsAnErrorOfTheBackend) {
  write_file(dir / "bad.yaml", "format: bitnet-opencl-tuning-1\ndevice: []\n");
  gpu::Options options;
  options.tuning_file = dir / "bad.yaml";
  BackendRegistry own;
  gpu::register_backends(own, options);
  BITNET_EXPECT_ERROR(own.create(name, context), ErrorCode::kInvalidArgument,
                      "bad.yaml:2: unknown key 'device'");
}

TEST(TuneShapes, AreAModelsLinearsAndItsHead) {
  ModelConfig c;
  c.vocab_size = 300;
  c.hidden_size = 64;
  c.intermediate_size = 96;
  c.n_layers = 3;
  c.n_heads = 4;
  c.n_kv_heads = 2;
  c.head_dim = 16;
  const auto text = [](const std::vector<gpu::TuneShape>& shapes) {
    std::string all;
    for (const gpu::TuneShape& s : shapes)
      all += std::to_string(static_cast<int>(s.kind)) + ":" + std::to_string(s.out) + "x" +
             std::to_string(s.in) + "*" + std::to_string(s.count) + " ";
    return all;
  };
  EXPECT_EQ(text(gpu::tune_shapes(c)), "0:64x64*6 0:32x64*6 0:96x64*6 0:64x96*3 1:300x64*1 ");
  c.weights = WeightKind::kDense;
  EXPECT_EQ(text(gpu::tune_shapes(c)), "2:64x64*6 2:32x64*6 2:96x64*6 2:64x96*3 2:300x64*1 ");
}

}  // namespace
}  // namespace bitnet
