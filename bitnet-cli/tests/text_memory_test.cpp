// The size of a text is no matter: operator new of this executable knows how much is held at a time, and
// commands that read texts of very different sizes hold the same.
#include <malloc.h>

#include <atomic>
#include <cstdlib>
#include <fstream>
#include <map>
#include <new>

#include "cli_fixture.hpp"

namespace {

std::atomic<std::size_t> held{0}, most_held{0};

void* taken(void* p) {
  if (p == nullptr) throw std::bad_alloc();
  const std::size_t now = held += malloc_usable_size(p);
  for (std::size_t most = most_held; now > most && !most_held.compare_exchange_weak(most, now);) {
  }
  return p;
}

void given_back(void* p) {
  if (p != nullptr) held -= malloc_usable_size(p);
  std::free(p);
}

void* aligned(std::size_t n, std::align_val_t a) {
  const auto alignment = static_cast<std::size_t>(a);
  return taken(std::aligned_alloc(alignment, (n + alignment - 1) / alignment * alignment));
}

}  // namespace

void* operator new(std::size_t n) { return taken(std::malloc(n)); }
void* operator new[](std::size_t n) { return taken(std::malloc(n)); }
void* operator new(std::size_t n, std::align_val_t a) { return aligned(n, a); }
void* operator new[](std::size_t n, std::align_val_t a) { return aligned(n, a); }
void operator delete(void* p) noexcept { given_back(p); }
void operator delete[](void* p) noexcept { given_back(p); }
void operator delete(void* p, std::size_t) noexcept { given_back(p); }
void operator delete[](void* p, std::size_t) noexcept { given_back(p); }
void operator delete(void* p, std::align_val_t) noexcept { given_back(p); }
void operator delete[](void* p, std::align_val_t) noexcept { given_back(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { given_back(p); }
void operator delete[](void* p, std::size_t, std::align_val_t) noexcept { given_back(p); }

namespace bitnet::cli {
namespace {

class TextMemory : public CliTest {
 protected:
  std::string text(const std::string& name, std::size_t bytes) {
    std::ofstream out(file(name));
    std::string line;
    for (std::size_t n = 0, i = 0; n < bytes; n += line.size(), ++i) {
      line = "The cat of line " + std::to_string(i) + " sat on the mat, and looked at the dog.\n";
      out << line;
    }
    return file(name);
  }
  /// Most bytes that a call holds, beyond what was held before it.
  std::size_t peak(const std::vector<std::string>& words) {
    const std::size_t before = held;
    most_held = before;
    const Outcome o = call(words);
    EXPECT_EQ(o.code, kOk) << o.err;
    return most_held - before;
  }
};

TEST_F(TextMemory, OfCalibrationDoesNotGrowWithTheText) {
  constexpr std::size_t kLarge = std::size_t{24} << 20;
  const std::string small = text("small.txt", std::size_t{3} << 20), large = text("large.txt", kLarge);
  const std::map<std::string, std::vector<std::string>> calls{
      {"quantize",
       {"quantize", dense_model(), file("out"), "--type", "hf", "--method", "ls+refit",
        "--calibration-tokens", "1024", "--calibrate"}},
      {"plan",
       {"plan", dense_model(), file("plan.yaml"), "--budget-size", "2MiB", "--estimate",
        "--calibration-tokens", "1024", "--calibrate"}},
      {"compare", {"compare", model(), model(), "--tokens", "1024", "-f"}}};
  for (const auto& [name, words] : calls) {
    SCOPED_TRACE(name);
    const auto with = [&command = words](const std::string& path) {  // Clang 14 captures no binding as it is
      auto all = command;
      all.push_back(path);
      return all;
    };
    peak(with(small));  // what is made once a process is made
    const std::size_t of_small = peak(with(small)), of_large = peak(with(large));
    RecordProperty(name, std::to_string(of_small) + " and " + std::to_string(of_large));
    // Windows of the small text are all held, 4 bytes a token; of the large one at most 16 MiB (TextWindows).
    EXPECT_LT(of_large, of_small + (std::size_t{20} << 20));
  }
}

}  // namespace
}  // namespace bitnet::cli
