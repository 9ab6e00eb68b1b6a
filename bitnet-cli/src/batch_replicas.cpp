// See batch_replicas.hpp.
#include "batch_replicas.hpp"

#include <algorithm>
#include <chrono>
#include <exception>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <utility>

#include "bitnet/core/device/registry.hpp"
#include "bitnet/inference/device_names.hpp"
#include "bitnet/inference/layered_backend.hpp"
#include "common.hpp"
#include "loading.hpp"

namespace bitnet::cli {
namespace {

using inference::FinishReason;
using inference::GenerationResult;
using inference::RecoveringScheduler;
using inference::SchedulerStats;

/// Requests that wait in the scheduler beside those that run: enough that it never idles, few enough that a
/// huge file is not tokenised all at once.
constexpr std::int64_t kMaxWaiting = 64;

/// How often a replica that has nothing to do looks for Ctrl-C.
constexpr std::chrono::milliseconds kIdle{50};

/// Of --replicas; without it one, empty: what the options say.
std::vector<std::string> devices_of(const Values& values) {
  if (!values.flag(opt::kReplicas)) return {""};
  return checked(values, opt::kDevice, [](const std::string& text) {
    const std::vector<std::string> names = inference::split_device_names(text);
    for (const std::string& name : names)
      if (name.empty() || name == "auto")
        throw Error(ErrorCode::kInvalidArgument,
                    "with --replicas expected names of devices with commas between them, got '" + text + "'");
    std::vector<std::string> sorted = names;
    std::sort(sorted.begin(), sorted.end());
    const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
    if (twice != sorted.end())
      throw Error(ErrorCode::kInvalidArgument, "with --replicas a device has one of them: '" + *twice +
                                                   "' is named twice in '" + text + "'");
    for (const std::string& whole : names)
      for (const std::string& part : names)
        if (part.size() > whole.size() && inference::share_memory(part, whole))
          throw Error(ErrorCode::kInvalidArgument, "with --replicas a device has one of them: '" + part +
                                                       "' is a part of '" + whole + "'");
    return names;
  });
}

/// Before a model is loaded, which may take long. Throws Error(kNotFound).
void check_there(const std::vector<std::string>& names, const Values& values, const Io& io) {
  check_sub_devices(values);
  std::optional<BackendRegistry> own;
  if (io.devices == nullptr) own = make_registry(true, sub_devices(values, values.text(opt::kDevice)));
  const BackendRegistry& registry = io.devices != nullptr ? *io.devices : *own;
  for (const std::string& name : names) static_cast<void>(registry.select(name));
}

}  // namespace

/// A model, its scheduler, and what is known of both.
struct BatchReplicas::Replica {
  BatchReplicas* owner;
  BatchEngine engine;
  std::unique_ptr<Recovery> recovery = {};
  std::unique_ptr<RecoveringScheduler> scheduler = {};
  SchedulerStats stats = {};       // after its last pass
  std::int64_t max_sequences = 0;  // the same
  std::int64_t held = 0;           // items that it has and that are not finished
  std::size_t finished = 0;
  bool gone = false;  // its device failed for good
};

BatchReplicas::BatchReplicas(const Values& values, Io& io,
                             const std::shared_ptr<const PressureMonitor>& pressure,
                             const std::function<void(const std::string&)>& note)
    : io_(io), note_(note) {
  const std::vector<std::string> devices = devices_of(values);
  if (values.flag(opt::kReplicas)) check_there(devices, values, io);
  for (const std::string& device : devices)
    replicas_.push_back(std::make_unique<Replica>(
        Replica{this, BatchEngine(values, io, pressure, note, BatchPlace{device, devices.size() > 1})}));
}

BatchReplicas::~BatchReplicas() = default;

void BatchReplicas::set_profiler(Profiler* profiler) noexcept {
  for (const auto& r : replicas_) r->engine.set_profiler(profiler);
}

const inference::InferenceEngine& BatchReplicas::load() {
  for (const auto& r : replicas_) {
    if (r != replicas_.front()) r->engine.share(replicas_.front()->engine);
    r->engine.load();
  }
  return *replicas_.front()->engine.engine();
}

std::shared_ptr<HybridMemoryPool> BatchReplicas::memory() const { return replicas_.front()->engine.memory(); }

void BatchReplicas::make_schedulers(ErrorMonitor& faults) {
  for (const auto& r : replicas_) {
    BatchEngine& engine = r->engine;
    r->recovery = std::make_unique<Recovery>(engine.rules(), &faults, note_);
    r->scheduler =
        std::make_unique<RecoveringScheduler>([&engine] { return engine.make_scheduler(); }, *r->recovery);
    r->max_sequences = r->scheduler->max_sequences();
  }
}

std::size_t BatchReplicas::n_alive() const {
  return static_cast<std::size_t>(
      std::count_if(replicas_.begin(), replicas_.end(), [](const auto& r) { return !r->gone; }));
}

/// Alone, a replica always has some waiting; of several each holds what it can run, within its fair share.
bool BatchReplicas::has_room(const Replica& r) const {
  if (r.gone || left_.empty() || io_.is_cancelled()) return false;
  if (replicas_.size() == 1) return r.scheduler->stats().waiting < kMaxWaiting;
  auto unfinished = static_cast<std::int64_t>(left_.size());
  for (const auto& one : replicas_) unfinished += one->held;
  const auto n = static_cast<std::int64_t>(n_alive());
  return r.held < std::min(r.max_sequences, (unfinished + n - 1) / n);
}

std::optional<std::size_t> BatchReplicas::take(Replica& r) {
  const std::lock_guard lock(output_mutex());
  if (!has_room(r)) return std::nullopt;
  const std::size_t item = left_.front();
  left_.pop_front();
  ++r.held;
  return item;
}

void BatchReplicas::fill(Replica& r) {
  while (const auto item = take(r)) {
    // So little that a std::function has room for it: where memory runs out this must not fail.
    const auto finish = [&r, item = *item](inference::RequestId, GenerationResult result) {
      r.owner->done(r, item, std::move(result));
    };
    static_assert(sizeof finish <= 2 * sizeof(void*));
    if (calls_->submit(*item, *r.scheduler, finish)) continue;
    const std::lock_guard lock(output_mutex());
    --r.held;
  }
}

/// Called by a scheduler: must not throw.
void BatchReplicas::done(Replica& r, std::size_t item, GenerationResult result) {
  const std::lock_guard lock(output_mutex());
  --r.held;
  if (goes_elsewhere(r, result)) {
    try {
      left_.push_front(item);
      return;
    } catch (const std::bad_alloc&) {  // then it has failed here
    }
  }
  if (result.finish_reason != FinishReason::kCancelled) ++r.finished;
  calls_->finished(item, std::move(result));
}

/// Whether an item that ended so is another replica's. A pass or a scheduler that failed and that no rule
/// mended is reason to leave the device, whatever it calls the failure: a dead one often says that memory ran
/// out, and would fail its items faster than the others do theirs.
bool BatchReplicas::goes_elsewhere(Replica& r, const GenerationResult& result) {
  if (r.gone) return result.finish_reason == FinishReason::kCancelled || result.error.has_value();
  if (!result.error || !result.of_the_pass || n_alive() == 1) return false;
  r.gone = true;
  try {
    note_("device '" + r.engine.device() + "' is left to the others: " + result.error->what());
  } catch (const std::bad_alloc&) {
  }
  return true;
}

bool BatchReplicas::is_over() const {
  return io_.is_cancelled() || (left_.empty() && std::all_of(replicas_.begin(), replicas_.end(),
                                                             [](const auto& r) { return r->held == 0; }));
}

void BatchReplicas::run_on(Replica& r) {
  while (true) {
    fill(r);
    const bool more = r.scheduler->step();
    std::unique_lock lock(output_mutex());
    r.stats = r.scheduler->stats();
    r.max_sequences = r.scheduler->max_sequences();
    calls_->passed();
    if (r.gone) break;
    changed_.notify_all();
    if (!more && is_over()) return;
    // Another one may yet give its items back.
    if (!more && left_.empty()) changed_.wait_for(lock, kIdle);
  }
  r.scheduler.reset();  // what it still has goes to the others
  const std::lock_guard lock(output_mutex());
  r.engine.give_up();
  changed_.notify_all();
}

void BatchReplicas::run(const std::vector<std::size_t>& items, const BatchCalls& calls) {
  calls_ = &calls;
  left_.assign(items.begin(), items.end());
  try {
    if (replicas_.size() > 1) return run_on_threads();
    run_on(*replicas_.front());
  } catch (...) {  // what schedulers still have calls back, and `calls` is the caller's
    for (const auto& r : replicas_) r->scheduler.reset();
    throw;
  }
}

void BatchReplicas::run_on_threads() {
  for (const auto& r : replicas_) fill(*r);  // before one of them has done everything
  std::vector<std::exception_ptr> problems(replicas_.size());
  const auto body = [&](std::size_t i) noexcept {
    try {
      run_on(*replicas_[i]);
    } catch (...) {
      const std::lock_guard lock(output_mutex());
      problems[i] = std::current_exception();
      left_.clear();  // the others end with what they have
      replicas_[i]->held = 0;
      changed_.notify_all();
    }
  };
  {
    std::vector<std::jthread> threads;
    threads.reserve(replicas_.size());
    for (std::size_t i = 1; i < replicas_.size(); ++i) {
      try {
        threads.emplace_back(body, i);
      } catch (const std::system_error& e) {  // the system refuses threads: those that there are do the work
        note_("device '" + replicas_[i]->engine.device() + "' has no thread: " + e.what());
        {
          const std::lock_guard lock(output_mutex());
          replicas_[i]->gone = true;
        }
        replicas_[i]->scheduler.reset();
      }
    }
    body(0);
  }
  for (const std::exception_ptr& problem : problems)
    if (problem != nullptr) std::rethrow_exception(problem);
}

SchedulerStats BatchReplicas::stats() const {
  SchedulerStats sum;
  for (const auto& r : replicas_) {
    sum.generated_tokens += r->stats.generated_tokens;
    sum.drafted_tokens += r->stats.drafted_tokens;
    sum.accepted_tokens += r->stats.accepted_tokens;
    sum.yielded += r->stats.yielded;
    sum.running += r->gone ? 0 : r->stats.running;
    sum.step_seconds = std::max(sum.step_seconds, r->stats.step_seconds);  // at the same time
  }
  return sum;
}

DeviceStatistics BatchReplicas::statistics() const {
  std::vector<DeviceStatistics> all;
  for (const auto& r : replicas_) all.push_back(r->engine.statistics());
  return inference::add_up(all);
}

double BatchReplicas::load_seconds() const {
  double sum = 0;
  for (const auto& r : replicas_) sum += r->engine.load_seconds();
  return sum;
}

std::vector<const Backend*> BatchReplicas::backends() const {
  std::vector<const Backend*> all;
  for (const auto& r : replicas_)
    if (r->engine.engine() != nullptr) all.push_back(&r->engine.engine()->model()->backend());
  return all;
}

std::vector<BatchReplicas::Share> BatchReplicas::shares() const {
  std::vector<Share> all;
  for (const auto& r : replicas_) all.push_back({r->engine.device(), r->finished});
  return all;
}

}  // namespace bitnet::cli
