#pragma once
// Asking a running generation to stop, from another thread or a signal handler.
#include <atomic>
#include <memory>

namespace bitnet::inference {

/// A shared flag; copies are the same flag. cancel() is thread-safe, lock-free and may be called in a signal
/// handler. Work notices it between two steps.
class CancellationToken {
 public:
  CancellationToken() : flag_(std::make_shared<std::atomic<bool>>(false)) {}
  /// The flag of someone else (a program's signal handler), which outlives all copies.
  explicit CancellationToken(std::atomic<bool>& flag) : flag_(std::shared_ptr<void>{}, &flag) {}
  void cancel() const noexcept { flag_->store(true, std::memory_order_relaxed); }
  bool cancelled() const noexcept { return flag_->load(std::memory_order_relaxed); }

 private:
  std::shared_ptr<std::atomic<bool>> flag_;
};

}  // namespace bitnet::inference
