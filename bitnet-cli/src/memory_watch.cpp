// See memory_watch.hpp.
#include "memory_watch.hpp"

#include <chrono>
#include <string>
#include <utility>

#include "bitnet/core/error.hpp"
#include "bitnet/core/log.hpp"
#include "common.hpp"

namespace bitnet::cli {
namespace {

constexpr std::chrono::milliseconds kInterval{500};

}  // namespace

MemoryWatch::MemoryWatch() {
  monitor_->subscribe([this](MemoryPressure, MemoryPressure now, std::string_view reason) {
    const std::lock_guard lock(mutex_);
    if (now <= highest_) return;
    highest_ = now;
    reason_ = reason;
  });
  try {
    monitor_->start(kInterval);
  } catch (const Error& e) {  // a run without a thread to spare is better than none
    log(LogLevel::kWarning, std::string("memory is not watched: ") + e.what());
  }
}

MemoryWatch::MemoryWatch(const std::shared_ptr<const inference::Model>& model) : MemoryWatch() {
  follow(model, model->backend().memories());
}

MemoryWatch::~MemoryWatch() {
  monitor_->stop();
  follow(nullptr, {});
}

void MemoryWatch::follow(const std::shared_ptr<HybridMemoryPool>& pool) { follow(pool, {pool.get()}); }

void MemoryWatch::follow(std::shared_ptr<const void> owner, std::vector<MemoryResource*> pools) {
  for (MemoryResource* memory : pools_) monitor_->forget(*memory);
  owner_ = std::move(owner);
  pools_ = std::move(pools);
  for (MemoryResource* memory : pools_) monitor_->watch(*memory);
}

std::string MemoryWatch::report() {
  std::string text;
  for (const MemoryResource* memory : pools_) {
    const MemoryStats stats = memory->stats();
    if (stats.limit != kNoMemoryLimit)
      text += "memory: pool '" + stats.name + "' holds " + human_bytes(stats.held) + " of at most " +
              human_bytes(stats.limit) + "\n";
  }
  monitor_->poll();
  const std::lock_guard lock(mutex_);
  if (highest_ != MemoryPressure::kNone)
    text += "memory: pressure was " + std::string(to_string(highest_)) + ": " + reason_ + "\n";
  return text;
}

}  // namespace bitnet::cli
