#pragma once
// Layers with parameters, and the 2B-4T decoder made of them: pre-norms, sub-norms, rotary grouped-query
// attention, squared-ReLU gated feed-forward, tied embedding. The arithmetic is ops.hpp and fake_quant.hpp.
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "bitnet/core/model/model_config.hpp"
#include "bitnet/core/model/tensor_names.hpp"
#include "bitnet/core/rng.hpp"
#include "bitnet/training/fake_quant.hpp"
#include "bitnet/training/ops.hpp"
#include "bitnet/training/tape.hpp"

namespace bitnet::training {

/// What the linear layers compute with.
enum class Quantization : std::uint8_t {
  kTernary,  ///< BitLinear: ternary weights, int8 activations, straight-through gradients
  kNone,     ///< the same model in full precision
};

/// Input of linear layers that share it: the rows, and their quantised form if any layer wants it.
struct LinearInput {
  Variable rows;
  QuantizedVariable quantized{};
};

/// y = x·Wᵀ without bias.
class Linear {
 public:
  Linear(const ExecutionContext& context, std::string name, std::int64_t out, std::int64_t in);
  virtual ~Linear() = default;
  virtual LinearInput prepare(Tape& tape, Variable x) const;
  virtual Variable forward(Tape& tape, const LinearInput& x);
  /// Called after weights have changed.
  virtual void refresh(const ExecutionContext& context);
  /// The ternary form, or null.
  virtual const TernaryCache* ternary() const noexcept { return nullptr; }
  Parameter& weight() noexcept { return weight_; }

 protected:
  Parameter weight_;
};

/// y = BitLinear(x) of b1.58, trained through latent weights.
class BitLinear final : public Linear {
 public:
  BitLinear(const ExecutionContext& context, std::string name, std::int64_t out, std::int64_t in);
  LinearInput prepare(Tape& tape, Variable x) const override;
  Variable forward(Tape& tape, const LinearInput& x) override;
  void refresh(const ExecutionContext& context) override;
  const TernaryCache* ternary() const noexcept override { return &cache_; }

 private:
  TernaryCache cache_;
};

class RmsNorm {
 public:
  RmsNorm(const ExecutionContext& context, std::string name, std::int64_t size, float eps);
  Variable forward(Tape& tape, Variable x);
  Parameter& weight() noexcept { return weight_; }

 private:
  Parameter weight_;
  float eps_;
};

class Embedding {
 public:
  Embedding(const ExecutionContext& context, std::string name, std::int64_t vocab, std::int64_t dim);
  Variable forward(Tape& tape, std::span<const std::int32_t> ids);
  Variable logits(Tape& tape, Variable x);  ///< the tied head
  Parameter& weight() noexcept { return weight_; }

 private:
  Parameter weight_;
};

/// A decoder of ModelConfig's shape (family kBitNet25, relu², tied embedding). Not thread-safe.
class LanguageModel {
 public:
  /// Throws Error(kInvalidArgument | kUnsupported) naming the field that cannot be trained.
  LanguageModel(const ExecutionContext& context, const ModelConfig& config, Quantization quantization);
  ~LanguageModel();

  /// Normal weights of standard deviation `deviation`, norms one; in the order of parameters().
  void initialize(Rng& rng, float deviation);
  /// Logits [ids.size(), vocab] of sequences of layout.length ids one after the other. Tokens attend within
  /// their document only.
  Variable forward(Tape& tape, std::span<const std::int32_t> ids, const RowLayout& layout);
  /// Ternarises latent weights anew; call after they change. Nothing to do in full precision.
  void refresh(const ExecutionContext& context);

  const ModelConfig& config() const noexcept { return config_; }
  Quantization quantization() const noexcept { return quantization_; }
  /// In the order of model_tensors(config()), names as in Hugging Face files.
  std::span<Parameter* const> parameters() const noexcept { return parameters_; }
  /// The same order.
  std::span<const TensorId> tensor_ids() const noexcept { return ids_; }
  /// The linear layer that holds `id`, or null.
  Linear* linear(TensorId id) const noexcept;
  std::int64_t parameter_count() const noexcept;
  /// Trits of all linears that are zero, that changed in the last refresh, and all (0 in full precision).
  struct TritCounts {
    std::int64_t zeros = 0, flips = 0, all = 0;
  };
  TritCounts trit_counts() const noexcept;

 private:
  struct Layer;
  Variable layer_forward(Tape& tape, Layer& layer, Variable x, const RowLayout& layout);
  ModelConfig config_;
  Quantization quantization_;
  std::vector<std::unique_ptr<Layer>> layers_;
  Embedding embedding_;
  RmsNorm norm_;
  RopeTable rope_;
  std::vector<Parameter*> parameters_;
  std::vector<TensorId> ids_;
};

}  // namespace bitnet::training
