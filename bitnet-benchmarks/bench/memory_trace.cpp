// What the memory pool costs in bytes: every allocation of loading a model and running a batch on it is
// recorded (operator new of this program) and replayed through a pool; beside it, the counts of the pool that
// the run itself used. Reported at the moment when most is live: the pool's own tables, in percent of the
// bytes handed out, and what blocks have beyond the bytes asked for. Times are memory.cpp's business.
//   bitnet_memory_trace MODEL [sequences] [tokens]
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "bitnet/core/error.hpp"
#include "bitnet/core/memory/hybrid_memory_pool.hpp"
#include "bitnet/inference/engine.hpp"

namespace {

/// An allocation, or with 0 bytes the end of the one that is event `of`.
struct Event {
  std::uint32_t of;
  std::uint32_t alignment;
  std::size_t bytes;
};

constexpr std::uint32_t kMostEvents = 1u << 24, kNotRecorded = 0xffffffff;
Event* events = nullptr;  // [kMostEvents], from the system before anything is recorded
std::atomic<std::uint32_t> n_events{0};
std::atomic<bool> recording{false};

/// Before each block: which event made it, and where what malloc gave begins.
struct Header {
  void* begin;
  std::uint32_t event;
};
constexpr std::size_t kHeader = 16;
static_assert(sizeof(Header) <= kHeader);

void* allocate(std::size_t bytes, std::size_t alignment) {
  alignment = alignment < kHeader ? kHeader : alignment;
  auto* begin = static_cast<std::byte*>(std::malloc(bytes + kHeader + alignment));
  if (begin == nullptr) throw std::bad_alloc();
  const std::uintptr_t first = reinterpret_cast<std::uintptr_t>(begin) + kHeader;
  auto* block = begin + kHeader + (alignment - first % alignment) % alignment;
  Header header{begin, kNotRecorded};
  if (recording.load(std::memory_order_relaxed)) {
    header.event = n_events.fetch_add(1, std::memory_order_relaxed);
    if (header.event < kMostEvents)
      events[header.event] = {header.event, static_cast<std::uint32_t>(alignment), bytes == 0 ? 1 : bytes};
  }
  *reinterpret_cast<Header*>(block - kHeader) = header;
  return block;
}

void release(void* block) noexcept {
  if (block == nullptr) return;
  const Header header = *reinterpret_cast<Header*>(static_cast<std::byte*>(block) - kHeader);
  if (header.event != kNotRecorded && recording.load(std::memory_order_relaxed)) {
    const std::uint32_t at = n_events.fetch_add(1, std::memory_order_relaxed);
    if (at < kMostEvents) events[at] = {header.event, 0, 0};
  }
  std::free(header.begin);
}

}  // namespace

