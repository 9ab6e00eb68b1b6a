#pragma once
// Optimisers over a fixed list of parameters, with global-norm clipping and decoupled weight decay. Learning
// rates over time are schedule.hpp. Their state lies in the context's memory pool (tag "optimizer"). Results
// do not depend on the number of threads; a step allocates nothing. None is thread-safe.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "bitnet/core/execution.hpp"
#include "bitnet/core/memory/memory_handle.hpp"
#include "bitnet/training/tape.hpp"

namespace bitnet::training {

/// A part of what an optimiser remembers, for checkpoints: f32 values, or bytes.
struct OptimizerState {
  std::string name;  ///< "moment1/<parameter>"
  std::span<std::byte> bytes;
  bool floats;
  std::vector<std::int64_t> shape;
};

class Optimizer {
 public:
  virtual ~Optimizer() = default;
  Optimizer(const Optimizer&) = delete;
  Optimizer& operator=(const Optimizer&) = delete;

  virtual std::string_view name() const noexcept = 0;  ///< "adamw"
  /// One step with weights w = w·(1 − lr·decay) − lr · (what the optimiser makes of g), decay only where
  /// Parameter::decay(). Gradients are first scaled so that their global norm is at most `clip` (0: no
  /// clipping), then cleared. Returns the norm before clipping; when it is not finite nothing is changed
  /// except that gradients are cleared.
  double step(const ExecutionContext& context, float lr, float decay, float clip);
  /// The two halves of step(), for an optimiser that has a part of a model's parameters: Σ g² of each, whose
  /// gradients then count as cleared, and the rest of it with the global norm, which is finite.
  void sum_squares(const ExecutionContext& context, std::span<double> squares);
  void apply(const ExecutionContext& context, double norm, float lr, float decay, float clip);

  std::int64_t steps() const noexcept { return steps_; }
  void set_steps(std::int64_t steps) noexcept { steps_ = steps; }
  virtual std::vector<OptimizerState> state() = 0;

 protected:
  Optimizer(const ExecutionContext& context, std::span<Parameter* const> parameters);
  /// What step() has found out: shrink = 1 − lr · decay, g_scale what clipping leaves of gradients.
  struct Update {
    float lr, shrink, g_scale;
  };
  virtual void update(const ExecutionContext& context, std::size_t i, const Update& u) = 0;
  std::span<Parameter* const> parameters() const noexcept { return parameters_; }
  MemoryResource& memory() const noexcept;
  /// Zeros, as many as parameter i has values.
  MemoryArray<float> values_like(std::size_t i) const;
  OptimizerState state_of(const char* kind, std::size_t i, std::span<float> values) const;

 private:
  std::vector<Parameter*> parameters_;
  std::shared_ptr<HybridMemoryPool> memory_;
  MemoryArray<double> partials_;  // of the parameter with the most
  MemoryArray<double> squares_;   // a parameter
  std::int64_t steps_ = 0;
};

struct AdamWOptions {
  float beta1 = 0.9f, beta2 = 0.95f, eps = 1e-8f;
};

/// m̂ / (sqrt(v̂) + eps) (Loshchilov & Hutter 2019, arXiv:1711.05101).
class AdamW final : public Optimizer {
 public:
  AdamW(const ExecutionContext& context, std::span<Parameter* const> parameters, const AdamWOptions& options);
  std::string_view name() const noexcept override { return "adamw"; }
  std::vector<OptimizerState> state() override;

 private:
  void update(const ExecutionContext& context, std::size_t i, const Update& u) override;
  AdamWOptions options_;
  std::vector<MemoryArray<float>> m_, v_;
};

/// AdamW with moments of 8 bits: codes of the dynamic maps of Dettmers et al. 2022 (arXiv:2110.02861), one
/// scale for 256 values; 2.03 bytes a parameter instead of 8. A second moment that is not 0 never becomes 0.
class AdamW8 final : public Optimizer {
 public:
  AdamW8(const ExecutionContext& context, std::span<Parameter* const> parameters,
         const AdamWOptions& options);
  std::string_view name() const noexcept override { return "adamw8"; }
  std::vector<OptimizerState> state() override;

 private:
  struct Codes {
    MemoryArray<std::uint8_t> codes;
    MemoryArray<float> scales;  // one for 256 codes
  };
  void update(const ExecutionContext& context, std::size_t i, const Update& u) override;
  AdamWOptions options_;
  std::vector<Codes> m_, v_;
};

struct SgdOptions {
  float momentum = 0.9f;
  bool nesterov = false;
};

/// v = momentum · v + g; the step is v, or g + momentum · v (Sutskever et al. 2013).
class Sgd final : public Optimizer {
 public:
  Sgd(const ExecutionContext& context, std::span<Parameter* const> parameters, const SgdOptions& options);
  std::string_view name() const noexcept override { return "sgd"; }
  std::vector<OptimizerState> state() override;

 private:
  void update(const ExecutionContext& context, std::size_t i, const Update& u) override;
  SgdOptions options_;
  std::vector<MemoryArray<float>> v_;
};

struct MuonOptions {
  float momentum = 0.95f;
  int iterations = 5;  ///< of Newton–Schulz
  AdamWOptions rest;   ///< of parameters that are not among the matrices
};

/// Momentum made orthogonal by Newton–Schulz iterations (Jordan et al. 2024), times 0.2 · sqrt(max(rows,
/// cols)), so that AdamW's learning rates fit (Liu et al. 2025, arXiv:2502.16982).
class Muon final : public Optimizer {
 public:
  /// `matrices`: those of `parameters` that it is for, hidden layers' weights; AdamW does the others.
  Muon(const ExecutionContext& context, std::span<Parameter* const> parameters,
       std::span<Parameter* const> matrices, const MuonOptions& options);
  ~Muon() override;
  std::string_view name() const noexcept override { return "muon"; }
  std::vector<OptimizerState> state() override;

 private:
  void update(const ExecutionContext& context, std::size_t i, const Update& u) override;
  void orthogonal_step(const ExecutionContext& context, std::size_t i, const Update& u);
  struct Room;
  MuonOptions options_;
  std::vector<MemoryArray<float>> m_, v_;  // v_ is empty where i is a matrix
  std::unique_ptr<Room> room_;
};

}  // namespace bitnet::training
