#pragma once
// Times of kernels where a backend is made of others: these are given a profiler whose zones nobody sees,
// since they would lie inside the outer backend's, under the same names.
#include <memory>

#include "bitnet/core/device/backend.hpp"
#include "bitnet/core/profiler.hpp"

namespace bitnet::inference {

/// Not thread-safe. Must outlive the backends that it was given to.
class KernelTimes {
 public:
  /// From now on `backend`'s device takes times, for Backend::statistics(), or does so no more.
  void take(Backend& backend, bool yes) noexcept {
    if (yes && zones_ == nullptr) {
      try {
        zones_ = std::make_unique<Profiler>(1);
      } catch (...) {  // then there are no times
      }
    }
    backend.set_profiler(yes ? zones_.get() : nullptr);
  }

 private:
  std::unique_ptr<Profiler> zones_;
};

}  // namespace bitnet::inference
