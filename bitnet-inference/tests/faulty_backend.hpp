#pragma once
// The CPU backend with faults that a test injects before its ops.
#include <functional>
#include <memory>
#include <string_view>
#include <utility>

#include "bitnet/core/device/backend.hpp"
#include "bitnet/inference/register.hpp"

namespace bitnet::inference {

/// Calls `fault(what, size)` before an op and before an allocation; it may throw. `size`: bytes of an
/// allocation, sequences of an attention, rows of the others.
class FaultyBackend final : public Backend {
 public:
  using Fault = std::function<void(std::string_view what, std::size_t size)>;
  FaultyBackend(std::shared_ptr<const ExecutionContext> context, Fault fault)
      : inner_(make_cpu_backend(std::move(context))), fault_(std::move(fault)) {}

  std::string_view name() const noexcept override { return "faulty"; }
  std::string description() const override { return inner_->description(); }
  bool supports(BackendOp op) const noexcept override { return inner_->supports(op); }
  std::size_t available_memory() const override { return inner_->available_memory(); }
  MemoryResource* memory() const noexcept override { return inner_->memory(); }

 private:
  static std::size_t rows(const Matrix& m) { return static_cast<std::size_t>(m.rows); }

  BufferPtr do_allocate(std::size_t bytes, MemoryTag tag) override {
    fault_("allocate", bytes);
    return inner_->allocate(bytes, tag);
  }
  void do_upload(Buffer& to, std::size_t offset, std::span<const std::byte> from) override {
    inner_->upload(to, offset, from);
  }
  void do_download(const Buffer& from, std::size_t offset, std::span<std::byte> to) override {
    inner_->download(from, offset, to);
  }
  PreparedPtr do_prepare(const LinearWeights& w) override { return inner_->prepare(w); }
  PreparedPtr do_prepare_embedding(const LinearWeights& w) override { return inner_->prepare_embedding(w); }
  void do_linear(std::span<const PreparedWeights* const> weights, Matrix x,
                 std::span<const Matrix> outs) override {
    fault_("linear", rows(x));
    inner_->linear(weights, x, outs);
  }
  void do_embed(const PreparedWeights& table, std::span<const std::int32_t> ids, Matrix out) override {
    inner_->embed(table, ids, out);
  }
  void do_rms_norm(Matrix x, const Buffer& weight, float eps, Matrix out) override {
    inner_->rms_norm(x, weight, eps, out);
  }
  void do_rope(Matrix x, std::span<const std::int32_t> positions, const Buffer& table,
               std::int64_t head_dim) override {
    inner_->rope(x, positions, table, head_dim);
  }
  void do_attention(const AttentionArgs& a) override {
    fault_("attention", a.sequences.size());
    inner_->attention(a);
  }
  void do_gated_activation(Activation f, Matrix gate, Matrix up, Matrix out) override {
    inner_->gated_activation(f, gate, up, out);
  }
  void do_add(Matrix x, Matrix y) override { inner_->add(x, y); }
  void do_logits(const PreparedWeights& head, Matrix hidden, std::span<const std::int32_t> rows,
                 Matrix out) override {
    inner_->logits(head, hidden, rows, out);
  }
  void do_sync() override { inner_->sync(); }

  std::unique_ptr<Backend> inner_;
  Fault fault_;
};

}  // namespace bitnet::inference
