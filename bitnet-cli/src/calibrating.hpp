#pragma once
// The join of bitnet-quant and bitnet-inference: quantisers see a model's activations and logits through
// these. bitnet-quant itself never runs a model.
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "bitnet/cli/app.hpp"
#include "bitnet/inference/model.hpp"
#include "bitnet/inference/session.hpp"
#include "bitnet/quant/calibration.hpp"
#include "bitnet/quant/logit_metrics.hpp"
#include "bitnet/quant/sensitivity.hpp"

namespace bitnet::cli {

/// `n` windows of at most `length` tokens, evenly spread over the text, each with BOS in place of its first
/// token where the vocabulary adds one. Throws Error(kInvalidArgument) on a text without two tokens.
std::vector<std::vector<TokenId>> calibration_windows(const Tokenizer& tokenizer, const std::string& text,
                                                      std::int64_t length, std::int64_t tokens);

/// The activations of a model in files, on the CPU, its linears as they are stored.
class ModelActivations final : public quant::ActivationSource {
 public:
  ModelActivations(std::filesystem::path model, std::shared_ptr<const ExecutionContext> context,
                   std::vector<std::vector<TokenId>> windows, Io& io);
  void stream(const std::function<bool(TensorId input)>& wanted, const Sink& sink) override;
  /// The model is made anew at the next stream(), with what was replaced in memory.
  void replace(const quant::LogicalTensor& weights) override;

 private:
  void load();
  std::filesystem::path path_;
  std::shared_ptr<const ExecutionContext> context_;
  std::vector<std::vector<TokenId>> windows_;
  Io& io_;
  std::map<std::pair<TensorRole, std::int64_t>, quant::LogicalTensor> replaced_;
  std::shared_ptr<const inference::Model> model_;
};

/// Logits of a model over windows of tokens, each from its beginning.
class ModelLogits final : public quant::LogitSource {
 public:
  ModelLogits(const std::filesystem::path& model, quant::FloatLinears floats,
              const std::shared_ptr<const ExecutionContext>& context,
              std::vector<std::vector<TokenId>> windows);
  ModelLogits(std::shared_ptr<const inference::Model> model, std::vector<std::vector<TokenId>> windows);
  std::int64_t vocab_size() const override { return session_->model().config().vocab_size; }
  bool next(std::vector<float>& rows, std::vector<std::int32_t>& targets) override;

 private:
  std::vector<std::vector<TokenId>> windows_;
  std::unique_ptr<inference::Session> session_;
  std::size_t window_ = 0, at_ = 0;
};

/// A model in files whose linears can be others for a run, over windows of tokens. The files are loaded once.
class ModelTrials final : public quant::TrialSource {
 public:
  ModelTrials(const std::filesystem::path& model, quant::FloatLinears floats,
              const std::shared_ptr<const ExecutionContext>& context,
              std::vector<std::vector<TokenId>> windows, Io& io);
  /// Throws Error(kCancelled) once Ctrl-C was pressed.
  std::unique_ptr<quant::LogitSource> run(const Linears& linears) override;

 private:
  std::shared_ptr<const inference::Model> model_;
  std::vector<std::vector<TokenId>> windows_;
  Io& io_;
};

}  // namespace bitnet::cli
