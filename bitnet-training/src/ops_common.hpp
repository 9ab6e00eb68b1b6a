#pragma once
// What every op file needs: kernels of the context, work cut by rows, shape checks, per-thread scratch.
#include <cstdint>
#include <string>

#include "bitnet/core/error.hpp"
#include "bitnet/core/f32_kernels.hpp"
#include "bitnet/training/tape.hpp"
#include "kernels/dispatch.hpp"

namespace bitnet::training {

inline const F32Kernels& f32_of(const Tape& tape) { return tested_f32_kernels(tape.context().isa()); }
inline const TrainKernels& train_of(const Tape& tape) { return train_kernels(tape.context().isa()); }

inline void require_shape(bool holds, const char* op, const std::string& rule) {
  if (!holds) throw Error(ErrorCode::kInvalidArgument, std::string(op) + ": " + rule);
}

inline std::string dims(Variable x) {
  return "[" + std::to_string(x.rows()) + ", " + std::to_string(x.cols()) + "]";
}

/// Calls body(row) for every row, in parallel.
template <class Body>
void for_rows(const Tape& tape, std::int64_t rows, std::int64_t grain, Body&& body) {
  tape.context().parallel_for(static_cast<std::size_t>(rows), static_cast<std::size_t>(grain),
                              [&](std::size_t begin, std::size_t end) {
                                for (std::size_t r = begin; r < end; ++r) body(static_cast<std::int64_t>(r));
                              });
}

/// At least `count` floats, 64-byte aligned, of this thread; valid until its next call. Grows, never shrinks.
float* thread_scratch(std::size_t count);

}  // namespace bitnet::training
