#pragma once
// Memory that ends (or begins) exactly at a page that cannot be touched: a kernel that reads or writes one
// byte beyond its arrays crashes the test.
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <span>

namespace bitnet::testing {

/// Which side of the elements the forbidden page is on.
enum class Guard : std::uint8_t { kAfter, kBefore };

/// `n` elements of a trivial type T, zero-filled, next to a PROT_NONE page.
template <class T>
class GuardedBuffer {
 public:
  explicit GuardedBuffer(std::size_t n, Guard guard = Guard::kAfter) : n_(n) {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const std::size_t payload = (n * sizeof(T) + page - 1) / page * page;
    bytes_ = payload + 2 * page;
    void* p = mmap(nullptr, bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    base_ = static_cast<std::byte*>(p);
    if (payload != 0 && mprotect(base_ + page, payload, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
    std::byte* first = guard == Guard::kBefore ? base_ + page : base_ + page + payload - n * sizeof(T);
    data_ = reinterpret_cast<T*>(first);
  }
  GuardedBuffer(std::span<const T> values, Guard guard = Guard::kAfter)
      : GuardedBuffer(values.size(), guard) {
    if (!values.empty()) std::memcpy(data_, values.data(), values.size_bytes());
  }
  ~GuardedBuffer() { munmap(base_, bytes_); }
  GuardedBuffer(const GuardedBuffer&) = delete;
  GuardedBuffer& operator=(const GuardedBuffer&) = delete;

  T* data() noexcept { return data_; }
  std::size_t size() const noexcept { return n_; }
  T& operator[](std::size_t i) noexcept { return data_[i]; }
  std::span<T> span() noexcept { return {data_, n_}; }

 private:
  std::size_t n_, bytes_ = 0;
  std::byte* base_ = nullptr;
  T* data_ = nullptr;
};

}  // namespace bitnet::testing
