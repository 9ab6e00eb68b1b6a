#pragma once
// Linear algebra of matrices [..., rows, cols]: systems, factorisations, least squares, condition numbers.
// Products are ops::matmul. Leading axes are a batch, each matrix by itself.
//
// Operands are f32, f16 or bf16 of any strides; the work is done in double (Eigen), a matrix on one thread,
// those of a batch on all of the context's, and results are f32 of the context's pool, rounded once. Results
// are the same in every run of one build and for any number of threads; unlike those of ops.hpp they may
// differ in the last bit between processors and compilers. All throw Error(kInvalidArgument), naming the
// function and the shapes or the place: for shapes that do not fit, other dtypes, elements that are not
// finite, results that f32 does not hold, and what each says; Error(kOutOfMemory). Thread-safe.
#include <cstdint>

#include "bitnet/core/execution.hpp"
#include "bitnet/core/tensor.hpp"

namespace bitnet::linalg {

/// A system is refused as singular when the estimate of 1/(‖A‖₁·‖A⁻¹‖₁) is below this: with the default no
/// digit of an f32 input would come through. 0 refuses only matrices that are singular to the bit; other
/// numbers than 0 … 1 are refused themselves.
struct SolveOptions {
  double min_rcond = 0x1p-24;
};

/// x with a·x = b; a [..., n, n], b [..., n, k], or [n] with a [n, n]. LU with partial pivoting. Batches must
/// be the same. Throws Error(kInvalidArgument) "… is singular" with the reciprocal condition, and the batch's
/// index.
Tensor solve(const ExecutionContext& context, const Tensor& a, const Tensor& b,
             const SolveOptions& options = {});

/// a⁻¹ by solve().
Tensor inverse(const ExecutionContext& context, const Tensor& a, const SolveOptions& options = {});

/// The lower triangle l with l·lᵀ = a for a symmetric positive definite a [..., n, n]. Only the lower
/// triangle is read, but a must be symmetric within 1e-5 of its largest element. Throws
/// Error(kInvalidArgument) naming the order of the first leading block that is not positive definite.
Tensor cholesky(const ExecutionContext& context, const Tensor& a);

/// a = q·r; with k = min(rows, cols): q [..., rows, k] orthonormal columns, r [..., k, cols] upper triangular
/// with a diagonal ≥ 0 (Householder).
struct Qr {
  Tensor q, r;
};
Qr qr(const ExecutionContext& context, const Tensor& a);

/// a = u·diag(s)·vt; with k = min(rows, cols): u [..., rows, k], s [..., k] descending ≥ 0, vt [..., k,
/// cols]. Bidiagonal divide and conquer. Signs of pairs of singular vectors are arbitrary.
struct Svd {
  Tensor u, s, vt;
};
Svd svd(const ExecutionContext& context, const Tensor& a);

/// a·vectors = vectors·diag(values) for a symmetric a [..., n, n]: values [..., n] ascending, vectors
/// [..., n, n] orthonormal columns, signs arbitrary. Symmetry as in cholesky().
struct SymmetricEigen {
  Tensor values, vectors;
};
SymmetricEigen symmetric_eigen(const ExecutionContext& context, const Tensor& a);

/// x [..., n, k] or [n] of least ‖a·x − b‖₂ and, among several, of least ‖x‖₂; a [..., m, n], b [..., m, k]
/// or [m]. Singular values below rcond · the largest count as 0: the others are a matrix's rank, i32 [...].
struct LeastSquares {
  Tensor x, rank;
};
LeastSquares least_squares(const ExecutionContext& context, const Tensor& a, const Tensor& b,
                           double rcond = 0x1p-24);

/// σ_max/σ_min of one matrix [rows, cols], from its singular values; ∞ when σ_min is 0; 0 for an empty one.
double condition(const Tensor& a);
/// An estimate of 1/(‖a‖₁·‖a⁻¹‖₁) of one square matrix in O(n²) after LU (Hager 1984; Higham, Accuracy and
/// Stability of Numerical Algorithms, §15.3): never too small, and on random matrices of up to 41 rows never
/// three times too large (linalg_test.cpp); 0 for a singular one, 1 for an empty one.
double rcond_estimate(const Tensor& a);

}  // namespace bitnet::linalg
