// The program cache on its own: one build a (source, options), every way a build can fail, and the folder
// that keeps binaries for later processes, with everything that can be wrong in it.
#include "program_cache.hpp"

#include <dlfcn.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <thread>
#include <vector>

#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/testing/opencl.hpp"
#include "bitnet/testing/testing.hpp"
#include "device_list.hpp"

namespace {
bool no_binaries = false;  // the driver says that they have 0 bytes
}

extern "C" __attribute__((visibility("default"))) cl_int CL_API_CALL
clGetProgramInfo(cl_program program, cl_program_info what, size_t bytes, void* value, size_t* needed) {
  static const auto real =
      reinterpret_cast<decltype(&clGetProgramInfo)>(dlsym(RTLD_NEXT, "clGetProgramInfo"));
  const cl_int status = real(program, what, bytes, value, needed);
  if (no_binaries && what == CL_PROGRAM_BINARY_SIZES && value != nullptr) *static_cast<size_t*>(value) = 0;
  return status;
}

namespace bitnet::gpu {
namespace {

constexpr std::string_view kSource =
    "__kernel void twice(__global int* x) { x[get_global_id(0)] *= FACTOR; }";

class ProgramCacheTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const DeviceList list = list_devices();
    BITNET_REQUIRE_OPENCL_DEVICE(!list.devices.empty());
    device_ = list.devices[0].id;
    cl_int status = CL_SUCCESS;
    context_ = ClContext(clCreateContext(nullptr, 1, &device_, nullptr, nullptr, &status));
    check(status, "clCreateContext");
  }
  cl_device_id device_ = nullptr;
  ClContext context_;
};

cl_program program_of(const ClKernel& kernel) {
  cl_program program = nullptr;
  check(clGetKernelInfo(kernel.get(), CL_KERNEL_PROGRAM, sizeof program, &program, nullptr),
        "clGetKernelInfo");
  return program;
}

TEST_F(ProgramCacheTest, BuildsOncePerSourceAndOptions) {
  ProgramCache cache(context_.get(), device_, "");
  const ClKernel a = cache.kernel(kSource, "-DFACTOR=2", "twice");
  const ClKernel b = cache.kernel(kSource, "-DFACTOR=2", "twice");
  const ClKernel c = cache.kernel(kSource, "-DFACTOR=3", "twice");
  EXPECT_EQ(program_of(a), program_of(b));
  EXPECT_NE(program_of(a), program_of(c));
  EXPECT_NE(a.get(), b.get());
  EXPECT_EQ(cache.programs(), 2u);
}

TEST_F(ProgramCacheTest, BrokenSourceGivesTheLogAndIsNotKept) {
  ProgramCache cache(context_.get(), device_, "");
  BITNET_EXPECT_ERROR(cache.kernel("__kernel void bad() { no_such_thing; }", "", "bad"), ErrorCode::kDevice,
                      "no_such_thing");
  EXPECT_EQ(cache.programs(), 0u);
}

TEST_F(ProgramCacheTest, MissingKernelNamesIt) {
  ProgramCache cache(context_.get(), device_, "-DFACTOR=2");
  BITNET_EXPECT_ERROR(cache.kernel(kSource, "", "thrice"), ErrorCode::kDevice, "thrice");
}

TEST_F(ProgramCacheTest, LongLogsAreShortened) {
  ProgramCache cache(context_.get(), device_, "");
  std::string source = "__kernel void bad() {\n";
  for (int i = 0; i < 15; ++i)
    source += "  no_such_thing_" + std::to_string(i) + std::string(300, 'x') + ";\n";
  try {
    cache.kernel(source + "}", "", "bad");
    ADD_FAILURE() << "it built";
  } catch (const Error& e) {
    EXPECT_LT(std::string(e.what()).size(), 3000u);
    EXPECT_THAT(e.what(), ::testing::HasSubstr("no_such_thing_0"));
    EXPECT_THAT(e.what(), ::testing::HasSubstr(" more bytes"));
  }
}

std::vector<std::filesystem::path> files_in(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) files.push_back(entry.path());
  return files;
}

TEST_F(ProgramCacheTest, LaterProcessesFindTheBinary) {
  const testing::TempDir dir;
  const auto folder = dir / "a/b";  // made when it is needed
  {
    ProgramCache first(context_.get(), device_, "", folder);
    static_cast<void>(first.kernel(kSource, "-DFACTOR=2", "twice"));
    EXPECT_EQ(first.compiled(), 1u);
  }
  ASSERT_EQ(files_in(folder).size(), 1u);
  ProgramCache later(context_.get(), device_, "", folder);
  EXPECT_TRUE(later.kernel(kSource, "-DFACTOR=2", "twice"));
  EXPECT_EQ(later.compiled(), 0u);
  static_cast<void>(later.kernel(kSource, "-DFACTOR=3", "twice"));  // other options, another program
  EXPECT_EQ(later.compiled(), 1u);
  ProgramCache other(context_.get(), device_, "-DSOMETHING", folder);
  static_cast<void>(other.kernel(kSource, "-DFACTOR=2", "twice"));
  EXPECT_EQ(other.compiled(), 1u);
  EXPECT_EQ(files_in(folder).size(), 3u);
}

