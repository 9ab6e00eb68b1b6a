#pragma once
// What every op file needs: kernels of the context, work cut by rows, shape checks, scratch memory.
#include <cstdint>
#include <string>

#include "bitnet/core/error.hpp"
#include "bitnet/core/f32_kernels.hpp"
#include "bitnet/core/memory/hybrid_memory_pool.hpp"
#include "bitnet/core/memory/memory_handle.hpp"
#include "bitnet/training/ops.hpp"
#include "bitnet/training/tape.hpp"
#include "kernels/dispatch.hpp"

namespace bitnet::training {

inline const F32Kernels& f32_of(const Tape& tape) { return tested_f32_kernels(tape.context().isa()); }
inline const TrainKernels& train_of(const Tape& tape) { return train_kernels(tape.context().isa()); }

[[noreturn]] inline void throw_shape(const char* op, const std::string& rule) {
  throw Error(ErrorCode::kInvalidArgument, std::string(op) + ": " + rule);
}

/// A macro, so that `rule`, a string expression, costs nothing where it holds.
#define BITNET_REQUIRE(holds, op, rule)      \
  do {                                       \
    if (!(holds)) throw_shape((op), (rule)); \
  } while (false)

inline std::string dims(Variable x) {
  return "[" + std::to_string(x.rows()) + ", " + std::to_string(x.cols()) + "]";
}

/// layout.positions, or null where there are none. Throws Error(kInvalidArgument) for another number of them
/// than `rows`, and where one within a sequence is neither −1 nor 0 nor one more than the one before.
inline const std::int32_t* checked_positions(const char* op, const RowLayout& layout, std::int64_t rows) {
  const std::span<const std::int32_t> p = layout.positions;
  if (p.empty()) return nullptr;
  BITNET_REQUIRE(static_cast<std::int64_t>(p.size()) == rows, op,
                 std::to_string(p.size()) + " positions for " + std::to_string(rows) + " rows");
  for (std::int64_t r = 0; r < rows; ++r) {
    const std::int32_t at = p[static_cast<std::size_t>(r)];
    const bool follows = r % layout.length != 0 && at == p[static_cast<std::size_t>(r) - 1] + 1;
    BITNET_REQUIRE(at == -1 || at == 0 || (at > 0 && follows), op,
                   "position " + std::to_string(at) + " of row " + std::to_string(r) +
                       " does not follow the one before");
  }
  return p.data();
}

/// Calls body(row) for every row, in parallel.
template <class Body>
void for_rows(const Tape& tape, std::int64_t rows, std::int64_t grain, Body&& body) {
  tape.context().parallel_for(static_cast<std::size_t>(rows), static_cast<std::size_t>(grain),
                              [&](std::size_t begin, std::size_t end) {
                                for (std::size_t r = begin; r < end; ++r) body(static_cast<std::int64_t>(r));
                              });
}

/// y = forward(gate, up), element by element. `forward(tape, gate, up, y, n)` computes n of them; and
/// `backward(tape, gate, up, d_y, d_gate, d_up, n)` their gradients, which start where n begins.
template <class Forward, class Backward>
Variable gated(Tape& tape, const char* op, Variable gate, Variable up, Forward forward, Backward backward) {
  BITNET_REQUIRE(gate.rows() == up.rows() && gate.cols() == up.cols(), op, dims(gate) + " with " + dims(up));
  const auto cols = static_cast<std::size_t>(gate.cols());
  Variable out = tape.make(gate.rows(), gate.cols(), gate.needs_grad() || up.needs_grad());
  for_rows(tape, gate.rows(), 16, [&](std::int64_t r) {
    const auto at = static_cast<std::size_t>(r) * cols;
    forward(tape, gate.value().data() + at, up.value().data() + at, out.value().data() + at, cols);
  });
  Tape* t = &tape;
  tape.on_backward(out, [t, gate, up, out, cols, backward] {
    const Tape::GradTarget dg = t->grad_target(gate), du = t->grad_target(up);
    const float* d = out.grad().data();
    for_rows(*t, gate.rows(), 16, [&](std::int64_t r) {
      const auto at = static_cast<std::size_t>(r) * cols;
      backward(*t, gate.value().data() + at, up.value().data() + at, d + at,
               Tape::GradTarget{dg.data + at, dg.accumulate}, Tape::GradTarget{du.data + at, du.accumulate},
               cols);
    });
  });
  return out;
}

/// The variable of rms_norm() with its way back, which does not read it: its values are for the caller to
/// write, or are not there.
Variable make_rms_norm(Tape& tape, Variable x, Variable w, float eps, bool with_values);

/// `count` floats of the context's memory pool, 64-byte aligned, uninitialised: a thread's own for a while.
class Scratch {
 public:
  Scratch(const Tape& tape, std::size_t count)
      : block_(*tape.context().memory(), count * sizeof(float), 64, "training scratch"),
        data_(static_cast<float*>(block_.data())) {}
  float* data() const noexcept { return data_; }

 private:
  MemoryBlock block_;
  float* data_;
};

}  // namespace bitnet::training
