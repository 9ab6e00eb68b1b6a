#pragma once
// The join of bitnet-quant and bitnet-inference: quantisers see a model's activations and logits through
// these. bitnet-quant itself never runs a model.
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "bitnet/cli/app.hpp"
#include "bitnet/inference/model.hpp"
#include "bitnet/inference/session.hpp"
#include "bitnet/quant/calibration.hpp"
#include "bitnet/quant/logit_metrics.hpp"
#include "bitnet/quant/sensitivity.hpp"

namespace bitnet::cli {

/// Windows of a text whose tokens come piece by piece: as many of `length` tokens as hold `tokens` (of a
/// shorter text: one), evenly spread over it, each with BOS in place of its first token where the vocabulary
/// adds one. Of a text of more than 4,194,304 tokens, and four times as many as are wanted, every second,
/// fourth … window is in the choice, so that what is held does not grow with the text: 16 bytes for each
/// token that is wanted, or 16 MiB. Not thread-safe.
class TextWindows {
 public:
  /// `most_kept`: tokens that are held whatever is wanted.
  TextWindows(const Tokenizer& tokenizer, std::int64_t length, std::int64_t tokens,
              std::size_t most_kept = std::size_t{4} << 20);
  void add(std::span<const TokenId> ids);
  /// The windows, once all of the text was added. Throws Error(kInvalidArgument) on a text without two
  /// tokens.
  std::vector<std::vector<TokenId>> take();

 private:
  void keep_every_second();
  std::optional<TokenId> bos_;
  std::size_t length_, wanted_;  // tokens of a window; windows
  std::size_t most_;             // windows kept
  std::size_t stride_ = 1;       // window i·stride_ of the text is kept_[i]
  std::size_t windows_ = 0;      // whole ones so far
  std::vector<std::vector<TokenId>> kept_;
  std::vector<TokenId> now_;  // begins the next window
};

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
