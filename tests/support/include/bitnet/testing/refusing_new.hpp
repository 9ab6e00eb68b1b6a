#pragma once
// operator new of an executable that counts, and refuses when a test tells it to. Include it in one source of
// an executable; sanitizers replace operator new themselves.
#include <atomic>
#include <cstdlib>
#include <limits>
#include <new>

namespace bitnet::testing {

inline std::atomic<long> allocations{0}, allocated_bytes{0};
inline std::atomic<std::size_t> refused_from{std::numeric_limits<std::size_t>::max()};
inline std::atomic<long> refuse_next{-1}, refuse_n{0};  // after so many that succeed, so many fail; −1: none

/// While it lives, single allocations of `bytes` and more fail.
struct Refuse {
  explicit Refuse(std::size_t bytes) { refused_from = bytes; }
  ~Refuse() { refused_from = std::numeric_limits<std::size_t>::max(); }
  Refuse(const Refuse&) = delete;
  Refuse& operator=(const Refuse&) = delete;
};

/// While it lives, the `nth` allocation from now (1: the next) and the `n` − 1 behind it fail.
struct RefuseNth {
  explicit RefuseNth(long nth, long n = 1) : asked_(n) {
    refuse_n = n;
    refuse_next = nth - 1;
  }
  ~RefuseNth() { refuse_next = -1; }
  RefuseNth(const RefuseNth&) = delete;
  RefuseNth& operator=(const RefuseNth&) = delete;
  /// Whether any allocation was refused so far.
  bool happened() const { return refuse_n < asked_; }

 private:
  long asked_;
};

inline bool is_refused() {
  if (refuse_next < 0) return false;
  if (refuse_next > 0) {
    --refuse_next;
    return false;
  }
  return refuse_n > 0 && refuse_n-- > 0;
}

inline void* counted(std::size_t bytes, std::size_t alignment) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  allocated_bytes.fetch_add(static_cast<long>(bytes), std::memory_order_relaxed);
  if (bytes >= refused_from || is_refused()) throw std::bad_alloc();
  const std::size_t rounded = (bytes + alignment - 1) / alignment * alignment;
  if (void* p = std::aligned_alloc(alignment, rounded == 0 ? alignment : rounded)) return p;
  throw std::bad_alloc();
}

}  // namespace bitnet::testing

void* operator new(std::size_t n) { return bitnet::testing::counted(n, alignof(std::max_align_t)); }
void* operator new[](std::size_t n) { return bitnet::testing::counted(n, alignof(std::max_align_t)); }
// The library's own call those above; a sanitizer's do not, and would not know what free() is given.
void* operator new(std::size_t n, const std::nothrow_t&) noexcept {
  try {
    return operator new(n);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}
void* operator new[](std::size_t n, const std::nothrow_t&) noexcept {
  try {
    return operator new[](n);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}
void* operator new(std::size_t n, std::align_val_t a) {
  return bitnet::testing::counted(n, static_cast<std::size_t>(a));
}
void* operator new[](std::size_t n, std::align_val_t a) {
  return bitnet::testing::counted(n, static_cast<std::size_t>(a));
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }
