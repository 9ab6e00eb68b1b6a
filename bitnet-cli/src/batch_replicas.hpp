#pragma once
// The models of `bitnet batch`: one on the device or devices of --device, or with --replicas a whole one on
// each of them, which share the items. Items and records are commands/batch.cpp, a model and its device
// batch_engine.hpp.
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "batch_engine.hpp"
#include "bitnet/core/error_monitor.hpp"
#include "bitnet/inference/recovering_scheduler.hpp"

namespace bitnet::cli {

/// What the replicas ask of the batch. Each is called by one thread at a time, with output_mutex() held,
/// except submit.
struct BatchCalls {
  using Done = std::function<void(inference::RequestId, inference::GenerationResult)>;
  /// Gives an item to a scheduler, with this callback; false where the item is finished without one. By
  /// several threads at once.
  std::function<bool(std::size_t item, inference::RecoveringScheduler& scheduler, Done done)> submit;
  /// The item's result is final. Must not throw.
  std::function<void(std::size_t item, inference::GenerationResult result)> finished;
  /// After each pass of a replica.
  std::function<void()> passed;
};

/// One thread at a time uses it; run() has a thread for each replica.
class BatchReplicas {
 public:
  /// None is owned; `note` gets lines for the user and locks output_mutex() by itself. Throws UsageError for
  /// --replicas with a device that cannot be one.
  BatchReplicas(const Values& values, Io& io, const std::shared_ptr<const PressureMonitor>& pressure,
                const std::function<void(const std::string&)>& note);
  ~BatchReplicas();

  /// Of loading and of all that runs from then on; null: none. To be set before load(); must outlive this.
  void set_profiler(Profiler* profiler) noexcept;
  /// Loads the models, one after the other, and says on which device one is. Throws as BatchEngine::load().
  const inference::InferenceEngine& load();
  /// The host's pool of all of them; there is one from load() on.
  std::shared_ptr<HybridMemoryPool> memory() const;
  /// After load(). Throws what a scheduler throws that no rule mends.
  void make_schedulers(ErrorMonitor& faults);

  /// Runs the items, in this order, to their end or until Ctrl-C; what is not finished then is none of
  /// `calls`'. A replica takes at most its fair share of what is left. One whose device fails for good is
  /// left, with a note, and its items go to the others; the last one's errors are the items'. Throws what is
  /// wrong with `calls`.
  void run(const std::vector<std::size_t>& items, const BatchCalls& calls);

  /// Of all replicas together, as they were after their last pass.
  inference::SchedulerStats stats() const;
  DeviceStatistics statistics() const;
  double load_seconds() const;
  /// Those that are loaded.
  std::vector<const Backend*> backends() const;
  struct Share {
    std::string device;
    std::size_t items = 0;  ///< finished there
  };
  std::vector<Share> shares() const;

 private:
  struct Replica;
  bool has_room(const Replica& r) const;
  std::optional<std::size_t> take(Replica& r);
  void fill(Replica& r);
  void done(Replica& r, std::size_t item, inference::GenerationResult result);
  bool goes_elsewhere(Replica& r, const inference::GenerationResult& result);
  bool is_over() const;
  void run_on(Replica& r);
  void run_on_threads();
  std::size_t n_alive() const;

  Io& io_;
  std::function<void(const std::string&)> note_;
  std::vector<std::unique_ptr<Replica>> replicas_;
  const BatchCalls* calls_ = nullptr;  // of run()
  // Under output_mutex() while run() runs, as what replicas say of themselves is.
  std::deque<std::size_t> left_;  // items that nobody has
  std::condition_variable_any changed_;
};

}  // namespace bitnet::cli