void* operator new(std::size_t n) { return allocate(n, 16); }
void* operator new[](std::size_t n) { return allocate(n, 16); }
void* operator new(std::size_t n, std::align_val_t a) { return allocate(n, static_cast<std::size_t>(a)); }
void* operator new[](std::size_t n, std::align_val_t a) { return allocate(n, static_cast<std::size_t>(a)); }
void operator delete(void* p) noexcept { release(p); }
void operator delete[](void* p) noexcept { release(p); }
void operator delete(void* p, std::size_t) noexcept { release(p); }
void operator delete[](void* p, std::size_t) noexcept { release(p); }
void operator delete(void* p, std::align_val_t) noexcept { release(p); }
void operator delete[](void* p, std::align_val_t) noexcept { release(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { release(p); }
void operator delete[](void* p, std::size_t, std::align_val_t) noexcept { release(p); }

namespace bitnet {
namespace {

/// The event after which most bytes are live.
std::uint32_t peak_of(std::uint32_t n) {
  std::size_t live = 0, most = 0;
  std::uint32_t at = 0;
  for (std::uint32_t i = 0; i < n; ++i) {
    const std::size_t freed = events[i].bytes == 0 ? events[events[i].of].bytes : 0;
    live += events[i].bytes;
    live -= freed;
    if (live <= most) continue;
    most = live;
    at = i;
  }
  return at;
}

double percent(std::size_t part, std::size_t whole) {
  return whole == 0 ? 0 : 100 * static_cast<double>(part) / static_cast<double>(whole);
}

void print(const char* what, const MemoryStats& s) {
  std::size_t small = 0;
  for (const SizeClassStats& size : s.size_classes) small += size.live * size.block_bytes;
  const std::size_t large = s.used - small;
  const std::size_t small_more = s.small_given - s.small_asked, large_more = s.large_given - s.large_asked;
  std::printf(
      "%s: %llu allocations; live: small %.2f MiB, large %.2f MiB; tables: small %.2f %%, large %.2f %%; "
      "unused "
      "in blocks so far: small %.2f %%, large %.2f %%\n",
      what, static_cast<unsigned long long>(s.allocations), static_cast<double>(small) / (1 << 20),
      static_cast<double>(large) / (1 << 20), percent(s.small_bookkeeping, small),
      percent(s.bookkeeping - s.small_bookkeeping, large), percent(small_more, s.small_given),
      percent(large_more, s.large_given));
}

/// What is left at the end of the trace (static objects) is freed, too.
void replay(std::uint32_t n) {
  MemoryPoolOptions options;
  options.name = "replay";
  options.check_blocks = false;
  HybridMemoryPool pool(options);
  std::vector<void*> blocks(n);
  const std::uint32_t peak = peak_of(n);
  for (std::uint32_t i = 0; i < n; ++i) {
    const Event& e = events[i];
    if (e.bytes == 0) {
      pool.deallocate(std::exchange(blocks[e.of], nullptr));
    } else {
      blocks[i] = pool.allocate(e.bytes, e.alignment);
    }
    if (i == peak) print("the process's heap, replayed, at its peak", pool.stats());
  }
  for (void* block : blocks) pool.deallocate(block);
  pool.trim();
  std::printf("held after the replay: %zu bytes\n", pool.held());
}

int run(const std::string& path, std::int64_t sequences, std::int64_t tokens) {
  const auto memory = std::make_shared<HybridMemoryPool>(host_pool_options());
  ExecutionContext::Options machine;
  machine.memory = memory;
  inference::EngineOptions options;
  options.model = path;
  options.n_ctx = 512;
  options.max_sequences = sequences;
  recording = true;
  {
    options.context = std::make_shared<const ExecutionContext>(machine);
    inference::InferenceEngine engine(options);
    const auto scheduler = engine.make_scheduler();
    const Tokenizer& tokenizer = engine.model()->require_tokenizer();
    for (std::int64_t i = 0; i < 2 * sequences; ++i) {
      inference::Request r;
      r.prompt = tokenizer.encode("Chapter " + std::to_string(i + 1) + ". It was", {.add_bos = true});
      r.options.max_tokens = tokens;
      r.options.sampling.seed = static_cast<std::uint64_t>(i);
      scheduler->submit(std::move(r));
    }
    scheduler->run();
    recording = false;
    print("the run's own pool, at the end", memory->stats());
    recording = true;
  }
  recording = false;
  const std::uint32_t n = n_events;
  if (n > kMostEvents)
    throw Error(ErrorCode::kInvalidArgument, "the run allocates more than can be recorded");
  std::printf("%u events recorded\n", n);
  replay(n);
  return 0;
}

}  // namespace
}  // namespace bitnet

int main(int argc, char** argv) {
  events = static_cast<Event*>(std::calloc(kMostEvents, sizeof(Event)));
  try {
    if (argc < 2 || events == nullptr) {
      std::fprintf(stderr, "usage: bitnet_memory_trace MODEL [sequences] [tokens]\n");
      return 2;
    }
    return bitnet::run(argv[1], argc > 2 ? std::atoll(argv[2]) : 8, argc > 3 ? std::atoll(argv[3]) : 64);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
