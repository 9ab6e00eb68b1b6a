// The CPU backend: Backend's ops on host memory, made of bitnet-core's float kernels and bitnet-quant's
// BitLinear. Attention, dense products and int8 heads have files of their own beside this one.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <exception>
#include <utility>

#include "bitnet/core/attention_kernels.hpp"
#include "bitnet/core/device/bandwidth.hpp"
#include "bitnet/core/error.hpp"
#include "bitnet/core/f32_kernels.hpp"
#include "bitnet/inference/register.hpp"
#include "bitnet/quant/bit_linear.hpp"
#include "bitnet/quant/extended_linear.hpp"
#include "cpu/attention.hpp"
#include "cpu/dense.hpp"
#include "cpu/int8_weights.hpp"
#include "cpu/memory.hpp"
#include "cpu/work.hpp"

namespace bitnet::inference {
namespace cpu {
namespace {

class TernaryLinear final : public PreparedWeights {
 public:
  TernaryLinear(quant::BitLinear linear, ActivationForm activations)
      : PreparedWeights(linear.out(), linear.in(), true, linear.bytes()),
        linear_(std::move(linear)),
        activations_(activations) {}
  const quant::BitLinear& linear() const noexcept { return linear_; }
  /// How the rows that it multiplies are to be quantised.
  ActivationForm activations() const noexcept { return activations_; }

 private:
  quant::BitLinear linear_;
  ActivationForm activations_;
};

/// Of two planes, or of groups of columns.
class ExtendedWeights final : public PreparedWeights {
 public:
  ExtendedWeights(quant::ExtendedLinear linear, ActivationForm activations)
      : PreparedWeights(linear.out(), linear.in(), true, linear.bytes()),
        linear_(std::move(linear)),
        activations_(activations) {}
  const quant::ExtendedLinear& linear() const noexcept { return linear_; }
  ActivationForm activations() const noexcept { return activations_; }

 private:
  quant::ExtendedLinear linear_;
  ActivationForm activations_;
};

const HostBuffer& host(const Buffer& buffer, const char* op) {
  const auto* p = dynamic_cast<const HostBuffer*>(&buffer);
  if (p == nullptr) {
    throw Error(ErrorCode::kInvalidArgument, fmt::format("{}: a buffer of another backend", op));
  }
  return *p;
}

float* floats(const Matrix& m, const char* op) {
  return reinterpret_cast<float*>(host(*m.buffer, op).data() + m.offset);
}

template <class T>
const T& own(const PreparedWeights& weights, const char* op) {
  const auto* p = dynamic_cast<const T*>(&weights);
  if (p == nullptr)
    throw Error(ErrorCode::kInvalidArgument, fmt::format("{}: weights of another backend", op));
  return *p;
}

std::size_t size(const Matrix& m) { return static_cast<std::size_t>(m.rows * m.cols); }

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(std::shared_ptr<const ExecutionContext> context)
      : context_(std::move(context)),
        memory_(context_->memory()),
        kernels_(tested_f32_kernels(context_->isa())) {
    tested_attention_kernels(context_->isa());  // here, so that the first step does not do it
  }

  std::string_view name() const noexcept override { return "cpu"; }
  std::string description() const override {
    const std::size_t n = context_->threads();
    return fmt::format("CPU, {}, {} thread{}", to_string(context_->isa()), n, n == 1 ? "" : "s");
  }
  bool supports(BackendOp) const noexcept override { return true; }
  bool supports_extended_linears() const noexcept override { return true; }
  std::size_t available_memory() const override {
    const std::size_t most = memory_->capacity();
    return std::min(cpu::available_memory(), most - std::min(most, memory_->held()));
  }
  MemoryResource* memory() const noexcept override { return memory_.get(); }

 private:
  std::optional<double> do_measure_bandwidth() override {
    BandwidthProbe probe(context_,
                         bandwidth_probe_bytes(cpu_capabilities().l3_total_bytes, available_memory()));
    constexpr int kSamples = 3;
    for (int i = 0; i < kSamples; ++i) probe.sample();
    return probe.gigabytes_per_second();
  }