// quirks.hpp: such a driver's programs run and are not kept.
TEST_F(ProgramCacheTest, ADriverWithoutBinariesCompilesEachTime) {
  const testing::TempDir dir;
  for (int process = 0; process < 2; ++process) {
    no_binaries = true;
    ProgramCache cache(context_.get(), device_, "", dir.path());
    EXPECT_TRUE(cache.kernel(kSource, "-DFACTOR=2", "twice"));
    no_binaries = false;
    EXPECT_EQ(cache.compiled(), 1u);
    EXPECT_TRUE(files_in(dir.path()).empty());
  }
}

TEST_F(ProgramCacheTest, DamagedAndForeignFilesAreBuiltAgain) {
  const testing::TempDir dir;
  const auto build = [&] {
    ProgramCache cache(context_.get(), device_, "", dir.path());
    EXPECT_TRUE(cache.kernel(kSource, "-DFACTOR=2", "twice"));
    return cache.compiled();
  };
  ASSERT_EQ(build(), 1u);
  const auto path = files_in(dir.path()).at(0);
  const std::string whole = read_file(path);
  std::vector<std::string> damaged{"", "BNPROG1\n", "something else", whole.substr(0, whole.size() - 1),
                                   whole + "x"};
  for (const std::size_t at : {std::size_t{0}, std::size_t{9}, std::size_t{17}, std::size_t{33},
                               whole.size() / 2, whole.size() - 1}) {
    damaged.push_back(whole);
    damaged.back()[at] = static_cast<char>(damaged.back()[at] ^ 0x40);
  }
  for (std::size_t i = 0; i < damaged.size(); ++i) {
    write_file(path, damaged[i]);
    EXPECT_EQ(build(), 1u) << i;
    EXPECT_EQ(read_file(path), whole) << i;  // mended
    EXPECT_EQ(build(), 0u) << i;
  }
}

/// What a file of the store is of, and its binary.
std::pair<std::string, ProgramStore::Binary> parts_of(const std::filesystem::path& path) {
  const std::string file = read_file(path);
  std::uint64_t key_bytes = 0;
  std::memcpy(&key_bytes, file.data() + 8, sizeof key_bytes);
  return {file.substr(32, key_bytes),
          ProgramStore::Binary(file.begin() + static_cast<std::ptrdiff_t>(32 + key_bytes), file.end())};
}

// Whole and with its right hash, but nothing that the driver can use.
TEST_F(ProgramCacheTest, BinariesThatTheDriverRefusesAreBuiltAgain) {
  const testing::TempDir dir;
  const ProgramStore store(dir.path());
  {
    ProgramCache cache(context_.get(), device_, "", dir.path());
    static_cast<void>(cache.kernel(kSource, "-DFACTOR=2", "twice"));
  }
  const std::string key = parts_of(files_in(dir.path()).at(0)).first;
  ASSERT_TRUE(store.load(key).has_value());
  store.store(key, {'n', 'o', ' ', 'p', 'r', 'o', 'g', 'r', 'a', 'm'});
  ProgramCache cache(context_.get(), device_, "", dir.path());
  EXPECT_TRUE(cache.kernel(kSource, "-DFACTOR=2", "twice"));
  EXPECT_EQ(cache.compiled(), 1u);
}

// A program of this driver, but another one.
TEST_F(ProgramCacheTest, BinariesThatLackTheKernelAreBuiltAgain) {
  const testing::TempDir dir;
  {
    ProgramCache other(context_.get(), device_, "", dir / "other");
    static_cast<void>(other.kernel("__kernel void another(__global int* x) { x[0] = 1; }", "", "another"));
    ProgramCache cache(context_.get(), device_, "", dir / "own");
    static_cast<void>(cache.kernel(kSource, "-DFACTOR=2", "twice"));
  }
  const auto own = files_in(dir / "own").at(0);
  const std::string whole = read_file(own);
  ProgramStore(dir / "own").store(parts_of(own).first, parts_of(files_in(dir / "other").at(0)).second);
  ASSERT_NE(read_file(own), whole);
  ProgramCache cache(context_.get(), device_, "", dir / "own");
  EXPECT_TRUE(cache.kernel(kSource, "-DFACTOR=2", "twice"));
  EXPECT_EQ(cache.compiled(), 1u);
  EXPECT_EQ(cache.programs(), 1u);
  ProgramCache later(context_.get(), device_, "", dir / "own");
  EXPECT_TRUE(later.kernel(kSource, "-DFACTOR=2", "twice"));
  EXPECT_EQ(later.compiled(), 0u);  // mended
  // What the source itself lacks is no matter of the folder.
  BITNET_EXPECT_ERROR(later.kernel(kSource, "-DFACTOR=2", "thrice"), ErrorCode::kDevice, "thrice");
}

