#pragma once
// Data-parallel training: each process of a group computes the gradients of its share of a batch, sums those
// of its share of the parameters, updates them, and gives them to the others. What a process of its own does
// is the same code in a group of one. Not thread-safe.
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "bitnet/core/execution.hpp"
#include "bitnet/training/modules.hpp"
#include "bitnet/training/optimizer.hpp"
#include "bitnet/training/process_group.hpp"
#include "bitnet/training/tape.hpp"

namespace bitnet::training {

/// A batch is cut into parts of consecutive sequences. The gradient of a part is what one process would
/// compute of it; those of the parts are added pairwise, neighbours first: ((0 + 1) + (2 + 3)) + …. Each
/// process computes as many parts as the others, in order, and each parameter has one owner, so that with the
/// same number of parts the result is the same to the bit however many processes there are. All of it is
/// called by all processes in the same order; after an Error the group is of no more use.
class DataParallel {
 public:
  /// `parameters`: all that are trained, the same on every process; `ternary`: the layers whose weights are
  /// among them and travel as codes of 2 bits where nobody but the owner needs the latent ones. Both, the
  /// context and the group must outlive it. Throws Error(kOutOfMemory), Error(kUnsupported) for more than
  /// 16,000 parameters in a group of several processes.
  DataParallel(const ExecutionContext& context, ProcessGroup& group, std::span<Parameter* const> parameters,
               std::span<BitLinear* const> ternary = {});
  /// Withdraws gradients that are on their way, where an exception has ended gradients().
  ~DataParallel();

  /// Whether so many processes can compute so many parts and keep the order of additions: each gets a power
  /// of two of them, or there is one process.
  static bool fits(std::int64_t parts, int processes) noexcept;
  /// At first as many as processes. Takes memory for log2(parts a process) more sets of gradients. Throws
  /// Error(kInvalidArgument) unless fits().
  void set_parts(std::int64_t parts);
  std::int64_t parts() const noexcept;

  int owner(std::size_t parameter) const noexcept;
  /// The parameters that this process updates, in their order: its optimiser is to be made of these.
  std::vector<Parameter*> owned() const;

  /// Forward and backward of `count` sequences from `first` on; returns their loss. Gradients add up.
  using Pass = std::function<double(std::int64_t first, std::int64_t count)>;
  /// The batch's loss and gradients, in passes of `micro_batch` sequences or what a part has left. Gradients
  /// are sent while the last pass goes back; those of owned() are then the batch's. Throws
  /// Error(kInvalidArgument) unless the parts divide the batch; what `pass` throws, after which it may be
  /// called again: only an Error(kOutOfMemory) of the last pass, which the others have heard of, becomes
  /// kUnsupported.
  double gradients(Tape& tape, std::int64_t batch, std::int64_t micro_batch, const Pass& pass);

  /// Optimizer::step() of owned(), with the norm of all parameters.
  double step(Optimizer& optimizer, float lr, float decay, float clip);
  /// Σ g² of each parameter in the last step, known to all.
  std::span<const double> squares() const noexcept;
  /// Gives every process what the owners have updated. `refresh` makes ternary forms of the model's latent
  /// weights, but for those that come as codes: these are the layers whose straight-through gradient is the
  /// identity, from λ = 1 on. Their latent weights are then old except on their owners.
  void refresh(const std::function<void()>& refresh);

  /// Process 0 gets the owners' latent weights.
  void gather_weights();
  /// All get those of process 0; their ternary forms are to be made anew.
  void spread_weights();
  /// `all`, an optimiser of all parameters on process 0 (null elsewhere), gets the state of every `mine`.
  void gather_state(Optimizer& mine, Optimizer* all);
  /// The reverse.
  void spread_state(Optimizer& mine, Optimizer* all);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace bitnet::training
