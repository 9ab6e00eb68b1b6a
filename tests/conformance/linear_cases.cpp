// Cases of ternary products with one scale a row or more rows: alone, behind a norm or a gate, and with an
// addition behind them.
#include <cmath>

#include "backend_cases.hpp"

namespace bitnet::conformance {
namespace {

constexpr Shape kShapes[] = {{1, 1, 1},     {1, 5, 15},    {1, 64, 256},   {2, 33, 17},   {3, 16, 16},
                             {4, 130, 100}, {5, 63, 257},  {7, 193, 2563}, {9, 47, 1000}, {300, 20, 40},
                             {9, 37, 70},   {17, 17, 130}, {17, 17, 300},  {33, 1, 4097}, {130, 65, 1000}};

void add_products(std::vector<Case>& cases) {
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

}  // namespace

void add_linears(std::vector<Case>& cases) {
  add_products(cases);
  add_residuals(cases);
}

}  // namespace bitnet::conformance
