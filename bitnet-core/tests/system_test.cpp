// Core's contact with the machine: threads, ISA names, mapped files, atomic writes, log sinks.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "bitnet/core/cgroup.hpp"
#include "bitnet/core/execution.hpp"
#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/core/io/written_aside.hpp"
#include "bitnet/core/isa.hpp"
#include "bitnet/core/log.hpp"
#include "bitnet/core/memory/mapped_file.hpp"
#include "bitnet/core/text/tokenizer.hpp"
#include "bitnet/testing/testing.hpp"

namespace bitnet {
namespace {

/// Sets an environment variable for one scope.
class ScopedEnv {
 public:
  ScopedEnv(const char* name, const char* value) : name_(name) {
    if (const char* old = std::getenv(name)) old_ = old;
    setenv(name, value, 1);
  }
  ~ScopedEnv() {
    if (old_) {
      setenv(name_, old_->c_str(), 1);
    } else {
      unsetenv(name_);
    }
  }

 private:
  const char* name_;
  std::optional<std::string> old_;
};

TEST(Isa, NamesAreListedInErrors) {
  EXPECT_EQ(isa_from_name("scalar").index, 0);
  EXPECT_TRUE(is_supported(best_isa()));
  BITNET_EXPECT_ERROR((void)isa_from_name("mmx"), ErrorCode::kInvalidArgument,
                      "unknown ISA 'mmx' (compiled: scalar");
  const ScopedEnv scoped("BITNET_ISA", "mmx");
  BITNET_EXPECT_ERROR(ExecutionContext(), ErrorCode::kInvalidArgument, "BITNET_ISA");
}

TEST(Isa, AContextRefusesWhatTheNameWouldAndListsTheRest) {
  for (const Isa isa : compiled_isas()) {
    const ExecutionContext::Options options{.threads = 1, .isa = isa};
    if (is_supported(isa)) {
      EXPECT_EQ(ExecutionContext(options).isa(), isa);
      continue;
    }
    const std::string start = "ISA '" + std::string(to_string(isa)) + "': ";
    BITNET_EXPECT_ERROR(ExecutionContext{options}, ErrorCode::kUnsupported, start);
    BITNET_EXPECT_ERROR(ExecutionContext{options}, ErrorCode::kUnsupported, " (there are: scalar");
    BITNET_EXPECT_ERROR((void)isa_from_name(to_string(isa)), ErrorCode::kUnsupported, start);
  }
  BITNET_EXPECT_ERROR(ExecutionContext({.threads = 1, .isa = Isa{200}}), ErrorCode::kInvalidArgument,
                      "unknown ISA '?' (compiled: scalar");
}

TEST(ExecutionContext, CoversTheRangeOnce) {
  for (const std::size_t threads : {1u, 2u, 5u}) {
    const ExecutionContext context({.threads = threads, .isa = {}});
    EXPECT_EQ(context.threads(), threads);
    for (const std::size_t n : {0u, 1u, 7u, 1000u}) {
      for (const std::size_t grain : {0u, 1u, 300u, 5000u}) {
        std::vector<std::atomic<int>> hits(n);
        context.parallel_for(n, grain, [&](std::size_t begin, std::size_t end) {
          for (std::size_t i = begin; i < end; ++i) ++hits[i];
        });
        for (const auto& h : hits) ASSERT_EQ(h, 1);
      }
    }
  }
}

// Also when another context of fewer threads is there, and beyond the number of cores.
TEST(ExecutionContext, RunsAsManyThreadsAsItSays) {
  const ExecutionContext small({.threads = 2, .isa = {}});
  for (const std::size_t threads : {2, 8}) {
    const ExecutionContext context({.threads = threads, .isa = {}});
    std::atomic<std::size_t> here{0};
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    // Each part waits for all the others: only as many threads can end it.
    context.parallel_for(threads, 1, [&](std::size_t, std::size_t) {
      ++here;
      while (here < threads && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
      EXPECT_EQ(here, threads);
    });
  }
}

// On a machine of two cores two threads are the spinning team, whose nested work is oneTBB's, and three
// oneTBB.
TEST(ExecutionContext, RethrowsAndNests) {
  for (const std::size_t threads : {2u, 3u}) {
    SCOPED_TRACE(threads);
    const ExecutionContext context({.threads = threads, .isa = {}});
    const std::size_t last_part = 10 - 10 / threads;
    for (const std::size_t thrower : {std::size_t{0}, last_part}) {
      const auto body = [&](std::size_t begin, std::size_t end) {
        if (begin <= thrower && thrower < end) throw Error(ErrorCode::kInternal, "inside");
      };
      BITNET_EXPECT_ERROR(context.parallel_for(10, 1, body), ErrorCode::kInternal, "inside");
    }
    std::atomic<std::size_t> total = 0;
    const auto nest = [&](std::size_t b, std::size_t e) {
      for (std::size_t i = b; i < e; ++i) {
        context.parallel_for(5, 1, [&](std::size_t x, std::size_t y) { total += y - x; });
      }
    };
    context.parallel_for(4, 1, nest);
    EXPECT_EQ(total, 20u);
    const auto throw_nested = [&](std::size_t, std::size_t) {
      context.parallel_for(
          5, 1, [](std::size_t, std::size_t) -> void { throw Error(ErrorCode::kInternal, "deep inside"); });
    };
    BITNET_EXPECT_ERROR(context.parallel_for(4, 1, throw_nested), ErrorCode::kInternal, "deep inside");
  }
}

TEST(ExecutionContext, TakesTwoCallersAtOnce) {
  for (const std::size_t threads : {2u, 3u}) {
    const ExecutionContext context({.threads = threads, .isa = {}});
    std::atomic<int> here{0};
    const auto caller = [&] {
      for (++here; here < 2;) std::this_thread::yield();
      for (int i = 0; i < 300; ++i) {
        std::vector<int> hits(11);  // no atomics: parts are disjoint, and ThreadSanitizer looks at the rest
        context.parallel_for(hits.size(), 1, [&](std::size_t begin, std::size_t end) {
          for (std::size_t k = begin; k < end; ++k) ++hits[k];
        });
        ASSERT_EQ(hits, std::vector<int>(11, 1));
      }
    };
    std::thread other(caller);
    caller();
    other.join();
  }
}

/// Spinning threads of this process, callers not counted.
std::size_t count_team_threads() {
  std::size_t n = 0;
  std::error_code gone;  // a thread may end between the listing and the look
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task", gone)) {
    std::string name;
    std::getline(std::ifstream(task.path() / "comm") >> std::ws, name);
    n += name == "bitnet-team" ? 1 : 0;
  }
  return n;
}

/// Waits for that number: the system still lists joined threads for a moment.
std::size_t team_threads(std::size_t expected) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (count_team_threads() != expected && std::chrono::steady_clock::now() < deadline)
    std::this_thread::yield();
  return count_team_threads();
}

void use(const ExecutionContext& context) {
  std::atomic<std::size_t> covered{0};
  context.parallel_for(1000, 1, [&](std::size_t begin, std::size_t end) { covered += end - begin; });
  EXPECT_EQ(covered, 1000u);
}

TEST(ExecutionContext, NothingSpinsWithoutACoreOfItsOwn) {
  std::thread([] {
    cpu_set_t all, one;
    ASSERT_EQ(sched_getaffinity(0, sizeof all, &all), 0);
    CPU_ZERO(&one);
    for (int cpu = 0; CPU_COUNT(&one) == 0; ++cpu)
      if (CPU_ISSET(cpu, &all)) CPU_SET(cpu, &one);
    ASSERT_EQ(sched_setaffinity(0, sizeof one, &one), 0);  // of this thread, and of those that it makes
    const ExecutionContext context({.threads = 2, .isa = {}});
    use(context);
    EXPECT_EQ(team_threads(0), 0u);
  }).join();
}

TEST(ExecutionContext, TheSpinningThreadsOfAllContextsHaveACoreEach) {
  const ScopedEnv by_itself("BITNET_THREADS", "");
  const std::size_t cores = ExecutionContext().threads();
  if (cores < 2) GTEST_SKIP() << "one core";
  {
    const ExecutionContext first, second, small({.threads = 2, .isa = {}});
    for (const ExecutionContext* context : {&first, &second, &small}) use(*context);
    EXPECT_EQ(team_threads(cores - 1), cores - 1);
    std::thread other([&] {
      for (int i = 0; i < 100; ++i) use(second);
    });
    for (int i = 0; i < 100; ++i) use(first);
    other.join();
    EXPECT_EQ(count_team_threads(), cores - 1);
  }
  {
    const ExecutionContext small({.threads = 2, .isa = {}}), large;
    use(small);
    use(large);
    EXPECT_EQ(team_threads(cores - 1), cores - 1) << "the one that came later lacks nothing";
  }
  EXPECT_EQ(team_threads(0), 0u);
}

TEST(ExecutionContext, ThreadCountsAreChecked) {
  BITNET_EXPECT_ERROR(ExecutionContext({.threads = 5000, .isa = {}}), ErrorCode::kInvalidArgument,
                      "at most 1024");
  for (const char* bad : {"1,2", "two", "3x", "-1", "99999"}) {
    const ScopedEnv scoped("BITNET_THREADS", bad);
    BITNET_EXPECT_ERROR(ExecutionContext(), ErrorCode::kInvalidArgument, "BITNET_THREADS");
  }
  {
    const ScopedEnv scoped("BITNET_THREADS", "0");
    EXPECT_EQ(ExecutionContext().threads(), usable_cores());
  }
  const ScopedEnv scoped("BITNET_THREADS", "3");
  EXPECT_EQ(ExecutionContext().threads(), 3u);
  EXPECT_EQ(ExecutionContext({.threads = 2, .isa = {}}).threads(), 2u);
}

struct Cgroup : ::testing::Test {
  testing::TempDir root;
  void put(const std::string& path, const std::string& text) const {
    std::filesystem::create_directories((root / path).parent_path());
    std::ofstream(root / path) << text;
  }
};

TEST_F(Cgroup, NothingLimitsWithoutFiles) {
  EXPECT_FALSE(cgroup_limits(root.path()).cores);
  EXPECT_FALSE(cgroup_limits(root.path()).memory_headroom);
  put("proc/self/cgroup", "0::/a\nnonsense\n");
  put("sys/fs/cgroup/a/cpu.max", "max 100000\n");
  put("sys/fs/cgroup/a/memory.max", "max\n");
  put("sys/fs/cgroup/a/memory.current", "77\n");
  EXPECT_FALSE(cgroup_limits(root.path()).cores);
  EXPECT_FALSE(cgroup_limits(root.path()).memory_headroom);
}

TEST_F(Cgroup, VersionTwoTakesTheLeastOfTheParentsAndCountsNoPageCache) {
  put("proc/self/cgroup", "0::/slice/pod/leaf\n");
  put("sys/fs/cgroup/slice/cpu.max", "150000 100000\n");
  put("sys/fs/cgroup/slice/pod/leaf/cpu.max", "800000 100000\n");
  put("sys/fs/cgroup/slice/pod/memory.max", "10000\n");
  put("sys/fs/cgroup/slice/pod/memory.current", "9000\n");
  put("sys/fs/cgroup/slice/pod/memory.stat", "anon 2000\nfile 7000\ninactive_file 4000\nactive_file 3000\n");
  put("sys/fs/cgroup/slice/pod/leaf/memory.max", "50000\n");
  put("sys/fs/cgroup/slice/pod/leaf/memory.current", "1000\n");
  EXPECT_EQ(cgroup_limits(root.path()).cores, 1.5);
  EXPECT_EQ(cgroup_limits(root.path()).memory_headroom, 8000u);
  put("sys/fs/cgroup/slice/pod/memory.stat", "active_file 0\n");
  put("sys/fs/cgroup/slice/pod/memory.current", "12000\n");
  EXPECT_EQ(cgroup_limits(root.path()).memory_headroom, 0u);
}

TEST_F(Cgroup, VersionOneIsReadToo) {
  put("proc/self/cgroup", "5:cpu,cpuacct:/x/y\n4:memory:/x/y\n0::/\n");
  put("sys/fs/cgroup/cpu/x/cpu.cfs_quota_us", "300000\n");
  put("sys/fs/cgroup/cpu/x/cpu.cfs_period_us", "100000\n");
  put("sys/fs/cgroup/cpu/x/y/cpu.cfs_quota_us", "-1\n");
  put("sys/fs/cgroup/cpu/x/y/cpu.cfs_period_us", "100000\n");
  put("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  put("sys/fs/cgroup/memory/x/y/memory.limit_in_bytes", "5000\n");
  put("sys/fs/cgroup/memory/x/y/memory.usage_in_bytes", "4000\n");
  put("sys/fs/cgroup/memory/x/y/memory.stat",
      "inactive_file 1\ntotal_inactive_file 1000\ntotal_active_file 500\n");
  EXPECT_EQ(cgroup_limits(root.path()).cores, 3);
  EXPECT_EQ(cgroup_limits(root.path()).memory_headroom, 2500u);
}

// In a container the path is the host's, and the mounted folder is the group itself.
TEST_F(Cgroup, APathThatIsNotMountedMeansTheMountedFolder) {
  put("sys/fs/cgroup/memory.max", "600\n");
  put("sys/fs/cgroup/memory.current", "100\n");
  for (const char* path : {"0::/host/pod\n", "0::/../../other\n", "0::/\n"}) {
    put("proc/self/cgroup", path);
    EXPECT_EQ(cgroup_limits(root.path()).memory_headroom, 500u) << path;
  }
}

TEST(MappedFile, ReadsAndRefuses) {
  const testing::TempDir dir;
  write_file(dir / "a", "hello");
  const auto file = MappedFile::open(dir / "a");
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(file->bytes().data()), file->bytes().size()), "hello");
  write_file(dir / "empty", "");
  EXPECT_TRUE(MappedFile::open(dir / "empty")->bytes().empty());
  BITNET_EXPECT_ERROR((void)MappedFile::open(dir / "none"), ErrorCode::kNotFound, "none");
  BITNET_EXPECT_ERROR((void)MappedFile::open(dir.path()), ErrorCode::kIo, "is a directory");
  BITNET_EXPECT_ERROR((void)MappedFile::open("/dev/null"), ErrorCode::kIo, "not a regular file");
  ASSERT_EQ(mkfifo((dir / "fifo").c_str(), 0600), 0);
  BITNET_EXPECT_ERROR((void)MappedFile::open(dir / "fifo"), ErrorCode::kIo, "not a regular file");
}

