#pragma once
// What every op file needs: kernels of the context, work cut by rows, shape checks, scratch memory.
#include <cstdint>
#include <string>

#include "bitnet/core/error.hpp"
#include "bitnet/core/f32_kernels.hpp"
#include "bitnet/core/memory/hybrid_memory_pool.hpp"
#include "bitnet/core/memory/memory_handle.hpp"
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
