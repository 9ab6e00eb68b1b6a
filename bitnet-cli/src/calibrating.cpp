// See calibrating.hpp.
#include "calibrating.hpp"

#include <algorithm>
#include <ostream>
#include <utility>

#include "bitnet/inference/observe.hpp"
#include "bitnet/inference/register.hpp"
#include "common.hpp"

namespace bitnet::cli {
namespace {

std::shared_ptr<const inference::Model> load_model(const std::filesystem::path& path,
                                                   const std::shared_ptr<const ExecutionContext>& context,
                                                   quant::FloatLinears floats) {
  inference::LoadOptions options;
  options.floats = floats;
  return inference::Model::load(path, inference::make_cpu_backend(context), options);
}

}  // namespace

TextWindows::TextWindows(const Tokenizer& tokenizer, std::int64_t length, std::int64_t tokens,
                         std::size_t most_kept)
    : bos_(tokenizer.adds_bos() ? tokenizer.bos() : std::nullopt),
      length_(static_cast<std::size_t>(length)),
      wanted_(std::max<std::size_t>((static_cast<std::size_t>(tokens) + length_ - 1) / length_, 1)),
      most_(std::max(4 * wanted_, most_kept / length_)) {}

void TextWindows::add(std::span<const TokenId> ids) {
  while (!ids.empty()) {
    const std::size_t n = std::min(ids.size(), length_ - now_.size());
    now_.insert(now_.end(), ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(n));
    ids = ids.subspan(n);
    if (now_.size() < length_) return;
    if (windows_++ % stride_ == 0) {
      if (kept_.size() == most_) keep_every_second();
      if ((windows_ - 1) % stride_ == 0) kept_.push_back(now_);
    }
    now_.clear();
  }
}

void TextWindows::keep_every_second() {
  for (std::size_t i = 0; 2 * i < kept_.size(); ++i)
    if (i > 0) kept_[i] = std::move(kept_[2 * i]);
  kept_.resize((kept_.size() + 1) / 2);
  stride_ *= 2;
}

std::vector<std::vector<TokenId>> TextWindows::take() {
  if (windows_ == 0 && now_.size() < 2)
    throw Error(ErrorCode::kInvalidArgument,
                "a text of " + std::to_string(now_.size()) + " tokens: expected two and more");
  if (windows_ == 0) {
    kept_.push_back(std::move(now_));
    windows_ = 1;
  }
  const std::size_t n = std::min(wanted_, windows_);
  std::vector<std::vector<TokenId>> windows;
  for (std::size_t i = 0; i < n; ++i) {  // at most four times as many are kept: each is another one
    windows.push_back(std::move(kept_[i * windows_ / n / stride_]));
    if (bos_) windows.back().front() = *bos_;
  }
  kept_.clear();
  return windows;
}

ModelActivations::ModelActivations(std::filesystem::path model,
                                   std::shared_ptr<const ExecutionContext> context,
                                   std::vector<std::vector<TokenId>> windows, Io& io)
    : path_(std::move(model)), context_(std::move(context)), windows_(std::move(windows)), io_(io) {}

void ModelActivations::load() {
  if (replaced_.empty()) {
    model_ = load_model(path_, context_, quant::FloatLinears::kKeep);
    return;
  }
  const auto reader = quant::ModelReader::open(path_, quant::FloatLinears::kKeep);
  model_ = inference::Model::build(reader->config(), nullptr, inference::make_cpu_backend(context_),
                                   [&](TensorId id) {
                                     const auto at = replaced_.find({id.role, id.layer});
                                     return at == replaced_.end() ? reader->read(id) : at->second;
                                   });
}

void ModelActivations::stream(const std::function<bool(TensorId input)>& wanted, const Sink& sink) {
  if (model_ == nullptr) load();
  ProgressBar bar(io_, "tokens");
  inference::ObserveOptions options;
  if (io_.cancelled != nullptr) options.cancellation = inference::CancellationToken(*io_.cancelled);
  options.progress = [&](std::int64_t done, std::int64_t total) {
    bar.update(static_cast<double>(done), static_cast<double>(total), "calibrating");
  };
  inference::observe_linear_inputs(model_, windows_, wanted, sink, options);
}

void ModelActivations::replace(const quant::LogicalTensor& weights) {
  replaced_[{weights.id.role, weights.id.layer}] = weights;
  model_.reset();
}

ModelLogits::ModelLogits(const std::filesystem::path& model, quant::FloatLinears floats,
                         const std::shared_ptr<const ExecutionContext>& context,
                         std::vector<std::vector<TokenId>> windows)
    : ModelLogits(load_model(model, context, floats), std::move(windows)) {}

ModelLogits::ModelLogits(std::shared_ptr<const inference::Model> model,
                         std::vector<std::vector<TokenId>> windows)
    : windows_(std::move(windows)) {
  inference::SessionOptions options;
  for (const auto& w : windows_) options.n_ctx = std::max(options.n_ctx, static_cast<std::int64_t>(w.size()));
  session_ = std::make_unique<inference::Session>(std::move(model), options);
}

bool ModelLogits::next(std::vector<float>& rows, std::vector<std::int32_t>& targets) {
  rows.clear();
  targets.clear();
  while (window_ < windows_.size() && at_ + 1 >= windows_[window_].size()) {
    ++window_;
    at_ = 0;
    session_->truncate(0);
  }
  if (window_ == windows_.size()) return false;
  const std::vector<TokenId>& w = windows_[window_];
  const std::size_t n =
      std::min<std::size_t>(w.size() - 1 - at_, static_cast<std::size_t>(inference::Session::kMaxLogits));
  const std::span<const float> logits =
      session_->evaluate(std::span(w).subspan(at_, n), static_cast<std::int64_t>(n));
  rows.assign(logits.begin(), logits.end());
  targets.assign(w.begin() + static_cast<std::ptrdiff_t>(at_ + 1),
                 w.begin() + static_cast<std::ptrdiff_t>(at_ + 1 + n));
  at_ += n;
  return true;
}

ModelTrials::ModelTrials(const std::filesystem::path& model, quant::FloatLinears floats,
                         const std::shared_ptr<const ExecutionContext>& context,
                         std::vector<std::vector<TokenId>> windows, Io& io)
    : model_(load_model(model, context, floats)), windows_(std::move(windows)), io_(io) {}

std::unique_ptr<quant::LogitSource> ModelTrials::run(const Linears& linears) {
  check_cancelled(io_);
  return std::make_unique<ModelLogits>(linears ? model_->with_linears(linears) : model_, windows_);
}

}  // namespace bitnet::cli