TEST(MappedFile, ReleasedPagesCanBeReadAgain) {
  const testing::TempDir dir;
  write_file(dir / "a", std::string(100000, 'x'));
  const auto file = MappedFile::open(dir / "a");
  file->release(file->bytes().subspan(5, 90000));
  for (const std::byte b : file->bytes()) ASSERT_EQ(b, std::byte{'x'});
}

TEST(AtomicFile, ReplacesOnlyOnCommit) {
  const testing::TempDir dir;
  write_file(dir / "a", "old");
  {
    AtomicFile file(dir / "a");
    file.write(std::string(3 << 20, 'n'));  // larger than the buffer
    EXPECT_EQ(read_file(dir / "a"), "old");
  }
  EXPECT_EQ(read_file(dir / "a"), "old");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir.path()), {}), 1)
      << "nothing is left behind";
  AtomicFile file(dir / "a");
  file.write("12345678");
  const std::string patch = "AB";
  file.write_at(3, std::as_bytes(std::span<const char>(patch)));
  BITNET_EXPECT_ERROR(file.write_at(7, std::as_bytes(std::span<const char>(patch))),
                      ErrorCode::kInvalidArgument, "beyond the 8 written");
  EXPECT_EQ(file.size(), 8u);
  file.commit();
  EXPECT_EQ(read_file(dir / "a"), "123AB678");
}