TEST(ProgramStore, ForgetsWhatWasNotAskedForForTheLongestTime) {
  const testing::TempDir dir;
  const ProgramStore store(dir.path(), 3500);
  const ProgramStore::Binary binary(1000, 7);
  const auto back_by = [&](const std::filesystem::path& file, int hours) {
    std::filesystem::last_write_time(file,
                                     std::filesystem::last_write_time(file) - std::chrono::hours(hours));
  };
  write_file(dir / "notes.bin", std::string(5000, 'x'));
  std::vector<std::filesystem::path> known{dir / "notes.bin"};
  for (const char* key : {"a", "b", "c"}) {
    store.store(key, binary);
    for (const auto& file : files_in(dir.path()))
      if (std::find(known.begin(), known.end(), file) == known.end()) known.push_back(file);
  }
  ASSERT_EQ(known.size(), 4u);
  for (std::size_t i = 1; i < 4; ++i) back_by(known[i], static_cast<int>(10 - i));
  EXPECT_TRUE(store.load("a").has_value());  // the oldest, until now
  store.store("d", binary);
  EXPECT_TRUE(store.load("a").has_value());
  EXPECT_FALSE(store.load("b").has_value());
  EXPECT_TRUE(store.load("c").has_value());
  EXPECT_TRUE(store.load("d").has_value());
  store.store("large", ProgramStore::Binary(9000, 7));
  EXPECT_TRUE(store.load("large").has_value());
  EXPECT_FALSE(store.load("a").has_value());
  EXPECT_EQ(files_in(dir.path()).size(), 2u);
  EXPECT_TRUE(std::filesystem::exists(dir / "notes.bin"));  // nobody's here
}

TEST_F(ProgramCacheTest, AFolderThatCannotBeWrittenCostsTimeOnly) {
  const testing::TempDir dir;
  write_file(dir / "file", "x");
  ProgramCache cache(context_.get(), device_, "", dir / "file/below");
  EXPECT_TRUE(cache.kernel(kSource, "-DFACTOR=2", "twice"));
  EXPECT_EQ(cache.compiled(), 1u);
}

TEST(ProgramStore, ManyWritersLeaveOneWholeFile) {
  const testing::TempDir dir;
  const ProgramStore::Binary binary(100'000, 7);
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&] {
      const ProgramStore store(dir.path());
      for (int i = 0; i < 20; ++i) {
        store.store("a key", binary);
        if (store.load("a key") != binary) ++wrong;
      }
    });
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(files_in(dir.path()).size(), 1u);
  EXPECT_FALSE(ProgramStore(dir.path()).load("another").has_value());
  EXPECT_FALSE(ProgramStore({}).load("a key").has_value());
}

/// The same with processes, of which one is killed again and again in the midst of it.
TEST(ProgramStore, ManyProcessesLeaveWholeFiles) {
  const testing::TempDir dir;
  const ProgramStore store(dir.path());
  const auto binary_of = [](int key) {
    return ProgramStore::Binary(50'000 + static_cast<std::size_t>(key), 9);
  };
  const auto name_of = [](int key) { return "key " + std::to_string(key); };
  const auto work = [&](int rounds) {  // 1: what it read was not what had been stored
    for (int i = 0; i < rounds; ++i) {
      const int key = i % 3;
      store.store(name_of(key), binary_of(key));
      const auto found = store.load(name_of(key));
      if (!found || *found != binary_of(key)) return 1;
    }
    return 0;
  };
  const auto start = [&](int rounds) {
    const pid_t child = fork();
    if (child == 0) _exit(work(rounds));
    return child;
  };
  std::vector<pid_t> children;
  for (int i = 0; i < 3; ++i) children.push_back(start(40));
  for (int i = 0; i < 5; ++i) {
    const pid_t victim = start(100'000);
    ASSERT_GT(victim, 0);
    EXPECT_EQ(work(5), 0);
    ASSERT_EQ(kill(victim, SIGKILL), 0);
    int status = 0;
    ASSERT_EQ(waitpid(victim, &status, 0), victim);
    EXPECT_TRUE(WIFSIGNALED(status));  // it had not seen anything wrong until then
  }
  for (const pid_t child : children) {
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }
  for (int key = 0; key < 3; ++key) EXPECT_EQ(store.load(name_of(key)), binary_of(key));
}

TEST(ClError, NamesCodes) {
  EXPECT_EQ(error_name(CL_OUT_OF_RESOURCES), "CL_OUT_OF_RESOURCES");
  EXPECT_EQ(error_name(-1001), "CL_PLATFORM_NOT_FOUND_KHR");
  EXPECT_EQ(error_name(-31337), "OpenCL error -31337");
  BITNET_EXPECT_ERROR(check(CL_MEM_OBJECT_ALLOCATION_FAILURE, "clCreateBuffer"), ErrorCode::kOutOfMemory,
                      "clCreateBuffer failed with CL_MEM_OBJECT_ALLOCATION_FAILURE");
  BITNET_EXPECT_ERROR(check_op(CL_OUT_OF_RESOURCES, "clFinish"), ErrorCode::kDevice, "CL_OUT_OF_RESOURCES");
  EXPECT_NO_THROW(check(CL_SUCCESS, "clFinish"));
}

}  // namespace
}  // namespace bitnet::gpu
