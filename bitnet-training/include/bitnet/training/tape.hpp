#pragma once
// Reverse-mode differentiation: the tape that remembers how to go back. What it records are variable.hpp's
// variables and parameters; what can be computed with them is ops.hpp and fake_quant.hpp, layers made of ops
// are modules.hpp.
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "bitnet/core/execution.hpp"
#include "bitnet/core/precision.hpp"
#include "bitnet/training/variable.hpp"

namespace bitnet::training {

/// Records the backward step of each op and replays them in reverse. Memory for values, gradients and
/// closures comes from one arena that is kept over reset(), so a step of the same shape allocates nothing.
/// Not thread-safe; ops use all threads of the context inside.
class Tape {
 public:
  /// With `record` false nothing is remembered and no gradient exists: evaluation. Ops ask `precision` what
  /// to compute in. Throws Error(kUnsupported) as PrecisionPolicy::validate().
  explicit Tape(const ExecutionContext& context, bool record = true,
                const PrecisionPolicy& precision = PrecisionPolicy::training());
  ~Tape();
  Tape(const Tape&) = delete;
  Tape& operator=(const Tape&) = delete;

  const ExecutionContext& context() const noexcept { return context_; }
  bool recording() const noexcept { return record_; }
  const PrecisionPolicy& precision() const noexcept { return precision_; }

  /// A new [rows, cols] variable, values uninitialised.
  Variable make(std::int64_t rows, std::int64_t cols, bool needs_grad);
  /// The same without values: an op that keeps them in another form (normalize_quantize()) gives it a
  /// gradient.
  Variable make_without_values(std::int64_t rows, std::int64_t cols, bool needs_grad);
  /// A variable whose gradient is x's own: d(out) = d(x).
  Variable make_straight_through(Variable x);
  /// x's own values and gradient as [rows, cols]. Throws Error(kInvalidArgument) for another number of them.
  Variable make_view(Variable x, std::int64_t rows, std::int64_t cols);
  /// x's own values, with a gradient apart: where another tape's variable comes into this one.
  Variable make_leaf(Variable x);
  /// Floats or bytes, 64-byte aligned, uninitialised, valid until reset().
  float* floats(std::size_t count);
  void* bytes(std::size_t count);
  float* borrow(std::size_t count);  ///< floats() until they are given back
  void give_back(float* floats, std::size_t count);

  /// Remembers `step`, called in the backward pass once the gradient of `out` is complete.
  template <class Step>
  void on_backward(Variable out, Step step) {
    static_assert(std::is_trivially_destructible_v<Step> && alignof(Step) <= 64);
    if (!record_ || !out.needs_grad()) return;
    void* memory = bytes(sizeof(Step));
    ::new (memory) Step(step);
    push(out.node(), memory, [](void* s) { (*static_cast<Step*>(s))(); });
  }

  /// Where an op writes the gradient of `x`: `accumulate` says whether to add to what is there.
  struct GradTarget {
    float* data;
    bool accumulate;
  };
  GradTarget grad_target(Variable x);
  /// `done` (empty: nobody) is called in backward passes with a parameter's node as soon as no later step
  /// writes its gradient. Which step is the last one is known from an earlier watched pass of the same ops
  /// and shapes; for other passes, and for parameters without gradient, it is not called.
  void watch_gradients(std::function<void(Node*)> done);

  /// d(loss) = 1, then all steps in reverse. Throws Error(kInvalidArgument) unless loss is a recorded [1, 1].
  void backward(Variable loss);
  /// The same from d(out) = `grad` [rows, cols], for a part of a computation.
  void backward(Variable out, std::span<const float> grad);
  /// A tape of its own for parts that are computed again on the way back (recompute.hpp); made when it is
  /// first asked for, and released with this one.
  Tape& inner();
  void reset();  ///< forgets everything; variables of this tape become invalid
  /// The same, and gives the arena's memory back: after an Error in the middle of a step. Gradients of
  /// parameters are then those of a part of the step.
  void release() noexcept;
  std::size_t bytes_held() const noexcept;  ///< by the arena, with the inner tape's

 private:
  void push(Node* out, void* closure, void (*call)(void*));
  void run_backward();
  struct Impl;
  const ExecutionContext& context_;
  bool record_;
  PrecisionPolicy precision_;
  std::unique_ptr<Impl> impl_;
};

}  // namespace bitnet::training