// In a container the process id is that of the run that was killed, too.
TEST(AtomicFile, LeftoversOfTheSameProcessIdAreRemovedUnlessSomeoneWritesThem) {
  namespace fs = std::filesystem;
  const testing::TempDir dir;
  write_file(dir / "a", "old");
  std::vector<int> held;
  for (int serial = 0; serial < 1000; ++serial) {
    const fs::path left = dir / ("a." + std::to_string(getpid()) + "." + std::to_string(serial) + ".partial");
    std::ofstream(left) << "left";
    if (serial % 2 != 0) continue;  // another writer's, as in a container beside this one
    held.push_back(open(left.c_str(), O_RDWR | O_CLOEXEC));
    ASSERT_TRUE(hold_written_aside(held.back()));
  }
  const std::vector<std::string> others = {"b.1.2.partial",    "a.1.partial",  "a.x.2.partial",
                                           "a.1.2.partial.gz", "a.1..partial", "xa.1.2.partial"};
  for (const std::string& name : others) std::ofstream(dir / name) << "not left";
  fs::create_directories(dir / "a.7.8.partial/sub");
  fs::create_symlink("b.1.2.partial", dir / "a.9.9.partial");
  write_file(dir / "a", "new");
  EXPECT_EQ(read_file(dir / "a"), "new");
  EXPECT_FALSE(fs::exists(dir / "a.7.8.partial"));
  EXPECT_TRUE(fs::is_symlink(dir / "a.9.9.partial"));
  for (const std::string& name : others) EXPECT_EQ(read_file(dir / name), "not left");
  const auto files = [&] { return std::distance(fs::directory_iterator(dir.path()), {}); };
  EXPECT_EQ(files(), 1 + 500 + 6 + 1) << "its own was renamed, those that are written stay";
  for (const int fd : held) close(fd);
  write_file(dir / "a", "newer");
  EXPECT_EQ(files(), 1 + 6 + 1);
}

