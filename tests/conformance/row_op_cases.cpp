// Cases of ops on single values and on rows: norms, sums, gates, rotations, the largest values.
#include <cmath>

#include "backend_cases.hpp"

namespace bitnet::conformance {
namespace {

void add_rows(std::vector<Case>& cases) {
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

}  // namespace

void add_row_ops(std::vector<Case>& cases) {
  add_rows(cases);
  add_top(cases);
}

}  // namespace bitnet::conformance
