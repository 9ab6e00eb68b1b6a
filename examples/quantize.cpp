// A float model made ternary after its training, and what that did to its predictions: bitnet-quant asks what
// the linears are given and which logits come out, bitnet-inference runs the models that say it, and
// Activations and Logits join the two. Usage: bitnet_example_quantize MODEL TEXT_FILE OUT
#include <algorithm>
#include <iostream>

#include "bitnet/core/error.hpp"
#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/inference/observe.hpp"
#include "bitnet/inference/register.hpp"
#include "bitnet/inference/session.hpp"
#include "bitnet/quant/quant_report.hpp"

namespace {

using namespace bitnet;
using Windows = std::vector<std::vector<TokenId>>;

std::shared_ptr<const inference::Model> load(const char* file,
                                             const std::shared_ptr<const ExecutionContext>& context) {
  inference::LoadOptions as_stored;
  as_stored.floats = quant::FloatLinears::kKeep;
  return inference::Model::load(file, inference::make_cpu_backend(context), as_stored);
}

class Activations final : public quant::ActivationSource {
 public:
  Activations(std::shared_ptr<const inference::Model> model, Windows text)
      : model_(std::move(model)), text_(std::move(text)) {}
  void stream(const std::function<bool(TensorId)>& wanted, const Sink& sink) override {
    inference::observe_linear_inputs(model_, text_, wanted, sink);
  }
  void replace(const quant::LogicalTensor&) override {}  // the model is seen as it was

 private:
  std::shared_ptr<const inference::Model> model_;
  Windows text_;
};

class Logits final : public quant::LogitSource {
 public:
  Logits(std::shared_ptr<const inference::Model> model, std::vector<TokenId> text)
      : session_(std::move(model), {.n_ctx = static_cast<std::int64_t>(text.size())}),
        text_(std::move(text)) {}
  std::int64_t vocab_size() const override { return session_.model().config().vocab_size; }
  bool next(std::vector<float>& rows, std::vector<std::int32_t>& targets) override {
    const auto from = std::span(text_).subspan(session_.tokens().size());
    const std::size_t n = std::min(from.size() - 1, std::size_t{inference::Session::kMaxLogits});
    const auto after = from.subspan(1, n);  // the last token has nothing behind it
    targets.assign(after.begin(), after.end());
    rows.clear();
    if (n == 0) return false;
    const auto logits = session_.evaluate(from.first(n), static_cast<std::int64_t>(n));
    rows.assign(logits.begin(), logits.end());
    return true;
  }

 private:
  inference::Session session_;
  std::vector<TokenId> text_;
};

/// A text in windows as long as the model's context.
Windows windows_of(const char* file, const inference::Model& model) {
  const std::vector<TokenId> ids = model.require_tokenizer().encode(read_file(file));
  const auto length = static_cast<std::size_t>(model.config().max_position);
  Windows windows;
  for (std::size_t at = 0; at + length <= ids.size(); at += length)
    windows.emplace_back(ids.begin() + static_cast<std::ptrdiff_t>(at),
                         ids.begin() + static_cast<std::ptrdiff_t>(at + length));
  if (windows.size() < 2)
    throw Error(ErrorCode::kInvalidArgument, "a text of " + std::to_string(ids.size()) +
                                                 " tokens: expected " + std::to_string(2 * length) +
                                                 ", some to calibrate on and some to compare on");
  return windows;
}

void run(const char* in, const char* text_file, const char* out) {
  const auto context = std::make_shared<const ExecutionContext>();
  const auto files = quant::ModelReader::open(in, quant::FloatLinears::kKeep);
  const auto tokenizer = files->tokenizer();
  const auto model = load(in, context);
  Windows text = windows_of(text_file, *model);
  const std::vector<TokenId> held_out = std::move(text.back());
  text.pop_back();

  Activations activations(model, std::move(text));
  quant::StreamedCalibration calibration(*context, activations, files->config());
  quant::QuantReport report;
  report.config.linears.method = quant::WeightMethod::kGptq;
  const quant::WriteOptions written;  // a GGUF of type i2_s
  quant::check_write(out, files->config(), tokenizer.get(), written);
  quant::Quantizer quantizer(*context, *files, report.config,
                             {.calibration = &calibration, .output = written});

  ModelConfig config = files->config();
  config.weights = WeightKind::kTernary;
  quant::write_model(
      out, config, tokenizer.get(), [&](TensorId id) { return quantizer.read(id); }, written);
  report.linears = quantizer.reports();
  Logits before(model, held_out), after(load(out, context), held_out);
  report.logits = quant::compare_logits(before, after);

  for (const quant::LinearReport& linear : report.linears)
    for (const std::string& warning : linear.warnings)
      std::cerr << "warning: " << gguf_name(linear.id) << ": " << warning << '\n';
  std::cout << report.linears.size() << " linears in " << report.bits_per_weight()
            << " bits a weight, their outputs lost " << 100 * report.total().output_error()
            << " %, KL divergence " << report.logits->mean_kl() << " nats a token over "
            << report.logits->positions << " tokens\n";
  for (const std::string& hint : quant::mitigation_hints(report)) std::cout << "hint: " << hint << '\n';
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 4)
    throw bitnet::Error(bitnet::ErrorCode::kInvalidArgument, "usage: quantize MODEL TEXT_FILE OUT");
  run(argv[1], argv[2], argv[3]);
} catch (const bitnet::Error& e) {
  std::cerr << e.what() << '\n';
  return 1;
}
