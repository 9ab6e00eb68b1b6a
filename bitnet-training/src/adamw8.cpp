// AdamW with moments of 8 bits: blocks are decoded, updated by the loop of AdamW, and encoded again.
#include <algorithm>
#include <array>
#include <cmath>

#include "bitnet/core/memory/hybrid_memory_pool.hpp"
#include "bitnet/training/optimizer.hpp"
#include "kernels/dispatch.hpp"
#include "optimizer_common.hpp"

namespace bitnet::training {
namespace {

constexpr std::size_t kBlock = 256;
static_assert(kOptimizerChunk % kBlock == 0);

/// 256 ascending values in [−1, 1] or [0, 1] and what lies half-way between neighbours.
struct CodeMap {
  std::array<float, 256> values{};
  std::array<float, 255> borders{};
  bool has_sign;

  /// Seven decades below 1; decade d has 2^d (without sign 2^(d+1)) values, the middles of equal parts of its
  /// upper nine tenths; and 0 and 1.
  explicit CodeMap(bool with_sign) : has_sign(with_sign) {
    std::size_t n = 0;
    for (int decade = 0; decade < 7; ++decade) {
      const int parts = 1 << (with_sign ? decade : decade + 1);
      for (int i = 0; i < parts; ++i) {
        const double middle = (0.1 + 0.9 * (i + 0.5) / parts) * std::pow(10.0, decade - 6);
        values[n++] = static_cast<float>(middle);
        if (with_sign) values[n++] = static_cast<float>(-middle);
      }
    }
    values[n++] = 0;
    values[n++] = 1;
    std::sort(values.begin(), values.end());
    for (std::size_t i = 0; i < borders.size(); ++i) borders[i] = 0.5f * (values[i] + values[i + 1]);
  }

  void decode(const std::uint8_t* codes, float scale, float* x, std::size_t n) const {
    for (std::size_t i = 0; i < n; ++i) x[i] = values[codes[i]] * scale;
  }
  /// Returns the block's scale.
  float encode(const float* x, std::uint8_t* codes, std::size_t n) const {
    float largest = 0;
    for (std::size_t i = 0; i < n; ++i) largest = std::max(largest, std::abs(x[i]));
    const float inv = largest > 0 ? 1.0f / largest : 0.0f;
    for (std::size_t i = 0; i < n; ++i) {
      const auto at = std::lower_bound(borders.begin(), borders.end(), x[i] * inv) - borders.begin();
      codes[i] = static_cast<std::uint8_t>(at);
      if (!has_sign && at == 0 && x[i] > 0) codes[i] = 1;
    }
    return largest;
  }
};

const CodeMap& first_map() {
  static const CodeMap map(true);
  return map;
}
const CodeMap& second_map() {
  static const CodeMap map(false);
  return map;
}

}  // namespace

AdamW8::AdamW8(const ExecutionContext& context, std::span<Parameter* const> parameters,
               const AdamWOptions& options)
    : Optimizer(context, parameters), options_(options) {
  for (const Parameter* p : parameters) {
    const std::size_t n = p->value().size();
    for (auto* moments : {&m_, &v_}) {
      Codes codes{MemoryArray<std::uint8_t>(memory(), n, "optimizer", 64),
                  MemoryArray<float>(memory(), (n + kBlock - 1) / kBlock, "optimizer")};
      // Scales are 0, and so are the moments whatever the codes.
      moments->push_back(std::move(codes));
    }
  }
}

std::vector<OptimizerState> AdamW8::state() {
  std::vector<OptimizerState> all;
  for (std::size_t i = 0; i < m_.size(); ++i) {
    const Parameter& p = *parameters()[i];
    const auto add = [&](const char* kind, const Codes& c) {
      all.push_back(
          {kind + ("/" + p.name()), std::as_writable_bytes(c.codes.span()), false, {p.rows(), p.cols()}});
      all.push_back({kind + ("_scale/" + p.name()),
                     std::as_writable_bytes(c.scales.span()),
                     true,
                     {static_cast<std::int64_t>(c.scales.size())}});
    };
    add("moment1", m_[i]);
    add("moment2", v_[i]);
  }
  return all;
}

void AdamW8::update(const ExecutionContext& context, std::size_t i, const Update& u) {
  Parameter& p = *parameters()[i];
  const TrainKernels& k = train_kernels(context.isa());
  const TrainKernels::AdamW a = adamw_constants(options_, steps(), u.lr, u.shrink, u.g_scale);
  const CodeMap &first = first_map(), &second = second_map();
  float *g = p.grad().data(), *w = p.value().data();
  for_chunks(context, p.value().size(), [&](std::size_t begin, std::size_t size) {
    float m[kBlock], v[kBlock];
    for (std::size_t at = begin; at < begin + size; at += kBlock) {
      const std::size_t count = std::min(kBlock, begin + size - at);
      std::uint8_t *mc = m_[i].codes.data() + at, *vc = v_[i].codes.data() + at;
      float &ms = m_[i].scales[at / kBlock], &vs = v_[i].scales[at / kBlock];
      first.decode(mc, ms, m, count);
      second.decode(vc, vs, v, count);
      k.adamw(a, g + at, w + at, m, v, count);
      ms = first.encode(m, mc, count);
      vs = second.encode(v, vc, count);
    }
  });
}

}  // namespace bitnet::training