TEST(AtomicFile, WhatIsWrittenAtOnceStays) {
  const testing::TempDir dir;
  AtomicFile first(dir / "a"), second(dir / "a");
  first.write("first");
  second.write("second");
  write_file(dir / "a", "third");
  first.commit();
  EXPECT_EQ(read_file(dir / "a"), "first");
  second.commit();
  EXPECT_EQ(read_file(dir / "a"), "second");
  EXPECT_TRUE(is_written_aside("a.gguf.12.0.partial"));
  EXPECT_TRUE(is_written_aside(".new-model.12.0.partial"));
  EXPECT_FALSE(is_written_aside("12.0.partial"));
}

TEST(AtomicFile, WritesThroughLinksAndKeepsPermissions) {
  const testing::TempDir dir;
  std::filesystem::create_directory(dir / "sub");
  write_file(dir / "sub/real", "old");
  ASSERT_EQ(chmod((dir / "sub/real").c_str(), 0640), 0);
  std::filesystem::create_symlink("real", dir / "sub/link");
  std::filesystem::create_symlink("sub/link", dir / "link");
  std::filesystem::create_symlink(dir / "sub/new", dir / "dangling");
  std::filesystem::create_symlink("loop", dir / "loop");
  write_file(dir / "link", "new");
  write_file(dir / "dangling", "made");
  EXPECT_TRUE(std::filesystem::is_symlink(dir / "link"));
  EXPECT_TRUE(std::filesystem::is_symlink(dir / "dangling"));
  EXPECT_EQ(read_file(dir / "sub/real"), "new");
  EXPECT_EQ(read_file(dir / "sub/new"), "made");
  struct stat info {};
  ASSERT_EQ(stat((dir / "sub/real").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777u, 0640u);
  BITNET_EXPECT_ERROR(write_file(dir / "loop", "x"), ErrorCode::kIo, "loop");
}

TEST(AtomicFile, OnlyRegularFilesAreReplaced) {
  const testing::TempDir dir;
  std::filesystem::create_directory(dir / "sub");
  BITNET_EXPECT_ERROR(AtomicFile(dir / "sub"), ErrorCode::kIo, "is a directory");
  BITNET_EXPECT_ERROR(AtomicFile("/dev/null"), ErrorCode::kIo, "is not a regular file");
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/null"));
}

TEST(AtomicFile, ErrorsNameFileAndReason) {
  const testing::TempDir dir;
  BITNET_EXPECT_ERROR(write_file(dir / "no/such/dir", "x"), ErrorCode::kIo, "No such file or directory");
  BITNET_EXPECT_ERROR((void)read_file(dir / "none"), ErrorCode::kNotFound, "none");
  BITNET_EXPECT_ERROR((void)read_file(dir.path()), ErrorCode::kIo, "directory");
  write_file(dir / "big", std::string(100, 'x'));
  BITNET_EXPECT_ERROR((void)read_file(dir / "big", 99), ErrorCode::kInvalidArgument, "larger than 99 bytes");
}

TEST(ReadFile, OnlyWhoAsksForItReadsAPipe) {
  const testing::TempDir dir;
  const auto fifo = dir / "tokenizer.json";
  ASSERT_EQ(mkfifo(fifo.c_str(), 0600), 0);
  BITNET_EXPECT_ERROR((void)read_file(fifo), ErrorCode::kIo, "not a regular file");  // and does not wait
  BITNET_EXPECT_ERROR((void)Tokenizer::load(fifo), ErrorCode::kIo, "not a regular file");
  BITNET_EXPECT_ERROR((void)Tokenizer::load(dir.path()), ErrorCode::kIo, "not a regular file");
  std::thread writer([&] { std::ofstream(fifo) << "through the pipe"; });
  EXPECT_EQ(read_file(fifo, 100, FileKind::kAny), "through the pipe");
  writer.join();
}

TEST(Log, SinkTakesWhatPassesTheLevel) {
  std::vector<std::string> seen;
  set_log_sink([&](LogLevel, std::string_view m) { seen.emplace_back(m); });
  set_log_level(LogLevel::kOff);
  log(LogLevel::kWarning, "quiet");
  set_log_level(LogLevel::kWarning);
  log(LogLevel::kWarning, "loud");
  set_log_sink({});
  EXPECT_EQ(seen, (std::vector<std::string>{"loud"}));
}

TEST(Log, AnUnknownLevelIsAnErrorOfEveryContext) {
  {
    const ScopedEnv off("BITNET_LOG", "off");
    EXPECT_EQ(log_level_from_env(), LogLevel::kOff);
  }
  const ScopedEnv wrong("BITNET_LOG", "debug");
  BITNET_EXPECT_ERROR(ExecutionContext(), ErrorCode::kInvalidArgument,
                      "BITNET_LOG='debug': expected warning or off");
}

}  // namespace
}  // namespace bitnet
