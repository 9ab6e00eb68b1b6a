#pragma once
// Tensors as Eigen matrices of doubles and back, one of a batch at a time, with the checks that every
// function of linalg.hpp makes. The only place, with the .cpp files beside it, where Eigen is seen.
#include <Eigen/Core>
#include <cmath>
#include <exception>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bitnet/core/execution.hpp"
#include "bitnet/core/f32_kernels.hpp"
#include "bitnet/core/tensor.hpp"
#include "ops/checks.hpp"
#include "ops/convert.hpp"

namespace bitnet::linalg {

using RowMajor = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Matrix = Eigen::MatrixXd;

/// A batch of matrices as contiguous floats, all finite.
class Batch {
 public:
  /// `vector`: whether one axis is allowed, as a column.
  Batch(const ExecutionContext& context, std::string_view op, std::string_view name, const Tensor& t,
        bool vector = false) {
    ops::refuse_ternary(op, t);
    ops::floats_only(op, t);
    const std::size_t rank = t.shape().rank();
    is_vector_ = vector && rank == 1;
    if (rank < 2 && !is_vector_)
      ops::invalid(
          fmt::format("{}: {} is {}, a matrix [..., rows, cols] wanted", op, name, ops::describe(t)));
    rows_ = t.shape()[is_vector_ ? -1 : -2];
    cols_ = is_vector_ ? 1 : t.shape()[-1];
    const auto dims = t.shape().dims();
    batch_.assign(dims.begin(), dims.end() - (is_vector_ ? 1 : 2));
    count_ = Shape(batch_).numel();
    values_ =
        t.dtype() == DType::kF32 ? ops::contiguous(context, t) : ops::converted(context, t, DType::kF32);
    const auto v = std::as_const(values_).span<float>();
    if (!std::isfinite(tested_f32_kernels(context.isa()).max_abs(v.data(), v.size()))) {
      std::size_t i = 0;
      while (std::isfinite(v[i])) ++i;
      ops::invalid(
          fmt::format("{}: {} {} is not finite: element {} is {}", op, name, ops::describe(t), i, v[i]));
    }
    description_ = ops::describe(t);
  }

  std::int64_t count() const { return count_; }
  std::int64_t rows() const { return rows_; }
  std::int64_t cols() const { return cols_; }
  bool is_vector() const { return is_vector_; }
  const std::vector<std::int64_t>& batch() const { return batch_; }
  const std::string& description() const { return description_; }

  Matrix matrix(std::int64_t i) const {
    using Floats = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
    const float* const p = values_.span<float>().data() + i * rows_ * cols_;
    return Eigen::Map<const Floats>(p, rows_, cols_).cast<double>();
  }
  /// "a f32 [2, 3, 3]" and, in a batch, which of it.
  std::string which(std::int64_t i) const {
    return batch_.empty() ? description_ : fmt::format("{}, matrix {} of the batch,", description_, i);
  }

 private:
  Tensor values_;
  std::vector<std::int64_t> batch_;
  std::int64_t count_ = 1, rows_ = 0, cols_ = 0;
  bool is_vector_ = false;
  std::string description_;
};

inline void require_square(std::string_view op, const Batch& a) {
  if (a.rows() != a.cols()) ops::invalid(fmt::format("{}: {}: a square matrix wanted", op, a.description()));
}

/// Symmetric within 1e-5 of the largest element, f32's own rounding of a product of a few hundred terms.
inline void require_symmetric(std::string_view op, const Batch& a, std::int64_t i, const Matrix& m) {
  const double most = m.size() == 0 ? 0 : 1e-5 * m.cwiseAbs().maxCoeff();
  for (Eigen::Index c = 0; c < m.cols(); ++c)
    for (Eigen::Index r = c + 1; r < m.rows(); ++r)
      if (std::fabs(m(r, c) - m(c, r)) > most)
        ops::invalid(fmt::format("{}: {} is not symmetric: element [{}, {}] is {}, [{}, {}] is {}", op,
                                 a.which(i), r, c, m(r, c), c, r, m(c, r)));
}

/// [batch…, dims…]
inline Shape batch_shape(const Batch& like, std::initializer_list<std::int64_t> dims) {
  std::vector<std::int64_t> all = like.batch();
  all.insert(all.end(), dims.begin(), dims.end());
  return Shape(all);
}

/// An f32 tensor [batch…, dims…] to be filled matrix by matrix, from several threads.
class Result {
 public:
  /// `of` must outlive it. `what` names the result in errors.
  Result(const ExecutionContext& context, std::string_view op, std::string_view what, const Batch& of,
         std::initializer_list<std::int64_t> dims)
      : op_(op),
        what_(what),
        of_(of),
        size_(Shape(dims).numel()),
        values_(DType::kF32, batch_shape(of, dims), context.memory()) {}
  /// Row-major; rounds to f32, which must hold every element.
  template <class Derived>
  void set(std::int64_t i, const Eigen::MatrixBase<Derived>& m) {
    float* to = reinterpret_cast<float*>(values_.data()) + i * size_;
    for (Eigen::Index r = 0; r < m.rows(); ++r)
      for (Eigen::Index c = 0; c < m.cols(); ++c) {
        *to = static_cast<float>(m(r, c));
        if (!std::isfinite(*to++))
          ops::invalid(fmt::format("{}: {}: element [{}, {}] of {} is {:.3g}, which f32 does not hold", op_,
                                   of_.which(i), r, c, what_, m(r, c)));
      }
  }
  Tensor take() { return std::move(values_); }

 private:
  std::string_view op_, what_;
  const Batch& of_;
  std::int64_t size_;
  Tensor values_;
};

/// body(i) for every matrix of the batch, on all threads. Of several that throw, the first one's error.
template <class Body>
void for_each_matrix(const ExecutionContext& context, const Batch& batch, Body body) {
  // About 20 µs of arithmetic for another thread: a factorisation takes some n³.
  const double n = static_cast<double>(std::min(batch.rows(), batch.cols()));
  const double work = n * static_cast<double>(batch.rows()) * static_cast<double>(batch.cols());
  std::mutex mutex;
  std::int64_t failed = batch.count();
  std::exception_ptr error;
  context.parallel_for(static_cast<std::size_t>(batch.count()),
                       static_cast<std::size_t>(1 + 2e4 / (work + 1)),
                       [&](std::size_t begin, std::size_t end) {
                         auto i = static_cast<std::int64_t>(begin);
                         try {
                           for (; i < static_cast<std::int64_t>(end); ++i) body(i);
                         } catch (...) {
                           const std::lock_guard lock(mutex);
                           if (i < failed) {
                             failed = i;
                             error = std::current_exception();
                           }
                         }
                       });
  if (error != nullptr) std::rethrow_exception(error);
}

/// Right-hand sides of a system with a: the same batch and a's number of rows.
inline void require_sides(std::string_view op, const Batch& a, const Batch& b) {
  if (b.rows() != a.rows() || b.batch() != a.batch())
    ops::invalid(fmt::format("{}: a {} and b {}: the same batch and number of rows wanted", op,
                             a.description(), b.description()));
}

/// x of a system, [..., cols of a, cols of b], or a vector where b is one.
inline Result solution(const ExecutionContext& context, std::string_view op, const Batch& a, const Batch& b) {
  return b.is_vector() ? Result(context, op, "x", a, {a.cols()})
                       : Result(context, op, "x", a, {a.cols(), b.cols()});
}

}  // namespace bitnet::linalg
