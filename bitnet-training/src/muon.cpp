// Muon: momentum, Newton–Schulz iterations through gemm(), and AdamW for what is no hidden matrix.
#include <algorithm>
#include <cmath>

#include "bitnet/core/error.hpp"
#include "bitnet/core/f32_kernels.hpp"
#include "bitnet/core/memory/hybrid_memory_pool.hpp"
#include "bitnet/training/optimizer.hpp"
#include "kernels/dispatch.hpp"
#include "optimizer_common.hpp"

namespace bitnet::training {
namespace {

// The quintic of Jordan et al. 2024: singular values of at most 1 come near 1 within five iterations.
constexpr float kA = 3.4445f, kB = -4.7750f, kC = 2.0315f;

}  // namespace

/// For the largest matrix, rows ≤ cols (else transposed): x and next [rows, cols], gram and square [rows,
/// rows].
struct Muon::Room {
  MemoryArray<float> x, next, gram, square;
  MemoryArray<double> partials;
};

Muon::Muon(const ExecutionContext& context, std::span<Parameter* const> parameters,
           std::span<Parameter* const> matrices, const MuonOptions& options)
    : Optimizer(context, parameters), options_(options), room_(std::make_unique<Room>()) {
  if (!(options.momentum >= 0 && options.momentum < 1) || options.iterations < 1)
    throw Error(ErrorCode::kInvalidArgument,
                "muon with momentum " + std::to_string(options.momentum) + " and " +
                    std::to_string(options.iterations) +
                    " iterations: expected at least 0 and below 1, and at least 1");
  std::size_t most = 0, side = 0;
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const Parameter* p = parameters[i];
    const bool matrix = std::find(matrices.begin(), matrices.end(), p) != matrices.end();
    m_.push_back(values_like(i));
    v_.push_back(matrix ? MemoryArray<float>() : values_like(i));
    if (!matrix) continue;
    most = std::max(most, p->value().size());
    side = std::max(side, static_cast<std::size_t>(std::min(p->rows(), p->cols())));
  }
  room_->x = MemoryArray<float>(memory(), most, "optimizer", 64);
  room_->next = MemoryArray<float>(memory(), most, "optimizer", 64);
  room_->gram = MemoryArray<float>(memory(), side * side, "optimizer", 64);
  room_->square = MemoryArray<float>(memory(), side * side, "optimizer", 64);
  room_->partials =
      MemoryArray<double>(memory(), (most + kOptimizerChunk - 1) / kOptimizerChunk, "optimizer");
}

Muon::~Muon() = default;

std::vector<OptimizerState> Muon::state() {
  std::vector<OptimizerState> all;
  for (std::size_t i = 0; i < m_.size(); ++i) {
    all.push_back(state_of("moment1", i, m_[i].span()));
    if (v_[i].size() > 0) all.push_back(state_of("moment2", i, v_[i].span()));
  }
  return all;
}

void Muon::update(const ExecutionContext& context, std::size_t i, const Update& u) {
  if (v_[i].size() == 0) return orthogonal_step(context, i, u);
  Parameter& p = *parameters()[i];
  const TrainKernels& k = train_kernels(context.isa());
  const TrainKernels::AdamW a = adamw_constants(options_.rest, steps(), u.lr, u.shrink, u.g_scale);
  float *g = p.grad().data(), *w = p.value().data(), *m = m_[i].data(), *v = v_[i].data();
  for_chunks(context, p.value().size(),
             [&](std::size_t at, std::size_t count) { k.adamw(a, g + at, w + at, m + at, v + at, count); });
}

void Muon::orthogonal_step(const ExecutionContext& context, std::size_t i, const Update& u) {
  Parameter& p = *parameters()[i];
  const F32Kernels& f = tested_f32_kernels(context.isa());
  const TrainKernels& k = train_kernels(context.isa());
  const std::size_t n = p.value().size();
  const bool turned = p.rows() > p.cols();
  const std::int64_t rows = std::min(p.rows(), p.cols()), cols = std::max(p.rows(), p.cols());
  float *x = room_->x.data(), *next = room_->next.data(), *gram = room_->gram.data(),
        *square = room_->square.data(), *g = p.grad().data(), *m = m_[i].data(), *w = p.value().data();
  double* const partials = room_->partials.data();

  // Nesterov's momentum, and its norm.
  for_chunks(context, n, [&](std::size_t at, std::size_t count) {
    f.scale(options_.momentum, m + at, count);
    f.axpy(u.g_scale, g + at, m + at, count);
    k.scale_to(options_.momentum, m + at, x + at, count);
    f.axpy(u.g_scale, g + at, x + at, count);
    partials[at / kOptimizerChunk] = f.sum_squares(x + at, count);
  });
  double squares = 0;
  for (std::size_t c = 0; c < (n + kOptimizerChunk - 1) / kOptimizerChunk; ++c) squares += partials[c];
  const auto inv = static_cast<float>(1.0 / (std::sqrt(squares) + 1e-7));
  for_chunks(context, n, [&](std::size_t at, std::size_t count) { f.scale(inv, x + at, count); });

  // X ← a·X + (b·A + c·A²)·X with A = X·Xᵀ; of a tall matrix the transpose, through strides.
  const std::int64_t step_row = turned ? 1 : cols, step_col = turned ? rows : 1;
  const auto small = static_cast<std::size_t>(rows * rows);
  for (int iteration = 0; iteration < options_.iterations; ++iteration) {
    gemm(context, rows, rows, cols, x, step_row, step_col, x, step_col, step_row, gram, rows, false);
    gemm(context, rows, rows, rows, gram, rows, 1, gram, rows, 1, square, rows, false);
    for_chunks(context, small, [&](std::size_t at, std::size_t count) {
      f.scale(kC, square + at, count);
      f.axpy(kB, gram + at, square + at, count);
    });
    for_chunks(context, n,
               [&](std::size_t at, std::size_t count) { k.scale_to(kA, x + at, next + at, count); });
    if (turned)  // (B·X)ᵀ = Xᵀ·B, B being symmetric
      gemm(context, cols, rows, rows, x, rows, 1, square, rows, 1, next, rows, true);
    else
      gemm(context, rows, cols, rows, square, rows, 1, x, cols, 1, next, cols, true);
    std::swap(x, next);
  }
  const auto size = static_cast<float>(-u.lr * 0.2 * std::sqrt(static_cast<double>(cols)));
  for_chunks(context, n, [&](std::size_t at, std::size_t count) {
    f.scale(u.shrink, w + at, count);
    f.axpy(size, x + at, w + at, count);
  });
}

}  // namespace bitnet::training
