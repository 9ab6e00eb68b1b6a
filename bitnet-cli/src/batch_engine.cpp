// See batch_engine.hpp.
#include "batch_engine.hpp"

#include <mutex>
#include <new>
#include <ostream>
#include <sstream>
#include <utility>

#include "bitnet/core/memory/hybrid_memory_pool.hpp"
#include "bitnet/inference/layered_backend.hpp"
#include "common.hpp"
#include "loading.hpp"

namespace bitnet::cli {
namespace {

/// Where a shrinking batch begins when it was the scheduler's to choose and that failed.
constexpr std::int64_t kMostSequences = 64;

/// A device that has failed for good should not cost a loading of the model for every few items.
constexpr std::int64_t kMostReopenings = 8;

bool is_of_the_device(const Error& e) { return e.code() == ErrorCode::kDevice; }

}  // namespace

BatchEngine::BatchEngine(const Values& values, Io& io, std::shared_ptr<const PressureMonitor> pressure,
                         std::function<void(const std::string&)> note, BatchPlace place)
    : values_(values),
      io_(io),
      pressure_(std::move(pressure)),
      note_(std::move(note)),
      of_several_(place.of_several),
      device_(std::move(place.device)) {}

DeviceStatistics BatchEngine::statistics() const {
  if (engine_ == nullptr) return earlier_;
  const DeviceStatistics both[] = {earlier_, engine_->model()->backend().statistics()};
  return inference::add_up(both);
}

void BatchEngine::give_up() {
  try {
    earlier_ = statistics();
  } catch (const std::bad_alloc&) {
  }
  engine_.reset();
}

const inference::InferenceEngine& BatchEngine::load() {
  give_up();
  if (context_ == nullptr) context_ = make_context(values_);
  Values there = values_;
  const bool first = !loaded_;
  if (!device_.empty()) there.set(opt::kDevice, device_, Origin::kCommandLine, "--device");
  if (!first) {
    there.set(opt::kVerbose, "false", Origin::kCommandLine, "--verbose");  // said once, with the true reason
    // Of a device that is left there is nothing to divide with the CPU.
    if (device_ == "cpu") there.set(opt::kGpuLayers, "all", Origin::kCommandLine, "--gpu-layers");
  }
  retry_io("loading the model", [&] {
    if (first || !of_several_)
      engine_ = load_engine(there, io_, context_, profiler_, nullptr, values_.flag(opt::kVerbose));
    else
      load_again(there);
  });
  loaded_ = true;
  load_seconds_ += engine_->model()->load_seconds();
  if (first) {
    device_ = engine_->selection().device.name;
    other_devices_ = engine_->selection().alternatives;
  }
  return *engine_;
}

/// While others work, on whose lines a progress bar must not be drawn.
void BatchEngine::load_again(const Values& there) {
  std::ostringstream said;
  Io quiet{.in = io_.in, .out = io_.out, .err = said};
  quiet.cancelled = io_.cancelled;
  quiet.devices = io_.devices;
  engine_ = load_engine(there, quiet, context_, profiler_, nullptr, values_.flag(opt::kVerbose));
  std::istringstream lines(said.str());
  for (std::string line; std::getline(lines, line);) note_(line);
}

std::unique_ptr<inference::BatchScheduler> BatchEngine::make_scheduler() {
  if (engine_ == nullptr) load();
  try {
    engine_->set_pressure(pressure_);
    auto scheduler = engine_->make_scheduler(sequences_);
    sequences_ = scheduler->max_sequences();
    const std::lock_guard lock(output_mutex());
    if (values_.flag(opt::kVerbose))
      io_.err << "batch: up to " << sequences_ << " sequences of " << grouped(scheduler->n_ctx())
              << " tokens, " << human_bytes(scheduler->stats().kv_bytes) << " of cache\n";
    return scheduler;
  } catch (const Error&) {
    if (sequences_ == 0)
      sequences_ = values_.has(opt::kBatchSize) && values_.integer(opt::kBatchSize) > 0
                       ? values_.integer(opt::kBatchSize)
                       : kMostSequences;
    throw;
  }
}

std::vector<RecoveryRule> BatchEngine::rules() {
  RecoveryRule drop = bitnet::drop_caches([this] { return drop_caches(); }, 1);

  RecoveryRule fewer = shrink(sequences_);
  fewer.applies = [this](const Error& e) {  // what a model lacks, no smaller batch of it gives
    return e.code() == ErrorCode::kOutOfMemory && engine_ != nullptr;
  };

  RetryOptions same;
  same.limit = 1;
  same.applies = is_of_the_device;

  // A queue that is dead says of allocations, too, that its resources have run out: then fewer sequences did
  // not help, and how many there may be is asked again.
  RecoveryRule reopen;
  reopen.name = "reopen";
  reopen.applies = [this](const Error& e) {
    return is_of_the_device(e) || (e.code() == ErrorCode::kOutOfMemory && device_ != "cpu");
  };
  reopen.act = [this](const Error& e, std::int64_t) {
    give_up();
    if (!is_of_the_device(e)) sequences_ = 0;
    return RecoveryStep::kAgain;
  };
  reopen.per_run = 1;
  reopen.in_total = kMostReopenings;

  return {std::move(drop), std::move(fewer), retry(same), std::move(reopen),
          fall_back([this](const Error&) { return next_device(); })};
}

/// Free blocks of all pools, those of both sides where the CPU helps a device, among them what the scheduler
/// that failed has left. A full pool has tried this with its own; not with the others, whose free memory may
/// be what the system or a device that shares the host's memory lacks.
std::size_t BatchEngine::drop_caches() {
  std::size_t offered = 0, returned = 0;
  const auto trim = [&](MemoryResource& pool) {
    try {
      const TrimReport report = pool.trim();
      offered += report.offered;
      returned += report.returned;
    } catch (const std::bad_alloc&) {  // for its own lists: then it keeps what it has
    }
  };
  trim(*context_->memory());
  if (engine_ != nullptr) {
    for (MemoryResource* own : engine_->model()->backend().memories())
      if (own != context_->memory().get()) trim(*own);
  }
  try {
    if (offered > 0)
      note_("memory: " + human_bytes(returned) + " were given back, of " + human_bytes(offered) +
            " of free blocks");
  } catch (const std::bad_alloc&) {
  }
  return offered;
}

/// To the device that `--device auto` would have taken next.
bool BatchEngine::next_device() {
  if (other_devices_.empty()) return false;
  note_("device '" + device_ + "' is left for '" + other_devices_.front() + "'");
  device_ = std::move(other_devices_.front());
  other_devices_.erase(other_devices_.begin());
  give_up();
  sequences_ = 0;  // how much memory it has is another question
  return true;
}

}  // namespace bitnet::cli
