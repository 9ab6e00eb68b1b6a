#pragma once
// The model of `bitnet batch` on its device, and what is done when a pass fails there or the model cannot be
// loaded again. Items and records are commands/batch.cpp.
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "bitnet/cli/app.hpp"
#include "bitnet/core/memory/memory_pressure.hpp"
#include "bitnet/core/recovery.hpp"
#include "bitnet/inference/engine.hpp"
#include "options.hpp"

namespace bitnet::cli {

/// Where an engine of several is.
struct BatchPlace {
  std::string device = {};  ///< empty: what the options say
  /// Whether it is one of several that work at the same time: then what is said while a model is loaded again
  /// comes through the engine's `note`.
  bool of_several = false;
};

/// At most one model is loaded at a time: one that is given up is gone before another is read. Not
/// thread-safe.
class BatchEngine {
 public:
  /// None is owned; `note` gets lines for the user.
  BatchEngine(const Values& values, Io& io, std::shared_ptr<const PressureMonitor> pressure,
              std::function<void(const std::string&)> note, BatchPlace place = {});

  /// Runs on the threads and in the host's memory of another one, which was loaded.
  void share(const BatchEngine& other) { context_ = other.context_; }

  /// Of loading and of all that runs from then on; null: none. To be set before load(); must outlive this.
  void set_profiler(Profiler* profiler) noexcept { profiler_ = profiler; }
  /// What the devices of all models did that this has loaded.
  DeviceStatistics statistics() const;
  /// The present model, or null.
  const inference::InferenceEngine* engine() const noexcept { return engine_.get(); }
  const std::string& device() const noexcept { return device_; }  ///< its name, from load() on
  /// The model goes; what its device did is kept where there is memory for that.
  void give_up();
  double load_seconds() const noexcept { return load_seconds_; }  ///< of all models

  /// Loads the model on the present device. Throws as make_context() and load_engine().
  const inference::InferenceEngine& load();
  /// The host's pool of every model that this loads; there is one from the first load() on.
  std::shared_ptr<HybridMemoryPool> memory() const { return context_->memory(); }
  /// On the model, which is loaded where a rule has given it up. Throws as load() and
  /// InferenceEngine::make_scheduler().
  std::unique_ptr<inference::BatchScheduler> make_scheduler();

  /// In this order: memory that is cached goes back to the system; fewer sequences at a time; the same again
  /// where the device failed; the device opened anew, with the model; with `--device auto`, the next device.
  /// Of this object, which must outlive them.
  std::vector<RecoveryRule> rules();

 private:
  std::size_t drop_caches();
  void load_again(const Values& there);
  bool next_device();

  const Values& values_;
  Io& io_;
  std::shared_ptr<const PressureMonitor> pressure_;
  std::function<void(const std::string&)> note_;
  std::shared_ptr<const ExecutionContext> context_;
  std::unique_ptr<inference::InferenceEngine> engine_;
  Profiler* profiler_ = nullptr;
  DeviceStatistics earlier_;  // of the models that are gone
  double load_seconds_ = 0;
  const bool of_several_;
  bool loaded_ = false;                     // at least once
  std::string device_;                      // empty: what the options say
  std::vector<std::string> other_devices_;  // of --device auto
  std::int64_t sequences_ = 0;              // at a time; 0: as many as memory allows
};

}  // namespace bitnet::cli
