#pragma once
// What a run on several processes does besides its steps: who reads what first, and what all must agree on.
// Process 0 is the one that reads and writes the output folder. Sums and weights are data_parallel.hpp.
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "bitnet/core/error.hpp"
#include "bitnet/training/checkpoint.hpp"
#include "bitnet/training/data_parallel.hpp"
#include "bitnet/training/process_group.hpp"
#include "run_data.hpp"
#include "run_model.hpp"

namespace bitnet::training {

/// A group's only process, or the one that reads and writes files.
inline bool is_first(const ProcessGroup& group) noexcept { return group.rank() == 0; }

/// Process 0's tokenizer_of() for all.
std::shared_ptr<const Tokenizer> shared_tokenizer(ProcessGroup& group, const TrainConfig& c,
                                                  const TrainCallbacks& callbacks, bool resumed);

/// texts_of() of each process; where shards are kept, of process 0 first, which makes them.
RunTexts shared_texts(ProcessGroup& group, const TrainConfig& c, const ExecutionContext& context,
                      const Tokenizer& tokenizer, const TrainCallbacks& callbacks, bool dry);

/// Throws Error(kInvalidArgument) on each process whose configuration, text or model is not process 0's.
void check_same(ProcessGroup& group, const std::map<std::string, std::string>& mine);

/// What else of a configuration decides when processes exchange what, by name.
std::map<std::string, std::string> course_of(const TrainConfig& c);

/// Layers whose ternary form another process may make.
std::vector<BitLinear*> ternary_layers(const RunModel& model);

/// The setting of a checkpoint that says in how many parts its run computed a batch.
inline constexpr const char* kPartsSetting = "training.gradient_parts";
/// What it says; 0 where it is not there.
std::int64_t parts_in(const std::map<std::string, std::string>& settings);

/// In how many parts a run is to compute its batches: as configured, or as the run was computed so far
/// (`stored`, 0: not yet) where that fits, or one a process. Throws Error(kInvalidArgument) naming the key
/// where the processes cannot compute them.
std::int64_t parts_of(const TrainConfig& c, const ProcessGroup& group, std::int64_t stored);

/// What a process says to its caller: the first one all, the others nothing.
TrainCallbacks callbacks_of(const ProcessGroup& group, const TrainCallbacks& callbacks);

/// Runs `body`, and makes what is no Error one.
template <class Body>
auto with_errors(Body&& body) {
  try {
    return body();
  } catch (const std::filesystem::filesystem_error& e) {
    throw Error(ErrorCode::kIo, e.what());
  } catch (const std::bad_alloc&) {
    throw Error(ErrorCode::kOutOfMemory, "no memory for a model, text or step of these sizes");
  } catch (const std::length_error&) {
    throw Error(ErrorCode::kOutOfMemory, "no memory for a model, text or step of these sizes");
  }
}

/// The same, and an Error ends the other processes, too.
template <class Body>
auto as_member(ProcessGroup& group, const TrainCallbacks& callbacks, Body&& body) {
  try {
    return with_errors(body);
  } catch (const Error& e) {
    if (group.size() == 1) throw;
    if (callbacks.message)
      callbacks.message("process " + std::to_string(group.rank()) + " of " + std::to_string(group.size()) +
                        " ends the run: " + e.what());
    group.leave(e.what());
    throw;
  }
}

/// The optimiser of a run, shared out, and how its state comes together. All functions are called by all
/// processes.
class RunProcesses {
 public:
  /// All but `config` must outlive it.
  RunProcesses(const TrainConfig& config, const ExecutionContext& context, ProcessGroup& group,
               const RunModel& model);

  ProcessGroup& group() const noexcept { return group_; }
  bool first() const noexcept { return is_first(group_); }
  DataParallel& parallel() noexcept { return parallel_; }
  /// One step of all parameters, as Optimizer::step().
  double step(float lr, float decay, float clip) { return parallel_.step(*optimizer_, lr, decay, clip); }
  /// Ternary forms of what a step has made.
  void refresh();
  /// Gives all processes the weights that process 0 has read or drawn: files, and the libraries that draw,
  /// may differ between machines. Throws Error(kInvalidArgument) where a teacher does, which stays where it
  /// is.
  void begin(const Distillation* distillation);
  /// Brings process 0 the latent weights of all.
  void gather_weights() { parallel_.gather_weights(); }
  /// Calls `write` on process 0, whose model and the optimiser that it is given then have everything.
  void save(const std::function<void(Optimizer& all)>& write);
  /// Calls `read` on process 0, which fills the model and the optimiser, and returns its state on all, but
  /// for identity and settings.
  TrainState load(const std::function<TrainState(Optimizer& all)>& read);
  /// gradient_not_finite() of what all have summed. Gradients are as DataParallel::gradients() or step() left
  /// them.
  std::string first_bad_gradient();
  /// Bytes of the whole optimiser's state.
  std::uint64_t state_bytes();

 private:
  std::unique_ptr<Optimizer> whole_optimizer();
  const TrainConfig& c_;
  const ExecutionContext& context_;
  ProcessGroup& group_;
  const RunModel& model_;
  DataParallel parallel_;
  std::unique_ptr<Optimizer> optimizer_;  ///< of what this process owns
};

}  // namespace bitnet::training
