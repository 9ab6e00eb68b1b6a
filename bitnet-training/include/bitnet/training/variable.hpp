#pragma once
// Matrices with gradients: variables, which a tape owns until its reset, and trainable parameters. The tape
// that goes back over them is tape.hpp. None is thread-safe.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "bitnet/core/execution.hpp"
#include "bitnet/core/memory/memory_handle.hpp"

namespace bitnet::training {

/// A matrix on the way from parameters to the loss: values and, once the backward pass has reached it,
/// gradients. Owned by a Tape (until its reset) or by a Parameter.
struct Node {
  float* value = nullptr;  // [rows, cols], null where they are not kept
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
  /// Empty where only a quantised form of them is kept (normalize_quantize()).
  std::span<float> value() const noexcept { return {node_->value, node_->value ? size() : 0}; }
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

}  // namespace bitnet::training
