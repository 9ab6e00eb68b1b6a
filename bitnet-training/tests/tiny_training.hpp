#pragma once
// A few steps of a tiny decoder by a group of processes, for tests of data parallelism.
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "bitnet/core/rng.hpp"
#include "bitnet/training/data_parallel.hpp"
#include "bitnet/training/decoder_shape.hpp"
#include "bitnet/training/language_model.hpp"
#include "bitnet/training/losses.hpp"

namespace bitnet::training {

struct TinyOptions {
  std::int64_t parts = 4, micro_batch = 2, steps = 4;
  Quantization quantization = Quantization::kTernary;
  QuantizerOptions quantizer;
  QuantizerSchedule schedule;
  std::string optimizer = "adamw";
  std::size_t threads = 1;
};

/// What is known after a step.
struct TinyStep {
  double loss, norm;
  std::int64_t zeros, flips;
  bool operator==(const TinyStep& other) const = default;
};

/// A model, its optimiser and how they are shared out.
class TinyTraining {
 public:
  static constexpr std::int64_t kBatch = 8, kLength = 16, kVocab = 40;

  TinyTraining(ProcessGroup& group, const TinyOptions& options)
      : o_(options),
        context_(ExecutionContext::Options{options.threads, {}}),
        model_(context_, shape(), options.quantization, options.quantizer),
        parallel_(context_, group, model_.parameters(), layers()),
        tape_(context_) {
    Rng rng(11);
    model_.initialize(rng, 0.05f);
    parallel_.set_parts(options.parts);
    optimizer_ = make_optimizer(parallel_.owned());
    model_.set_lambda(o_.schedule, 0);
    model_.refresh(context_);
  }

  /// The next steps, the first of which is number `from`.
  std::vector<TinyStep> run(std::int64_t from, std::int64_t to) {
    std::vector<TinyStep> all;
    for (std::int64_t step = from; step < to; ++step) {
      const std::vector<std::int32_t> ids = tokens(step), targets = tokens(step + 1000);
      const double loss =
          parallel_.gradients(tape_, kBatch, o_.micro_batch, [&](std::int64_t first, std::int64_t count) {
            if (on_pass) on_pass(step, first);
            const auto part = [&](const std::vector<std::int32_t>& of) {
              return std::span(of).subspan(static_cast<std::size_t>(first * kLength),
                                           static_cast<std::size_t>(count * kLength));
            };
            const Variable l = cross_entropy(tape_, model_.forward(tape_, part(ids), {kLength}),
                                             part(targets), 1.0f / (kBatch * kLength));
            const double value = l.value()[0];
            tape_.backward(l);
            tape_.reset();
            if (after_pass) after_pass();
            return value;
          });
      const double norm = parallel_.step(*optimizer_, 4e-3f, 0.1f, 1.0f);
      model_.set_lambda(o_.schedule, step + 1);
      parallel_.refresh([&] { model_.refresh(context_); });
      const auto trits = model_.trit_counts();
      all.push_back({loss, norm, trits.zeros, trits.flips});
    }
    return all;
  }

  /// Weights and the optimiser's state as process 0 then has them, one after the other.
  std::vector<std::byte> state(ProcessGroup& group) {
    std::unique_ptr<Optimizer> all;
    if (group.rank() == 0) all = make_optimizer(everything());
    parallel_.gather_weights();
    parallel_.gather_state(*optimizer_, all.get());
    std::vector<std::byte> bytes;
    const auto append = [&](std::span<const std::byte> more) {
      bytes.insert(bytes.end(), more.begin(), more.end());
    };
    if (!all) return bytes;
    for (Parameter* p : model_.parameters()) append(std::as_bytes(p->value()));
    for (const OptimizerState& s : all->state()) append(s.bytes);
    const std::int64_t steps = all->steps();
    append(std::as_bytes(std::span(&steps, 1)));
    return bytes;
  }
  /// The reverse: `bytes` are process 0's.
  void set_state(ProcessGroup& group, const std::vector<std::byte>& bytes, std::int64_t step) {
    std::unique_ptr<Optimizer> all;
    std::size_t at = 0;
    const auto take = [&](std::span<std::byte> to) {
      std::copy_n(bytes.begin() + static_cast<std::ptrdiff_t>(at), to.size(), to.begin());
      at += to.size();
    };
    if (group.rank() == 0) {
      all = make_optimizer(everything());
      for (Parameter* p : model_.parameters()) take(std::as_writable_bytes(p->value()));
      for (const OptimizerState& s : all->state()) take(s.bytes);
      std::int64_t steps = 0;
      take(std::as_writable_bytes(std::span(&steps, 1)));
      all->set_steps(steps);
    }
    parallel_.spread_weights();
    parallel_.spread_state(*optimizer_, all.get());
    model_.set_lambda(o_.schedule, step);
    model_.refresh(context_);
  }

  LanguageModel& model() { return model_; }
  DataParallel& parallel() { return parallel_; }
  Optimizer& optimizer() { return *optimizer_; }
  Tape& tape() { return tape_; }
  const ExecutionContext& context() const { return context_; }
  std::function<void(std::int64_t step, std::int64_t first)> on_pass;
  std::function<void()> after_pass;

 private:
  static ModelConfig shape() {
    return decoder_config({.vocab = kVocab,
                           .hidden = 64,
                           .intermediate = 96,
                           .layers = 2,
                           .heads = 4,
                           .kv_heads = 2,
                           .context = kLength});
  }
  static std::vector<std::int32_t> tokens(std::int64_t seed) {
    Rng rng(static_cast<std::uint64_t>(seed));
    std::vector<std::int32_t> ids(kBatch * kLength);
    for (auto& id : ids) id = static_cast<std::int32_t>(rng.below(kVocab));
    return ids;
  }
  std::vector<Parameter*> everything() { return {model_.parameters().begin(), model_.parameters().end()}; }
  std::vector<BitLinear*> layers() {
    std::vector<BitLinear*> all;
    for (const TensorId id : model_.tensor_ids())
      if (auto* l = dynamic_cast<BitLinear*>(model_.linear(id))) all.push_back(l);
    return all;
  }
  std::unique_ptr<Optimizer> make_optimizer(const std::vector<Parameter*>& parameters) {
    if (o_.optimizer == "adamw8") return std::make_unique<AdamW8>(context_, parameters, AdamWOptions{});
    if (o_.optimizer == "sgd") return std::make_unique<Sgd>(context_, parameters, SgdOptions{});
    if (o_.optimizer == "muon") {
      std::vector<Parameter*> matrices;
      for (const TensorId id : model_.tensor_ids())
        if (Linear* l = model_.linear(id)) matrices.push_back(&l->weight());
      return std::make_unique<Muon>(context_, parameters, matrices, MuonOptions{});
    }
    return std::make_unique<AdamW>(context_, parameters, AdamWOptions{});
  }

  TinyOptions o_;
  ExecutionContext context_;
  LanguageModel model_;
  DataParallel parallel_;
  Tape tape_;
  std::unique_ptr<Optimizer> optimizer_;
};

/// A whole training's steps, and the state at its end where the process is number 0.
struct TinyResult {
  std::vector<TinyStep> steps;
  std::vector<std::byte> state;
};
inline TinyResult train_tiny(ProcessGroup& group, const TinyOptions& options) {
  TinyTraining training(group, options);
  TinyResult result{training.run(0, options.steps), {}};
  result.state = training.state(group);
  return result;
}

}  // namespace bitnet::training
