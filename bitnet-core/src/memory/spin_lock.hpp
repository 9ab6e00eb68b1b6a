#pragma once
// A lock for the pools' short critical sections: one exchange where nobody else holds it. Who waits long
// lets other threads run, so that a holder that lost its core gets it back.
#include <atomic>
#include <thread>

namespace bitnet::memory {

/// Meets the requirements of std::lock_guard.
class SpinLock {
 public:
  void lock() noexcept {
    for (unsigned spins = 0; taken_.exchange(true, std::memory_order_acquire);) {
      while (taken_.load(std::memory_order_relaxed)) {
        if (++spins % kSpins == 0) std::this_thread::yield();
        pause();
      }
    }
  }
  void unlock() noexcept { taken_.store(false, std::memory_order_release); }

 private:
  static constexpr unsigned kSpins = 64;
  static void pause() noexcept {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
  std::atomic<bool> taken_{false};
};

}  // namespace bitnet::memory
