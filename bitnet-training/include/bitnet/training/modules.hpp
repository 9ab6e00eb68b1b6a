#pragma once
// Layers with parameters, to build networks of. The arithmetic is ops.hpp, image_ops.hpp and fake_quant.hpp;
// a whole decoder is language_model.hpp.
#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "bitnet/core/rng.hpp"
#include "bitnet/training/fake_quant.hpp"
#include "bitnet/training/ops.hpp"
#include "bitnet/training/tape.hpp"

namespace bitnet::training {

/// What layers have in common. None is thread-safe; each must outlive the steps that used it.
class Module {
 public:
  virtual ~Module() = default;
  /// Appends its parameters, always in the same order.
  virtual void parameters(std::vector<Parameter*>& all) = 0;
  /// Makes ternary forms anew; called after weights have changed, and once before the first step.
  virtual void refresh(const ExecutionContext&) {}
  /// How strongly it quantises from the next refresh() on (QuantizerSchedule).
  virtual void set_lambda(float) {}
};

class RmsNorm;

/// Input of linear layers that share it: the rows, and their quantised form if any layer wants it.
struct LinearInput {
  Variable rows;  ///< without values where prepare_normalized() keeps the quantised form only
  QuantizedVariable quantized{};
};

/// y = x·Wᵀ + b.
class Linear : public Module {
 public:
  /// Weights "name" [out, in] and, if asked for, "name.bias", zeros.
  Linear(const ExecutionContext& context, std::string name, std::int64_t out, std::int64_t in,
         bool bias = false);
  /// Normal weights of this standard deviation; 0: 1 / sqrt(in).
  void initialize(Rng& rng, float deviation = 0);
  virtual LinearInput prepare(Tape& tape, Variable x);
  /// prepare(tape, norm.forward(tape, x)), for layers that are all that read what the norm makes: a quantiser
  /// need not keep it then. Same bits.
  virtual LinearInput prepare_normalized(Tape& tape, Variable x, RmsNorm& norm);
  virtual Variable forward(Tape& tape, const LinearInput& x);
  /// Whether what prepare() makes of x is the same for all layers of its kind: it has no norm of its own.
  virtual bool shares_input() const noexcept { return true; }
  Variable operator()(Tape& tape, Variable x) { return forward(tape, prepare(tape, x)); }
  void parameters(std::vector<Parameter*>& all) override;
  /// The ternary form, or null.
  virtual const TernaryCache* ternary() const noexcept { return nullptr; }
  Parameter& weight() noexcept { return weight_; }

 protected:
  Variable with_bias(Tape& tape, Variable y);
  Parameter weight_;
  std::unique_ptr<Parameter> bias_;
};

/// Where the norm before a quantiser stands.
enum class BlockShape : std::uint8_t {
  k2B4T,  ///< in the block: pre-norms and sub-norms of its own (BitNet b1.58 2B-4T)
  k2024,  ///< in each BitLinear (Wang et al. 2023, Ma et al. 2024)
};

struct BitLinearOptions {
  QuantizerOptions quantizer = {};
  BlockShape shape = BlockShape::k2B4T;
  float norm_eps = 1e-5f;  ///< of k2024
  bool bias = false;
};

class RmsNorm final : public Module {
 public:
  /// Weights "name" [1, size], ones.
  RmsNorm(const ExecutionContext& context, std::string name, std::int64_t size, float eps);
  Variable forward(Tape& tape, Variable x);
  void parameters(std::vector<Parameter*>& all) override { all.push_back(&weight_); }
  Parameter& weight() noexcept { return weight_; }
  float eps() const noexcept { return eps_; }

 private:
  Parameter weight_;
  float eps_;
};

/// y = BitLinear(x) of b1.58, trained through latent weights, which move to trits and scales and back at any
/// time. k2024 adds "name.norm", learned scales "name.scale".
class BitLinear final : public Linear {
 public:
  BitLinear(const ExecutionContext& context, std::string name, std::int64_t out, std::int64_t in,
            const BitLinearOptions& options = {});
  LinearInput prepare(Tape& tape, Variable x) override;
  LinearInput prepare_normalized(Tape& tape, Variable x, RmsNorm& norm) override;
  Variable forward(Tape& tape, const LinearInput& x) override;
  bool shares_input() const noexcept override { return norm_ == nullptr; }
  void parameters(std::vector<Parameter*>& all) override;
  /// Learned scales that are still 0 begin with what the options' rule gives.
  void refresh(const ExecutionContext& context) override;
  void set_lambda(float lambda) override { lambda_ = lambda; }
  float lambda() const noexcept { return lambda_; }  ///< of the next refresh()
  const TernaryCache* ternary() const noexcept override { return &cache_; }
  /// While `elsewhere`, refresh() does nothing: another process makes the ternary form of this layer, and
  /// assign() takes it as TernaryCache::assign() does. The latent weights may then be old ones.
  void set_ternarised_elsewhere(bool elsewhere) noexcept { elsewhere_ = elsewhere; }
  void assign(const ExecutionContext& context, std::span<const std::uint8_t> codes,
              std::span<const float> scales) {
    cache_.assign(context, codes, scales);
  }
  /// The learned scales, or null.
  Parameter* scale() noexcept { return scale_.get(); }
  /// Takes trits and scales as latent_from_ternary() does, and refreshes.
  void set_weights(const ExecutionContext& context, const quant::TernaryWeights& weights);

 private:
  LinearInput normalize_and_quantize(Tape& tape, Variable x, RmsNorm& norm) const;
  TernaryCache cache_;
  std::unique_ptr<RmsNorm> norm_;
  std::unique_ptr<Parameter> scale_;
  float lambda_ = 1;
  bool elsewhere_ = false;
};

class Embedding final : public Module {
 public:
  Embedding(const ExecutionContext& context, std::string name, std::int64_t vocab, std::int64_t dim);
  Variable forward(Tape& tape, std::span<const std::int32_t> ids);
  Variable logits(Tape& tape, Variable x);  ///< the tied head
  void parameters(std::vector<Parameter*>& all) override { all.push_back(&weight_); }
  Parameter& weight() noexcept { return weight_; }

 private:
  Parameter weight_;
};

/// dropout() with a new key each time it is used. Its count of uses is its whole state, for checkpoints.
class Dropout {
 public:
  Dropout(double p, std::uint64_t seed) noexcept : p_(p), seed_(seed) {}
  Variable forward(Tape& tape, Variable x);
  std::uint64_t uses() const noexcept { return uses_; }
  void set_uses(std::uint64_t uses) noexcept { uses_ = uses; }

 private:
  double p_;
  std::uint64_t seed_, uses_ = 0;
};

/// What `layers` make of norm(x) (null: of x), whose quantised form those share whose quantisers are alike
/// now with the first's. N is 2 or 3.
template <std::size_t N>
std::array<Variable, N> forward_with_shared_input(Tape& tape, Variable x, RmsNorm* norm,
                                                  const std::array<Linear*, N>& layers);

}  // namespace bitnet::training