  BufferPtr do_allocate(std::size_t bytes, MemoryTag tag) override {
    return std::make_shared<HostBuffer>(bytes, memory_, tag);
  }

  std::size_t do_discard(Buffer& buffer, std::size_t offset, std::size_t bytes) override {
    return memory_->discard(host(buffer, "discard").data() + offset, bytes);
  }

  void do_upload(Buffer& to, std::size_t offset, std::span<const std::byte> from) override {
    std::memcpy(host(to, "upload").data() + offset, from.data(), from.size());
  }

  void do_download(const Buffer& from, std::size_t offset, std::span<std::byte> to) override {
    std::memcpy(to.data(), host(from, "download").data() + offset, to.size());
  }

  PreparedPtr do_prepare(const LinearWeights& w) override {
    if (!w.ternary() && w.dense_form == DenseForm::kInt8) return Int8Weights::make(*context_, kernels_, w);
    if (!w.ternary()) return std::make_shared<DenseWeights>(*context_, w);
    if (w.cols_per_scale != 0 || w.second != nullptr)
      return std::make_shared<ExtendedWeights>(quant::ExtendedLinear(*context_, w), w.activations);
    return std::make_shared<TernaryLinear>(
        w.trit_rows != nullptr
            ? quant::BitLinear(*context_, w.out, w.in, w.trit_rows, w.scales, w.rows_per_scale)
            : quant::BitLinear(*context_, w.out, w.in, w.trits, w.scales, w.rows_per_scale),
        w.activations);
  }

  PreparedPtr do_prepare_embedding(const LinearWeights& w) override {
    if (w.dense_form == DenseForm::kInt8) return Int8Weights::make(*context_, kernels_, w);
    return std::make_shared<DenseWeights>(*context_, w);
  }

  void do_linear(std::span<const PreparedWeights* const> weights, Matrix x,
                 std::span<const Matrix> outs) override {
    const float* const in = floats(x, "linear");
    if (!weights[0]->ternary()) {
      for (std::size_t i = 0; i < weights.size(); ++i) {
        float* const out = floats(outs[i], "linear");
        if (const auto* const int8 = dynamic_cast<const Int8Weights*>(weights[i])) {
          int8->multiply(*context_, {in, size(x)}, x.rows, quantized_, out);
        } else {
          own<DenseWeights>(*weights[i], "linear").multiply(*context_, kernels_, in, nullptr, x.rows, out);
        }
      }
      return;
    }
    multiply(weights, outs, [&](ActivationForm form) {
      quant::quantize_rows(*context_, {in, size(x)}, x.rows, x.cols, quantized_, form);
    });
  }

  /// Products with each of the ternary weights of rows that quantize(form) makes in quantized_, once for each
  /// form that they ask for.
  template <class Quantize>
  void multiply(std::span<const PreparedWeights* const> weights, std::span<const Matrix> outs,
                Quantize&& quantize) {
    std::array<bool, 3> done{};
    for (const PreparedWeights* const w : weights) {
      const ActivationForm form = activations_of(*w);
      if (std::exchange(done[static_cast<std::size_t>(form)], true)) continue;
      quantize(form);
      multiply_quantized(weights, outs, form);
    }
  }

  static ActivationForm activations_of(const PreparedWeights& w) {
    if (const auto* const linear = dynamic_cast<const ExtendedWeights*>(&w)) return linear->activations();
    return own<TernaryLinear>(w, "linear").activations();
  }

  /// Products of quantized_ with each of the weights that ask for its form.
  void multiply_quantized(std::span<const PreparedWeights* const> weights, std::span<const Matrix> outs,
                          ActivationForm form) {
    products_.clear();
    bool extended = false;
    for (std::size_t i = 0; i < weights.size(); ++i) {
      if (activations_of(*weights[i]) != form) continue;
      if (dynamic_cast<const ExtendedWeights*>(weights[i]) != nullptr) {
        extended = true;
        continue;
      }
      const quant::BitLinear& linear = own<TernaryLinear>(*weights[i], "linear").linear();
      products_.push_back({&linear, {floats(outs[i], "linear"), size(outs[i])}});
    }
    if (!products_.empty()) quant::BitLinear::forward_each(*context_, quantized_, products_);
    for (std::size_t i = 0; extended && i < weights.size(); ++i) {
      const auto* const linear = dynamic_cast<const ExtendedWeights*>(weights[i]);
      if (linear != nullptr && linear->activations() == form)
        linear->linear().forward(*context_, quantized_, extended_scratch_,
                                 {floats(outs[i], "linear"), size(outs[i])});
    }
  }

