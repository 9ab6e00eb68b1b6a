// Cases of products with every other form of weights: groups of columns, two planes, int8, activations of 4
// bits, dense ones, embeddings and logits.
#include "backend_cases.hpp"

namespace bitnet::conformance {
namespace {

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

}  // namespace

void add_weight_forms(std::vector<Case>& cases) {
  add_extended(cases);
  add_dense(cases);
  add_heads(cases);
}

}  // namespace bitnet::conformance
