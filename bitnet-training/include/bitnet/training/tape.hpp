#pragma once
// Reverse-mode differentiation: variables, trainable parameters, and the tape that remembers how to go back.
// What can be computed with them is ops.hpp and fake_quant.hpp; layers made of ops are modules.hpp.
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
#include "bitnet/core/memory/memory_handle.hpp"
#include "bitnet/core/precision.hpp"

namespace bitnet::training {

/// A matrix on the way from parameters to the loss: values and, once the backward pass has reached it,
/// gradients. Owned by a Tape (until its reset) or by a Parameter.
struct Node {
  float* value = nullptr;  // [rows, cols]
  float* grad = nullptr;   // [rows, cols], null until someone writes it
  std::int64_t rows = 0, cols = 0;
  Node* grad_owner = nullptr;  ///< node whose gradient this one shares (straight-through ops), or null
  bool needs_grad = false;
  bool grad_written = false;    ///< false: the next contribution overwrites, true: it adds
  bool persistent = false;      ///< a parameter's: its gradient outlives the tape
  std::int64_t last_step = -1;  ///< of a watched backward pass that wrote a parameter's gradient
};

/// A handle to a node; copying it copies the handle.
class Variable {
 public:
  Variable() = default;
  explicit Variable(Node* node) noexcept : node_(node) {}
  explicit operator bool() const noexcept { return node_ != nullptr; }
  std::int64_t rows() const noexcept { return node_->rows; }
  std::int64_t cols() const noexcept { return node_->cols; }
  bool needs_grad() const noexcept { return node_->needs_grad; }
  std::span<float> value() const noexcept { return {node_->value, size()}; }
  /// Empty when the backward pass has not written it (or has released it already).
  std::span<float> grad() const noexcept;
  Node* node() const noexcept { return node_; }

 private:
  std::size_t size() const noexcept { return static_cast<std::size_t>(node_->rows * node_->cols); }
  Node* node_ = nullptr;
};

/// A trainable matrix with its gradient, both in the context's memory pool (tags "parameters", "gradients").
/// Gradients of several backward passes add up until zero_grad().
class Parameter {
 public:
  /// Zeros. Throws Error(kInvalidArgument) for sizes that are not positive or overflow, Error(kOutOfMemory).
  Parameter(const ExecutionContext& context, std::string name, std::int64_t rows, std::int64_t cols,
            bool decay);
  Parameter(const Parameter&) = delete;
  Parameter& operator=(const Parameter&) = delete;

  const std::string& name() const noexcept { return name_; }
  std::int64_t rows() const noexcept { return node_.rows; }
  std::int64_t cols() const noexcept { return node_.cols; }
  bool decay() const noexcept { return decay_; }  ///< whether weight decay applies
  std::span<float> value() noexcept { return {node_.value, size()}; }
  std::span<const float> value() const noexcept { return {node_.value, size()}; }
  std::span<float> grad() noexcept { return {node_.grad, size()}; }
  Variable variable() noexcept { return Variable(&node_); }
  /// Writes zeros where no backward pass has written since zero_grad().
  void finish_grad() noexcept;
  void zero_grad() noexcept { node_.grad_written = false; }

 private:
  std::size_t size() const noexcept { return static_cast<std::size_t>(node_.rows * node_.cols); }
  std::string name_;
  bool decay_;
  std::shared_ptr<HybridMemoryPool> memory_;
  MemoryArray<float> value_, grad_;
  Node node_;
};

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
  /// The same, whose gradient is x's own: d(out) = d(x).
  Variable make_straight_through(Variable x);
  /// x's own values and gradient as [rows, cols]. Throws Error(kInvalidArgument) for another number of them.
  Variable make_view(Variable x, std::int64_t rows, std::int64_t cols);
  /// Floats or bytes, 64-byte aligned, uninitialised, valid until reset().
  float* floats(std::size_t count);
  void* bytes(std::size_t count);
  float* borrow(std::size_t count);  ///< floats() until they are given back, within a backward pass
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
  void reset();  ///< forgets everything; variables of this tape become invalid
  /// The same, and gives the arena's memory back: after an Error in the middle of a step. Gradients of
  /// parameters are then those of a part of the step.
  void release() noexcept;
  std::size_t bytes_held() const noexcept;  ///< by the arena

 private:
  void push(Node* out, void* closure, void (*call)(void*));
  struct Impl;
  const ExecutionContext& context_;
  bool record_;
  PrecisionPolicy precision_;
  std::unique_ptr<Impl> impl_;
};

}  // namespace bitnet::training