  void do_norm_linear(std::span<const PreparedWeights* const> weights, Matrix x, const Buffer& norm,
                      float eps, Matrix normed, std::span<const Matrix> outs) override {
    if (!weights[0]->ternary()) return norm_then_linear(weights, x, norm, eps, normed, outs);
    const auto n = static_cast<std::size_t>(x.cols);
    const float* const from = floats(x, "norm_linear");
    const auto* const w = reinterpret_cast<const float*>(host(norm, "norm_linear").data());
    const auto make = [&](std::int64_t row, float* to) {
      kernels_.rms_norm(from + row * x.cols, w, eps, to, n);
    };
    multiply(weights, outs, [&](ActivationForm form) {
      quant::quantize_made_rows(*context_, x.rows, x.cols, make, quantized_, form);
    });
  }

  void do_gated_linear(Activation f, Matrix gate, Matrix up, const Buffer* norm, float eps,
                       const PreparedWeights& weights, Matrix out) override {
    if (!weights.ternary()) return gate_then_linear(f, gate, up, norm, eps, weights, out);
    const auto n = static_cast<std::size_t>(gate.cols);
    const float *const g = floats(gate, "gated_linear"), *const u = floats(up, "gated_linear");
    const auto* const w =
        norm == nullptr ? nullptr : reinterpret_cast<const float*>(host(*norm, "gated_linear").data());
    const auto activate = gate_kernel(f);
    const auto make = [&](std::int64_t row, float* to) {
      activate(g + row * gate.cols, u + row * gate.cols, to, n);
      if (w != nullptr) kernels_.rms_norm(to, w, eps, to, n);
    };
    const PreparedWeights* const one = &weights;
    multiply({&one, 1}, {&out, 1}, [&](ActivationForm form) {
      quant::quantize_made_rows(*context_, gate.rows, gate.cols, make, quantized_, form);
    });
  }

  void do_embed(const PreparedWeights& table, std::span<const std::int32_t> ids, Matrix out) override {
    const auto n = static_cast<std::size_t>(out.cols);
    float* const to = floats(out, "embed");
    const auto* const int8 = dynamic_cast<const Int8Weights*>(&table);
    const DenseWeights* const dense = int8 == nullptr ? &own<DenseWeights>(table, "embed") : nullptr;
    for_rows(out, [&](std::size_t begin, std::size_t end) {
      for (std::size_t r = begin; r < end; ++r) {
        if (int8 != nullptr) {
          int8->row(ids[r], to + r * n);
        } else {
          dense->row(kernels_, ids[r], to + r * n);
        }
      }
    });
  }

  /// Calls body(begin, end) on ranges of rows.
  template <class Body>
  void for_rows(const Matrix& m, Body&& body) {
    const auto rows = static_cast<std::size_t>(m.rows);
    const std::size_t parts = count_parts(*context_, rows, static_cast<std::size_t>(m.cols));
    for_parts(*context_, rows, parts,
              [&](std::size_t, std::size_t begin, std::size_t end) { body(begin, end); });
  }

  void do_rms_norm(Matrix x, const Buffer& weight, float eps, Matrix out) override {
    const auto n = static_cast<std::size_t>(x.cols);
    const float* const from = floats(x, "rms_norm");
    float* const to = floats(out, "rms_norm");
    const auto* const w = reinterpret_cast<const float*>(host(weight, "rms_norm").data());
    for_rows(x, [&](std::size_t begin, std::size_t end) {
      for (std::size_t r = begin; r < end; ++r) kernels_.rms_norm(from + r * n, w, eps, to + r * n, n);
    });
  }

