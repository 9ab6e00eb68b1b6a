// The conformance table of backends: every op × shape, and every backend that is not the CPU's must give the
// CPU's bits (of an instruction set with fused multiply-adds), whatever its kernels make use of. What the
// CPU's own bits should be is tested against plain definitions in bitnet-inference and bitnet-quant. A new op
// or shape is a line of cases(); a new backend is a line of backends().
#include <gtest/gtest.h>

#include <cfloat>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "bitnet/core/device/registry.hpp"
#include "bitnet/core/f32_kernels.hpp"
#include "bitnet/core/rng.hpp"
#include "bitnet/gpu/register.hpp"
#include "bitnet/inference/register.hpp"
#include "bitnet/testing/isa_class.hpp"
#include "bitnet/testing/opencl.hpp"
#include "bitnet/testing/testing.hpp"

namespace bitnet {
namespace {

constexpr float kEps = 1e-5f;
constexpr std::size_t kBefore = 20, kAfter = 12;  // floats around every matrix, which must stay as they are
constexpr float kMark = -7.5f;

/// Under a simulator of devices (oclgrind.sh), which takes a microsecond for an operation: the large shapes
/// are left out. Every kernel and every edge is in the small ones, too.
bool simulated() {
  static const bool yes = std::getenv("BITNET_TEST_SIMULATED") != nullptr;
  return yes;
}
bool too_large(std::int64_t operations) { return simulated() && operations > 40'000; }

/// What a case does on a backend: inputs of its own from a seed, an op, and everything that the op can reach.
class Run {
 public:
  explicit Run(Backend& on, std::uint64_t seed) : backend(on), rng(seed) {}

  Backend& backend;
  Rng rng;

  std::vector<float> normals(std::int64_t n, float spread = 1) {
    std::vector<float> v(static_cast<std::size_t>(n));
    for (float& x : v) x = spread * static_cast<float>(rng.normal());
    return v;
  }
  /// A matrix inside a larger buffer, watched to the end.
  Matrix matrix(std::int64_t rows, std::int64_t cols, const std::vector<float>& values) {
    std::vector<float> all(kBefore, kMark);
    all.insert(all.end(), values.begin(), values.end());
    all.insert(all.end(), kAfter, kMark);
    return {buffer(all).get(), kBefore * sizeof(float), rows, cols};
  }
  Matrix random(std::int64_t rows, std::int64_t cols, float spread = 1) {
    return matrix(rows, cols, normals(rows * cols, spread));
  }
  BufferPtr buffer(const std::vector<float>& values) {
    buffers_.push_back(backend.allocate(values.size() * sizeof(float)));
    backend.upload(*buffers_.back(), 0, std::as_bytes(std::span(values)));
    return buffers_.back();
  }
  PreparedPtr ternary(std::int64_t out, std::int64_t in, std::int64_t rows_per_scale) {
    std::vector<std::int8_t> trits(static_cast<std::size_t>(out * in));
    for (std::int8_t& t : trits) t = static_cast<std::int8_t>(rng.below(3)) - 1;
    std::vector<float> scales(static_cast<std::size_t>((out - 1) / rows_per_scale + 1));
    for (float& s : scales) s = static_cast<float>(0.01 + rng.uniform());
    LinearWeights w{.out = out,
                    .in = in,
                    .trits = trits,
                    .scales = scales,
                    .rows_per_scale = rows_per_scale,
                    .dense = {}};
    return keep(backend.prepare(w));
  }
  /// One plane or two with scales of groups of `cols` columns (0: of whole rows, of three together),
  /// multiplied with rows that are quantised in this form.
  PreparedPtr extended(std::int64_t out, std::int64_t in, std::int64_t cols, bool two, ActivationForm form) {
    std::vector<std::int8_t> trits[2];
    std::vector<float> scales[2];
    LinearWeights w[2];
    for (int i = 0; i < 2; ++i) {
      trits[i].resize(static_cast<std::size_t>(out * in));
      for (std::int8_t& t : trits[i]) t = static_cast<std::int8_t>(rng.below(3)) - 1;
      scales[i].resize(static_cast<std::size_t>(cols != 0 ? out * (in / cols) : (out - 1) / 3 + 1));
      for (float& v : scales[i]) v = static_cast<float>(0.01 + rng.uniform());
      w[i].out = out;
      w[i].in = in;
      w[i].trits = trits[i];
      w[i].scales = scales[i];
      w[i].rows_per_scale = cols != 0 ? 1 : 3;
      w[i].cols_per_scale = cols;
    }
    if (two) w[0].second = std::make_shared<const LinearWeights>(w[1]);
    w[0].activations = form;
    return keep(backend.prepare(w[0]));
  }
  PreparedPtr dense(std::int64_t out, std::int64_t in, DType type, bool table,
                    DenseForm form = DenseForm::kAsGiven,
                    ActivationForm activations = ActivationForm::kInt8) {
    const std::vector<float> values = normals(out * in, 0.3f);
    std::vector<std::uint16_t> narrow;
    for (const float v : values) narrow.push_back(type == DType::kF16 ? f32_to_f16(v) : f32_to_bf16(v));
    LinearWeights w{.out = out, .in = in, .trits = {}, .scales = {}, .dense = {}};
    w.dense = type == DType::kF32 ? std::as_bytes(std::span(values)) : std::as_bytes(std::span(narrow));
    w.dense_type = type;
    w.dense_form = form;
    w.activations = activations;
    return keep(table ? backend.prepare_embedding(w) : backend.prepare(w));
  }

  /// top(), its columns and values among the results.
  void top(Matrix x, std::int64_t k) {
    std::vector<TopValue> out(static_cast<std::size_t>(x.rows * k));
    backend.top(x, k, out);
    for (const TopValue& v : out) {
      others_.push_back(static_cast<float>(v.column));
      others_.push_back(v.value + 0.0f);
    }
  }

  /// All buffers of floats but those that an op may leave as it likes.
  std::vector<float> results() {
    std::vector<float> all = others_;
    for (const BufferPtr& b : buffers_) {
      if (std::find(scratch_.begin(), scratch_.end(), b.get()) != scratch_.end()) continue;
      std::vector<float> one(b->bytes() / sizeof(float));
      backend.download(*b, 0, std::as_writable_bytes(std::span(one)));
      all.insert(all.end(), one.begin(), one.end());
    }
    return all;
  }
  /// Marks what lies in a buffer as unspecified.
  Matrix scratch(Matrix m) {
    scratch_.push_back(m.buffer);
    return m;
  }

 private:
  PreparedPtr keep(PreparedPtr p) { return weights_.emplace_back(std::move(p)); }
  std::vector<BufferPtr> buffers_;
  std::vector<float> others_;
  std::vector<const Buffer*> scratch_;
  std::vector<PreparedPtr> weights_;
};

struct Case {
  std::string name;
  std::function<void(Run&)> body;
};

using Weights = std::vector<const PreparedWeights*>;

/// Rows that a quantiser must take care of, after `ordinary` ones.
std::vector<float> awkward_rows(Run& r, std::int64_t ordinary, std::int64_t cols) {
  std::vector<float> x = r.normals(ordinary * cols);
  const auto add = [&](float v) { x.insert(x.end(), static_cast<std::size_t>(cols), v); };
  add(0.0f);
  add(-0.0f);
  add(9e-6f);
  add(FLT_MIN / 4);
  add(FLT_MAX);
  std::vector<float> row = r.normals(cols);
  for (const float bad : {std::nanf(""), HUGE_VALF, -HUGE_VALF}) {
    row[static_cast<std::size_t>(cols / 2)] = bad;
    x.insert(x.end(), row.begin(), row.end());
  }
  for (const float magnitude : {1e-30f, 1e-6f, 1e-5f, 1e6f, 1e18f}) {
    const std::vector<float> scaled = r.normals(cols, magnitude);
    x.insert(x.end(), scaled.begin(), scaled.end());
  }
  return x;
}
constexpr std::int64_t kAwkward = 13;

struct Shape {
  std::int64_t rows, out, in;
};
constexpr Shape kShapes[] = {{1, 1, 1},     {1, 5, 15},    {1, 64, 256},   {2, 33, 17},   {3, 16, 16},
                             {4, 130, 100}, {5, 63, 257},  {7, 193, 2563}, {9, 47, 1000}, {300, 20, 40},
                             {9, 37, 70},   {17, 17, 130}, {17, 17, 300},  {33, 1, 4097}, {130, 65, 1000}};

std::string text(const Shape& s) {
  return std::to_string(s.rows) + " rows, " + std::to_string(s.out) + " x " + std::to_string(s.in);
}

void add_linears(std::vector<Case>& cases) {
  for (const Shape s : kShapes) {
    if (too_large(s.rows * s.out * s.in)) continue;
    cases.push_back({"linear, " + text(s), [s](Run& r) {
                       const auto w = r.ternary(s.out, s.in, s.out),
                                  v = r.ternary(s.out + 3, s.in, 1 + s.out / 3);
                       const Matrix x = r.random(s.rows, s.in);
                       const Matrix outs[] = {r.random(s.rows, s.out), r.random(s.rows, s.out + 3)};
                       r.backend.linear(Weights{w.get(), v.get()}, x, outs);
                     }});
    cases.push_back({"norm_linear, " + text(s), [s](Run& r) {
                       const auto w = r.ternary(s.out, s.in, 1);
                       const Matrix x = r.random(s.rows, s.in), normed = r.scratch(r.random(s.rows, s.in));
                       const Matrix outs[] = {r.random(s.rows, s.out)};
                       r.backend.norm_linear(Weights{w.get()}, x, *r.buffer(r.normals(s.in)), kEps, normed,
                                             outs);
                     }});
    for (const Activation f : {Activation::kRelu2, Activation::kSilu}) {
      for (const bool norm : {false, true}) {
        const std::string name =
            "gated_linear, " + std::string(to_string(f)) + (norm ? ", norm, " : ", ") + text(s);
        cases.push_back({name, [s, f, norm](Run& r) {
                           const auto w = r.ternary(s.out, s.in, s.out);
                           const Matrix gate = r.scratch(r.random(s.rows, s.in, 3)),
                                        up = r.random(s.rows, s.in);
                           const BufferPtr weight = r.buffer(r.normals(s.in));
                           r.backend.gated_linear(f, gate, up, norm ? weight.get() : nullptr, kEps, *w,
                                                  r.random(s.rows, s.out));
                         }});
      }
    }
  }
  cases.push_back({"linear, rows of all kinds", [](Run& r) {
                     const auto w = r.ternary(40, 70, 40);
                     const Matrix x = r.matrix(3 + kAwkward, 70, awkward_rows(r, 3, 70));
                     const Matrix outs[] = {r.random(3 + kAwkward, 40)};
                     r.backend.linear(Weights{w.get()}, x, outs);
                   }});
  cases.push_back({"norm_linear, rows of all kinds", [](Run& r) {
                     const auto w = r.ternary(40, 70, 40);
                     const Matrix x = r.matrix(3 + kAwkward, 70, awkward_rows(r, 3, 70));
                     const Matrix outs[] = {r.random(3 + kAwkward, 40)};
                     r.backend.norm_linear(Weights{w.get()}, x, *r.buffer(r.normals(70)), kEps, r.scratch(x),
                                           outs);
                   }});
  cases.push_back({"linear, 1 x 1, a division a row", [](Run& r) {
                     const auto w = r.ternary(1, 1, 1);
                     std::vector<float> x;
                     for (int i = 0; i < (simulated() ? 20 : 3000); ++i)
                       x.push_back(static_cast<float>(std::exp(r.rng.normal() * 10)));
                     for (int i = 1; i <= (simulated() ? 20 : 500); ++i) x.push_back(static_cast<float>(i));
                     const auto n = static_cast<std::int64_t>(x.size());
                     const Matrix outs[] = {r.random(n, 1)};
                     r.backend.linear(Weights{w.get()}, r.matrix(n, 1, x), outs);
                   }});
}

// What a backend may do in fewer steps: a product and the addition of its result, in the order of a
// transformer.
void add_residuals(std::vector<Case>& cases) {
  for (const Shape s : {Shape{1, 33, 70}, {3, 64, 48}, {9, 5, 100}, {300, 20, 40}}) {
    if (too_large(s.rows * s.out * s.in)) continue;
    cases.push_back({"linear and add, " + text(s), [s](Run& r) {
                       const auto w = r.ternary(s.out, s.in, 1), v = r.ternary(s.out, s.in, s.out);
                       const Matrix x = r.random(s.rows, s.in), residual = r.random(s.rows, s.out);
                       const Matrix y = r.random(s.rows, s.out), z = r.random(s.rows, s.out);
                       const BufferPtr norm = r.buffer(r.normals(s.in));
                       const Matrix normed = r.scratch(r.random(s.rows, s.in));
                       r.backend.linear(Weights{w.get()}, x, {&y, 1});
                       r.backend.add(residual, y);
                       r.backend.norm_linear(Weights{v.get()}, x, *norm, kEps, normed, {&y, 1});
                       r.backend.add(residual, y);
                       r.backend.add(residual, y);
                       const Matrix both[] = {y, z};
                       r.backend.linear(Weights{w.get(), v.get()}, x, both);
                       r.backend.add(residual, z);
                       r.backend.linear(Weights{w.get()}, x, {&y, 1});
                       r.backend.add(y, residual);  // the other way round
                       r.backend.gated_linear(Activation::kRelu2, r.scratch(r.random(s.rows, s.in)), x,
                                              norm.get(), kEps, *v, z);
                       r.backend.add(residual, z);
                       r.backend.linear(Weights{v.get()}, x, {&z, 1});  // held back by some, to the end
                     }});
    if (s.rows == 1) continue;
    cases.push_back({"linear and add of some rows, " + text(s), [s](Run& r) {
                       const auto w = r.ternary(s.out, s.in, 1);
                       const Matrix x = r.random(s.rows, s.in), residual = r.random(s.rows, s.out);
                       const Matrix y = r.random(s.rows, s.out);
                       r.backend.linear(Weights{w.get()}, x, {&y, 1});
                       Matrix some = y, to = residual;
                       some.rows = to.rows = s.rows - 1;
                       r.backend.add(to, some);
                     }});
  }
}

void add_extended(std::vector<Case>& cases) {
  struct Extended {
    Shape shape;
    std::int64_t cols;
  };
  for (const Extended& e : {Extended{{1, 5, 15}, 5},
                            {{1, 64, 256}, 32},
                            {{2, 33, 64}, 16},
                            {{3, 16, 34}, 1},
                            {{4, 130, 96}, 48},
                            {{5, 63, 258}, 129},
                            {{9, 47, 1000}, 8},
                            {{300, 20, 40}, 10},
                            {{1, 17, 70}, 0},
                            {{9, 37, 530}, 0}}) {
    const Shape s = e.shape;
    if (too_large(2 * s.rows * s.out * s.in)) continue;
    for (const bool two : {false, true}) {
      for (const ActivationForm form :
           {ActivationForm::kInt8, ActivationForm::kInt4Absmax, ActivationForm::kInt4Absmean}) {
        const std::string name = text(s) + ", groups of " + std::to_string(e.cols) +
                                 (two ? ", two planes" : "") + ", form " + std::to_string(int(form));
        cases.push_back({"extended linear, " + name, [s, e, two, form](Run& r) {
                           const auto w = r.extended(s.out, s.in, e.cols, two, form);
                           const auto v = r.ternary(s.out + 3, s.in, 1 + s.out / 3);
                           const Matrix x = r.random(s.rows, s.in), y = r.random(s.rows, s.out);
                           const Matrix outs[] = {y, r.random(s.rows, s.out + 3)};
                           r.backend.linear(Weights{w.get(), v.get()}, x, outs);
                           r.backend.add(r.random(s.rows, s.out), y);
                           const BufferPtr norm = r.buffer(r.normals(s.in));
                           r.backend.norm_linear(Weights{w.get()}, x, *norm, kEps,
                                                 r.scratch(r.random(s.rows, s.in)), {&y, 1});
                           const Matrix gate = r.scratch(r.random(s.rows, s.in, 3));
                           r.backend.gated_linear(Activation::kSilu, gate, x, norm.get(), kEps, *w,
                                                  r.random(s.rows, s.out));
                         }});
      }
    }
  }
  for (const ActivationForm form :
       {ActivationForm::kInt8, ActivationForm::kInt4Absmax, ActivationForm::kInt4Absmean}) {
    const std::string name = ", form " + std::to_string(int(form));
    cases.push_back({"extended linear, rows of all kinds" + name, [form](Run& r) {
                       const auto w = r.extended(40, 70, 35, true, form),
                                  v = r.extended(40, 70, 0, false, form);
                       const Matrix x = r.matrix(3 + kAwkward, 70, awkward_rows(r, 3, 70));
                       const Matrix outs[] = {r.random(3 + kAwkward, 40), r.random(3 + kAwkward, 40)};
                       r.backend.linear(Weights{w.get(), v.get()}, x, outs);
                     }});
    for (const Shape s : {Shape{1, 5, 15}, {3, 33, 130}, {300, 20, 17}}) {
      if (too_large(s.rows * s.out * s.in)) continue;
      cases.push_back({"linear as int8, " + text(s) + name, [s, form](Run& r) {
                         const auto w = r.dense(s.out, s.in, DType::kF32, false, DenseForm::kInt8, form),
                                    v = r.dense(s.out, s.in, DType::kBF16, false);
                         const Matrix x = r.random(s.rows, s.in), y = r.random(s.rows, s.out);
                         const Matrix outs[] = {y, r.random(s.rows, s.out)};
                         r.backend.linear(Weights{w.get(), v.get()}, x, outs);
                         r.backend.gated_linear(Activation::kRelu2, r.scratch(r.random(s.rows, s.in)), x,
                                                nullptr, kEps, *w, y);
                       }});
    }
  }
}

void add_dense(std::vector<Case>& cases) {
  for (const DType type : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (const Shape s : {Shape{1, 5, 15}, {1, 64, 256}, {3, 33, 130}, {9, 47, 1000}}) {
      if (too_large(s.rows * s.out * s.in)) continue;
      const std::string name = std::string(to_string(type)) + ", " + text(s);
      cases.push_back({"linear, " + name, [s, type](Run& r) {
                         const auto w = r.dense(s.out, s.in, type, false),
                                    v = r.dense(s.out, s.in, type, false);
                         const Matrix outs[] = {r.random(s.rows, s.out), r.random(s.rows, s.out)};
                         r.backend.linear(Weights{w.get(), v.get()}, r.random(s.rows, s.in), outs);
                       }});
      cases.push_back({"norm_linear and gated_linear, " + name, [s, type](Run& r) {
                         const auto w = r.dense(s.out, s.in, type, false);
                         const Matrix x = r.random(s.rows, s.in), normed = r.scratch(r.random(s.rows, s.in));
                         const Matrix outs[] = {r.random(s.rows, s.out)};
                         const BufferPtr norm = r.buffer(r.normals(s.in));
                         r.backend.norm_linear(Weights{w.get()}, x, *norm, kEps, normed, outs);
                         r.backend.gated_linear(Activation::kSilu, r.scratch(r.random(s.rows, s.in)), x,
                                                norm.get(), kEps, *w, r.random(s.rows, s.out));
                       }});
    }
  }
}

void add_heads(std::vector<Case>& cases) {
  for (const DType type : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (const DenseForm form : {DenseForm::kAsGiven, DenseForm::kInt8, DenseForm::kF16}) {
      for (const Shape s : {Shape{6, 40, 35}, {8, 130, 256}, {300, 20, 17}}) {
        if (too_large(s.rows * s.out * s.in)) continue;
        const std::string name = std::string(to_string(type)) + " as " +
                                 (form == DenseForm::kInt8  ? "int8"
                                  : form == DenseForm::kF16 ? "f16"
                                                            : "given") +
                                 ", " + text(s);
        cases.push_back({"embed, " + name, [=](Run& r) {
                           const auto table = r.dense(s.out, s.in, type, true, form);
                           std::vector<std::int32_t> ids;
                           for (std::int64_t i = 0; i < s.rows; ++i)
                             ids.push_back(
                                 static_cast<std::int32_t>(r.rng.below(static_cast<std::uint64_t>(s.out))));
                           r.backend.embed(*table, ids, r.random(s.rows, s.in));
                         }});
        cases.push_back({"logits, " + name, [=](Run& r) {
                           const auto head = r.dense(s.out, s.in, type, true, form);
                           const Matrix hidden = r.random(s.rows, s.in);
                           const std::vector<std::int32_t> one{static_cast<std::int32_t>(s.rows - 1)},
                               some{0, 1, 4, 2, 3, 3};
                           std::vector<std::int32_t> all;
                           for (std::int64_t i = 0; i < s.rows; ++i)
                             all.push_back(static_cast<std::int32_t>(i));
                           for (const auto& rows : {one, some, all})
                             r.backend.logits(*head, hidden, rows,
                                              r.random(static_cast<std::int64_t>(rows.size()), s.out));
                         }});
      }
    }
  }
  cases.push_back({"logits, int8, rows of all kinds", [](Run& r) {
                     const auto head = r.dense(40, 70, DType::kF32, true, DenseForm::kInt8);
                     const Matrix hidden = r.matrix(3 + kAwkward, 70, awkward_rows(r, 3, 70));
                     std::vector<std::int32_t> rows;
                     for (std::int32_t i = 0; i < 3 + kAwkward; ++i) rows.push_back(i);
                     r.backend.logits(*head, hidden, rows, r.random(3 + kAwkward, 40));
                   }});
}

void add_row_ops(std::vector<Case>& cases) {
  for (const auto& [rows, cols] :
       {std::pair<std::int64_t, std::int64_t>{1, 1}, {1, 256}, {3, 15}, {5, 70}, {2, 2563}, {300, 17}}) {
    const std::int64_t n = rows, c = cols;
    if (too_large(20 * n * c)) continue;
    const std::string name = "[" + std::to_string(rows) + ", " + std::to_string(cols) + "]";
    cases.push_back({"rms_norm " + name, [=](Run& r) {
                       const Matrix x = r.random(n, c, 4);
                       const BufferPtr weight = r.buffer(r.normals(c));
                       r.backend.rms_norm(x, *weight, kEps, r.random(n, c));
                       r.backend.rms_norm(x, *weight, kEps, x);
                     }});
    cases.push_back({"add " + name, [=](Run& r) { r.backend.add(r.random(n, c), r.random(n, c)); }});
    for (const Activation f : {Activation::kRelu2, Activation::kSilu})
      cases.push_back({"gated_activation, " + std::string(to_string(f)) + " " + name, [=](Run& r) {
                         const Matrix gate = r.random(n, c, 10), up = r.random(n, c);
                         r.backend.gated_activation(f, gate, up, r.random(n, c));
                         r.backend.gated_activation(f, gate, up, gate);
                       }});
  }
  cases.push_back({"rms_norm, rows of all kinds", [](Run& r) {
                     const Matrix x = r.matrix(3 + kAwkward, 70, awkward_rows(r, 3, 70));
                     r.backend.rms_norm(x, *r.buffer(r.normals(70)), kEps, r.random(3 + kAwkward, 70));
                   }});
  cases.push_back({"gated_activation, values of all kinds", [](Run& r) {
                     const Matrix gate = r.matrix(3 + kAwkward, 70, awkward_rows(r, 3, 70));
                     const Matrix up = r.random(3 + kAwkward, 70);
                     r.backend.gated_activation(Activation::kSilu, gate, up, r.random(3 + kAwkward, 70));
                     r.backend.gated_activation(Activation::kRelu2, gate, up, r.random(3 + kAwkward, 70));
                   }});
  for (const auto& [heads, dim] :
       {std::pair<std::int64_t, std::int64_t>{1, 2}, {4, 10}, {3, 64}, {20, 128}}) {
    const std::int64_t h = heads, d = dim;
    cases.push_back({"rope, " + std::to_string(h) + " heads of " + std::to_string(d), [=](Run& r) {
                       const std::vector<std::int32_t> positions{0, 17, 3, 3, 31};
                       r.backend.rope(r.random(5, h * d), positions, *r.buffer(r.normals(32 * d)), d);
                     }});
  }
}

void add_top(std::vector<Case>& cases) {
  constexpr std::int64_t kShape[][3] = {{1, 1, 1},      {3, 100, 1},     {2, 1000, 40}, {1, 1024, 512},
                                        {3, 5000, 104}, {1, 70000, 512}, {2, 700, 600}, {1, 20, 20}};
  for (const auto& [rows, cols, k] : kShape) {
    const std::int64_t r0 = rows, c = cols, most = k;
    if (too_large(8 * r0 * c)) continue;
    cases.push_back(
        {"top " + std::to_string(k) + " of [" + std::to_string(rows) + ", " + std::to_string(cols) + "]",
         [=](Run& r) {
           r.top(r.random(r0, c), most);
           std::vector<float> ties = r.normals(r0 * c, 2);
           for (float& v : ties) v = std::nearbyint(v);  // zeros of both signs among them
           r.top(r.matrix(r0, c, ties), most);
         }});
  }
  cases.push_back({"top of rows of all kinds",
                   [](Run& r) { r.top(r.matrix(3 + kAwkward, 70, awkward_rows(r, 3, 70)), 20); }});
}

struct AttentionCase {
  std::int64_t heads, kv_heads, dim, page_size;
};

/// Three sequences, with prompts that end inside and behind tiles of 128 keys, then steps of one token and of
/// several, and rows that are stored but not queried.
void run_attention(Run& r, const AttentionCase& c, DType type) {
  constexpr std::int64_t kTokens[] = {150, 3, 270};
  std::vector<std::vector<std::int32_t>> pages(3);
  std::int64_t n_pages = 0;
  for (std::size_t s = 0; s < 3; ++s)
    for (std::int64_t t = 0; t < kTokens[s] + 8; t += c.page_size)
      pages[s].push_back(static_cast<std::int32_t>(n_pages++));
  for (auto& p : pages) {
    for (auto& page : p) page = static_cast<std::int32_t>(n_pages - 1) - page;
  }
  const std::size_t bytes =
      static_cast<std::size_t>(n_pages) * kv_page_bytes(type, c.page_size, c.kv_heads, c.dim);
  // Memory that others have used: nothing may depend on what was there.
  const BufferPtr keys = r.backend.allocate(bytes), values = r.backend.allocate(bytes);
  const std::vector<std::byte> garbage(bytes, std::byte{0xff});
  r.backend.upload(*keys, 0, garbage);
  r.backend.upload(*values, 0, garbage);
  const KvLayer cache{keys.get(), values.get(), n_pages, c.page_size, type};
  const BufferPtr angles = r.buffer(r.normals(32 * c.dim));
  std::int64_t past[] = {0, 0, 0};
  const std::vector<std::int64_t> steps[] = {{150, 0, 97}, {0, 3, 173}, {1, 1, 1}, {5, 0, 1}};
  for (const auto& step : steps) {
    std::vector<SequenceSlice> slices, queries;
    std::int64_t rows = 0, asked = 0;
    for (std::size_t s = 0; s < 3; ++s) {
      if (step[s] == 0) continue;
      slices.push_back({rows, step[s], past[s], pages[s]});
      const std::int64_t from =
          step[s] > 3 ? step[s] - 3 : 0;  // the last three rows are asked for, too, alone
      queries.push_back({asked, step[s] - from, past[s] + from, pages[s]});
      rows += step[s];
      asked += step[s] - from;
      past[s] += step[s];
    }
    const Matrix k = r.random(rows, c.kv_heads * c.dim), v = r.random(rows, c.kv_heads * c.dim);
    // Queries and keys rotated in front, as in a step, in every second one: a backend may do both at once.
    const auto rope = [&](const Matrix& m, std::int32_t from) {
      if (c.dim % 2 != 0 || rows % 2 == 0) return;
      std::vector<std::int32_t> positions;
      for (std::int64_t i = 0; i < m.rows; ++i)
        positions.push_back((from + static_cast<std::int32_t>(i)) % 32);
      r.backend.rope(m, positions, *angles, c.dim);
    };
    if (!too_large(100 * rows * c.heads * c.dim)) {
      const Matrix q = r.random(rows, c.heads * c.dim), out = r.random(rows, c.heads * c.dim);
      rope(q, 3);
      rope(k, 3);
      r.backend.attention({q, k, v, out, cache, slices, c.heads, c.kv_heads, c.dim});
    }
    if (asked == rows) continue;
    const Matrix few = r.random(asked, c.heads * c.dim), to = r.random(asked, c.heads * c.dim);
    rope(few, 7);
    rope(k, 5);
    r.backend.attention({few, k, v, to, cache, slices, c.heads, c.kv_heads, c.dim, queries});
  }
}

/// One sequence of a long context and many others: their prompts together, then a token of each, twice.
void run_long_attention(Run& r, DType type) {
  constexpr std::int64_t kHeads = 6, kKvHeads = 2, kDim = 32, kPageSize = 16, kOthers = 40, kLong = 1700;
  std::vector<std::int64_t> prompts{kLong};
  for (std::int64_t s = 0; s < kOthers; ++s) prompts.push_back(1 + 37 * s % 150);
  std::vector<std::vector<std::int32_t>> pages(prompts.size());
  std::int32_t n_pages = 0;
  for (std::size_t s = 0; s < prompts.size(); ++s)
    for (std::int64_t t = 0; t < prompts[s] + 2; t += kPageSize) pages[s].push_back(n_pages++);
  const std::size_t bytes =
      static_cast<std::size_t>(n_pages) * kv_page_bytes(type, kPageSize, kKvHeads, kDim);
  const BufferPtr keys = r.backend.allocate(bytes), values = r.backend.allocate(bytes);
  const KvLayer cache{keys.get(), values.get(), n_pages, kPageSize, type};
  for (const std::int64_t step : {0, 1, 2}) {
    std::vector<SequenceSlice> slices, last;
    std::int64_t rows = 0;
    for (std::size_t s = 0; s < prompts.size(); ++s) {
      const std::int64_t past = step == 0 ? 0 : prompts[s] + step - 1, n = step == 0 ? prompts[s] : 1;
      slices.push_back({rows, n, past, pages[s]});
      last.push_back({static_cast<std::int64_t>(s), 1, past + n - 1, pages[s]});
      rows += n;
    }
    const auto asked = static_cast<std::int64_t>(prompts.size());
    const Matrix k = r.random(rows, kKvHeads * kDim), v = r.random(rows, kKvHeads * kDim);
    const Matrix q = r.random(asked, kHeads * kDim), out = r.random(asked, kHeads * kDim);
    r.backend.attention({q, k, v, out, cache, slices, kHeads, kKvHeads, kDim, last});
  }
}

void add_attention(std::vector<Case>& cases) {
  for (const DType type : {DType::kF32, DType::kF16, DType::kI8}) {
    if (simulated()) continue;
    cases.push_back(
        {"attention, all kinds of sequences, a long one among them, " + std::string(to_string(type)),
         [type](Run& r) { run_long_attention(r, type); }});
  }
  constexpr AttentionCase kCases[] = {
      {4, 1, 64, 16}, {6, 2, 32, 48}, {3, 3, 10, 5}, {2, 1, 144, 16}, {20, 5, 128, 16}};
  for (const AttentionCase& c : kCases) {
    if (too_large(100 * c.heads * c.dim)) continue;
    for (const DType type : {DType::kF32, DType::kF16, DType::kI8})
      cases.push_back({"attention, " + std::string(to_string(type)) + ", " + std::to_string(c.heads) +
                           " of " + std::to_string(c.kv_heads) + " heads of " + std::to_string(c.dim) +
                           ", pages of " + std::to_string(c.page_size),
                       [c, type](Run& r) { run_attention(r, c, type); }});
  }
}

std::vector<Case> cases() {
  std::vector<Case> all;
  add_linears(all);
  add_residuals(all);
  add_extended(all);
  add_dense(all);
  add_heads(all);
  add_row_ops(all);
  add_top(all);
  add_attention(all);
  return all;
}

/// An instruction set of this CPU with fused multiply-adds; the best one.
std::optional<Isa> fused_isa() {
  std::optional<Isa> best;
  for (const Isa isa : compiled_isas())
    if (is_supported(isa) && testing::is_fused(f32_kernels(isa))) best = isa;
  return best;
}

std::vector<float> results_of(const Case& c, Backend& backend) {
  Run run(backend, std::hash<std::string>()(c.name));
  c.body(run);
  return run.results();
}

/// The CPU's results of every case, computed once.
const std::vector<std::vector<float>>& expected() {
  static const std::vector<std::vector<float>> all = [] {
    const auto cpu = inference::make_cpu_backend(std::make_shared<const ExecutionContext>(
        ExecutionContext::Options{.threads = 2, .isa = fused_isa()}));
    std::vector<std::vector<float>> results;
    for (const Case& c : cases()) results.push_back(results_of(c, *cpu));
    return results;
  }();
  return all;
}

/// NaNs are equal: their signs and payloads mean nothing.
bool same(float a, float b) { return std::memcmp(&a, &b, sizeof a) == 0 || (std::isnan(a) && std::isnan(b)); }

void expect_conformance(Backend& backend, bool whole) {
  const std::vector<Case> all = cases();
  for (std::size_t i = 0; i < all.size(); ++i) {
    const bool hard = all[i].name.find("all kinds") != std::string::npos ||
                      all[i].name.find("division") != std::string::npos;
    if (!whole && !hard && i % 4 != 0) continue;
    const std::vector<float>& want = expected()[i];
    const std::vector<float> got = results_of(all[i], backend);
    ASSERT_EQ(got.size(), want.size()) << all[i].name;
    std::size_t differ = 0, first = 0;
    for (std::size_t j = 0; j < got.size(); ++j) {
      if (same(got[j], want[j])) continue;
      if (differ++ == 0) first = j;
    }
    EXPECT_EQ(differ, 0u) << all[i].name << ": of " << got.size() << " values; the first, " << first
                          << ", is " << got[first] << " instead of " << want[first];
  }
}

/// Half of the time is the compilation of kernels: variants that share most of their code with another one
/// run every fourth case, and those whose values are the hard ones.
enum class Table : std::uint8_t { kWhole, kFourth };

struct Variant {
  const char* name;
  Table table;
  gpu::Options options;
};

class OpenClConformance : public ::testing::TestWithParam<Variant> {};

TEST_P(OpenClConformance, EveryOpHasTheBitsOfTheCpu) {
  if (!fused_isa()) GTEST_SKIP() << "this CPU has no fused multiply-add";
  BackendRegistry registry;
  gpu::Options options = GetParam().options;
  if (simulated()) options.program_folder.emplace();  // reports name lines of sources, which binaries lack
  gpu::register_backends(registry, options);
  BITNET_REQUIRE_OPENCL_DEVICE(!registry.devices().empty());
  const auto context =
      std::make_shared<const ExecutionContext>(ExecutionContext::Options{.threads = 2, .isa = fused_isa()});
  for (const Device& d : registry.devices()) {
    SCOPED_TRACE(d.name);
    const auto backend = registry.create(d.name, context);
    for (std::size_t op = 0; op < kBackendOpCount; ++op)
      EXPECT_TRUE(backend->supports(static_cast<BackendOp>(op)));
    expect_conformance(*backend, GetParam().table == Table::kWhole);
  }
}

// Names of the extension's functions as the plain ones that every device has.
constexpr const char* kPlainDots =
    "-DBN_DOT_DECLARED=1 -Ddot_4x8packed_su_int=bn_dot4_plain_su -Ddot_4x8packed_ss_int=bn_dot4_plain_ss";

gpu::KernelChoice wide(bool yes) {
  gpu::KernelChoice choice;
  choice.wide = yes;
  return choice;
}
gpu::KernelChoice integer_divide() {
  gpu::KernelChoice choice;
  choice.exact_divide = false;
  return choice;
}
gpu::KernelChoice tiles_of_keys() {
  gpu::KernelChoice choice = wide(true);
  choice.split_attention = true;
  return choice;
}
gpu::KernelChoice byte_dots() {
  gpu::KernelChoice choice = wide(false);
  choice.integer_dot = true;
  choice.split_attention = true;
  return choice;
}

gpu::Options options(std::string build_options, const gpu::KernelChoice& kernels) {
  gpu::Options all;
  all.build_options = std::move(build_options);
  all.kernels = kernels;
  return all;
}

const Variant kVariants[] = {
    {"as_the_device_says", Table::kWhole, {}},
    {"vectors_and_tiles_of_keys", Table::kFourth, options("", tiles_of_keys())},
    {"work_groups", Table::kWhole, options("", wide(false))},
    {"divisions_in_integers_and_32_bytes_a_time", Table::kFourth,
     options("-DBN_MOST_PAIRS=32", integer_divide())},
    {"byte_dots_and_tiles_of_keys_in_work_groups", Table::kFourth, options(kPlainDots, byte_dots())},
    {"OpenCL_C_3_and_no_pairs_of_bytes", Table::kFourth, options("-cl-std=CL3.0 -DBN_MOST_PAIRS=0", {})},
    {"other_work_groups", Table::kFourth,
     options("-DBN_OUT_WG=16 -DBN_QUANT_WG=16 -DBN_ROWS_WG=32 -DBN_ATTENTION_WG=32 -DBN_STORE_WG=8 "
             "-DBN_GEMM_WORDS=3",
             wide(false))},
};

INSTANTIATE_TEST_SUITE_P(Kernels, OpenClConformance, ::testing::ValuesIn(kVariants),
                         [](const auto& variant) { return std::string(variant.param.name); });

}  // namespace
}  // namespace bitnet
