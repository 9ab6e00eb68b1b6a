#pragma once
// What the pools tell AddressSanitizer: which bytes nobody may touch. Nothing in other builds.
#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#define BITNET_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define BITNET_ASAN 1
#endif
#endif

#if defined(BITNET_ASAN)
#include <sanitizer/asan_interface.h>
// For functions that read or write links inside of free blocks, which are poisoned.
#define BITNET_NO_ASAN __attribute__((no_sanitize("address")))
#else
#define BITNET_NO_ASAN
#endif

namespace bitnet::memory {

#if defined(BITNET_ASAN)
inline void poison(const void* p, std::size_t bytes) { __asan_poison_memory_region(p, bytes); }
inline void unpoison(const void* p, std::size_t bytes) { __asan_unpoison_memory_region(p, bytes); }
#else
inline void poison(const void*, std::size_t) {}
inline void unpoison(const void*, std::size_t) {}
#endif

}  // namespace bitnet::memory