  void do_rope(Matrix x, std::span<const std::int32_t> positions, const Buffer& table,
               std::int64_t head_dim) override {
    const auto n = static_cast<std::size_t>(x.cols), dim = static_cast<std::size_t>(head_dim);
    float* const values = floats(x, "rope");
    const auto* const angles = reinterpret_cast<const float*>(host(table, "rope").data());
    for_rows(x, [&](std::size_t begin, std::size_t end) {
      for (std::size_t r = begin; r < end; ++r) {
        const float* const cosines = angles + static_cast<std::size_t>(positions[r]) * dim;
        for (std::size_t h = 0; h < n; h += dim)
          kernels_.rope(values + r * n + h, cosines, cosines + dim / 2, dim / 2);
      }
    });
  }

  void do_attention(const AttentionArgs& args) override {
    for (const Buffer* b :
         {args.q.buffer, args.k.buffer, args.v.buffer, args.out.buffer, args.cache.keys, args.cache.values}) {
      host(*b, "attention");
    }
    cpu::attention(*context_, args, attention_scratch_);
  }

  auto gate_kernel(Activation f) const -> decltype(F32Kernels::relu2_gate) {
    return f == Activation::kRelu2 ? kernels_.relu2_gate : kernels_.silu_gate;
  }

  void do_gated_activation(Activation f, Matrix gate, Matrix up, Matrix out) override {
    const auto n = static_cast<std::size_t>(gate.cols);
    const float *const g = floats(gate, "gated_activation"), *const u = floats(up, "gated_activation");
    float* const to = floats(out, "gated_activation");
    const auto kernel = gate_kernel(f);
    for_rows(gate, [&](std::size_t begin, std::size_t end) {
      kernel(g + begin * n, u + begin * n, to + begin * n, (end - begin) * n);
    });
  }

  void do_add(Matrix x, Matrix y) override {
    const auto n = static_cast<std::size_t>(x.cols);
    float* const to = floats(x, "add");
    const float* const from = floats(y, "add");
    for_rows(x, [&](std::size_t begin, std::size_t end) {
      kernels_.add(from + begin * n, to + begin * n, (end - begin) * n);
    });
  }

  void do_logits(const PreparedWeights& head, Matrix hidden, std::span<const std::int32_t> rows,
                 Matrix out) override {
    const float* const x = floats(hidden, "logits");
    float* const to = floats(out, "logits");
    if (const auto* const int8 = dynamic_cast<const Int8Weights*>(&head)) {
      int8->multiply(*context_, x, rows, quantized_, to);
    } else {
      own<DenseWeights>(head, "logits").multiply(*context_, kernels_, x, rows.data(), out.rows, to);
    }
  }

  void do_sync() override {}

  std::shared_ptr<const ExecutionContext> context_;
  std::shared_ptr<HybridMemoryPool> memory_;
  const F32Kernels& kernels_;
  PmrResource scratch_{*memory_, "activations"};
  quant::QuantizedRows quantized_ = quant::QuantizedRows::in(&scratch_);
  std::vector<quant::BitLinear::Product> products_;
  quant::ExtendedScratch extended_scratch_{&scratch_};
  AttentionScratch attention_scratch_{&scratch_};
};

}  // namespace
}  // namespace cpu

std::unique_ptr<Backend> make_cpu_backend(std::shared_ptr<const ExecutionContext> context) {
  if (context == nullptr) context = std::make_shared<const ExecutionContext>();
  return std::make_unique<cpu::CpuBackend>(std::move(context));
}

namespace {

/// What new contexts run; of a wrong BITNET_ISA they say so themselves.
Isa listed_isa() noexcept {
  try {
    return default_isa();
  } catch (const std::exception&) {
    return best_isa();
  }
}

}  // namespace

void register_cpu_backend(BackendRegistry& registry) {
  Device device{
      "cpu", DeviceKind::kCpu,  fmt::format("CPU, {}", to_string(listed_isa())), cpu::total_memory(),
      false, cpu_capabilities()};
  device.capabilities.available_bytes = cpu::available_memory();
  registry.add(std::move(device), [](std::shared_ptr<const ExecutionContext> context) {
    return make_cpu_backend(std::move(context));
  });
}

}  // namespace bitnet::inference
