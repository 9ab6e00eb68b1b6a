#pragma once
// Activation checkpointing (Chen et al. 2016, arXiv:1604.06174): parts of a computation whose activations are
// not kept for the backward pass but computed again in it. Not thread-safe, as the tape is not.
#include <algorithm>
#include <type_traits>

#include "bitnet/training/tape.hpp"

namespace bitnet::training {

/// out = body(tape, x), of which only the values of `out` are kept. The backward pass calls `body` a second
/// time, on an inner tape, and gives the same bits as without. `body` must compute the same both times, of x,
/// parameters and what it points to, which must outlive the step; x may have no other consumer whose gradient
/// comes first.
template <class Body>
Variable recompute(Tape& tape, Variable x, Body body) {
  static_assert(std::is_trivially_destructible_v<Body>);
  if (!tape.recording()) return body(tape, x);
  Tape& inner = tape.inner();
  inner.reset();
  const Variable y = body(inner, inner.make_leaf(x));
  const Variable out = tape.make(y.rows(), y.cols(), y.needs_grad());
  std::copy(y.value().begin(), y.value().end(), out.value().begin());
  inner.reset();
  tape.on_backward(out, [&tape, &inner, x, out, body] {
    inner.reset();
    const Variable leaf = inner.make_leaf(x);
    inner.backward(body(inner, leaf), out.grad());
    if (x.needs_grad() && !leaf.grad().empty()) {
      const Tape::GradTarget to = tape.grad_target(x);
      const std::span<const float> grad = leaf.grad();
      if (to.accumulate)
        std::transform(grad.begin(), grad.end(), to.data, to.data, [](float g, float d) { return d + g; });
      else
        std::copy(grad.begin(), grad.end(), to.data);
    }
    inner.reset();
  });
  return out;
}

}  // namespace bitnet::training
