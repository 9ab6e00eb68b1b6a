// Mappings aligned to huge pages, handed out from the front. Pages that nobody touched cost nothing.
#include "tile_memory.hpp"

#include <sys/mman.h>

#include <mutex>

namespace bitnet::quant {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kSharedMapping = std::size_t{32} << 20;

constexpr std::size_t round_up(std::size_t n, std::size_t to) { return (n + to - 1) / to * to; }

/// A mapping and how much of it is in use.
class Mapping {
 public:
  explicit Mapping(std::size_t bytes) : size_(round_up(bytes, kHugePage) + kHugePage) {
    void* const p = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return;
    begin_ = static_cast<std::uint8_t*>(p);
    used_ = round_up(reinterpret_cast<std::uintptr_t>(p), kHugePage) - reinterpret_cast<std::uintptr_t>(p);
    static_cast<void>(madvise(begin_, size_, MADV_HUGEPAGE));  // advice: without it all works, slower
  }
  ~Mapping() {
    if (begin_ != nullptr) munmap(begin_, size_);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  /// Null if the mapping failed or has no room left.
  std::uint8_t* take(std::size_t bytes) {
    const std::size_t end = used_ + round_up(bytes, 64);
    if (begin_ == nullptr || end > size_) return nullptr;
    std::uint8_t* const p = begin_ + used_;
    used_ = end;
    return p;
  }

 private:
  std::size_t size_, used_ = 0;
  std::uint8_t* begin_ = nullptr;
};

}  // namespace

std::shared_ptr<std::uint8_t> allocate_tiles(std::size_t bytes) {
  static std::mutex mutex;
  static std::weak_ptr<Mapping> shared;
  if (bytes > kSharedMapping / 2) {
    const auto own = std::make_shared<Mapping>(bytes);
    return {own, own->take(bytes)};
  }
  const std::lock_guard lock(mutex);
  std::shared_ptr<Mapping> mapping = shared.lock();
  std::uint8_t* p = mapping == nullptr ? nullptr : mapping->take(bytes);
  if (p == nullptr) {
    mapping = std::make_shared<Mapping>(kSharedMapping);
    p = mapping->take(bytes);
    shared = mapping;
  }
  return {mapping, p};
}

}  // namespace bitnet::quant
