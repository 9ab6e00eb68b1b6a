#pragma once
// What a case of the conformance table has on a backend: inputs of its own, and everything that an op can
// reach, which is compared afterwards. The cases are *_cases.cpp.
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "bitnet/core/device/backend.hpp"
#include "bitnet/core/rng.hpp"

namespace bitnet::conformance {

inline constexpr float kEps = 1e-5f;
inline constexpr std::size_t kBefore = 20,
                             kAfter = 12;  // floats around every matrix, which must stay as they are
inline constexpr float kMark = -7.5f;

/// Under a simulator of devices (oclgrind.sh), which takes a microsecond for an operation: the large shapes
/// are left out. Every kernel and every edge is in the small ones, too.
bool simulated();
bool too_large(std::int64_t operations);

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

struct Shape {
  std::int64_t rows, out, in;
};
std::string text(const Shape& s);

/// Rows that a quantiser must take care of, after `ordinary` ones.
std::vector<float> awkward_rows(Run& r, std::int64_t ordinary, std::int64_t cols);
inline constexpr std::int64_t kAwkward = 13;

}  // namespace bitnet::conformance
