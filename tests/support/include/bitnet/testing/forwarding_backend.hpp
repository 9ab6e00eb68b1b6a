#pragma once
// A backend that hands everything to another one, for tests that look at some operations or make them fail:
// they derive from it, or use FaultyBackend.
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "bitnet/core/device/backend.hpp"

namespace bitnet::testing {

/// Fused operations arrive as the single ones that they are made of.
class ForwardingBackend : public Backend {
 public:
  explicit ForwardingBackend(std::unique_ptr<Backend> inner) : inner_(std::move(inner)) {}

  std::string_view name() const noexcept override { return inner_->name(); }
  std::string description() const override { return inner_->description(); }
  bool supports(BackendOp op) const noexcept override { return inner_->supports(op); }
  bool supports_extended_linears() const noexcept override { return inner_->supports_extended_linears(); }
  std::size_t available_memory() const override { return inner_->available_memory(); }
  MemoryResource* memory() const noexcept override { return inner_->memory(); }

 protected:
  BufferPtr do_allocate(std::size_t bytes, MemoryTag tag) override { return inner_->allocate(bytes, tag); }
  std::size_t do_discard(Buffer& buffer, std::size_t offset, std::size_t bytes) override {
    return inner_->discard(buffer, offset, bytes);
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
  void do_attention(const AttentionArgs& args) override { inner_->attention(args); }
  void do_gated_activation(Activation f, Matrix gate, Matrix up, Matrix out) override {
    inner_->gated_activation(f, gate, up, out);
  }
  void do_add(Matrix x, Matrix y) override { inner_->add(x, y); }
  void do_logits(const PreparedWeights& head, Matrix hidden, std::span<const std::int32_t> rows,
                 Matrix out) override {
    inner_->logits(head, hidden, rows, out);
  }
  void do_sync() override { inner_->sync(); }

 private:
  std::unique_ptr<Backend> inner_;
};

/// Calls `fault(what, size)` before each "allocate" (its bytes), "linear" (rows) and "attention" (sequences);
/// it may throw.
class FaultyBackend final : public ForwardingBackend {
 public:
  using Fault = std::function<void(std::string_view what, std::size_t size)>;
  FaultyBackend(std::unique_ptr<Backend> inner, Fault fault)
      : ForwardingBackend(std::move(inner)), fault_(std::move(fault)) {}
  std::string_view name() const noexcept override { return "faulty"; }

 private:
  BufferPtr do_allocate(std::size_t bytes, MemoryTag tag) override {
    fault_("allocate", bytes);
    return ForwardingBackend::do_allocate(bytes, tag);
  }
  void do_linear(std::span<const PreparedWeights* const> weights, Matrix x,
                 std::span<const Matrix> outs) override {
    fault_("linear", static_cast<std::size_t>(x.rows));
    ForwardingBackend::do_linear(weights, x, outs);
  }
  void do_attention(const AttentionArgs& args) override {
    fault_("attention", args.sequences.size());
    ForwardingBackend::do_attention(args);
  }

  Fault fault_;
};

}  // namespace bitnet::testing
