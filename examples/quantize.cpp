// A float model made ternary after its training: bitnet-quant asks what the linears are given,
// bitnet-inference runs the model that says it, and Activations joins the two. Usage: bitnet_example_quantize
// MODEL TEXT_FILE OUT
#include <algorithm>
#include <iostream>

#include "bitnet/core/error.hpp"
#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/inference/observe.hpp"
#include "bitnet/inference/register.hpp"
#include "bitnet/quant/quant_report.hpp"

namespace {

using namespace bitnet;

class Activations final : public quant::ActivationSource {
 public:
  Activations(std::shared_ptr<const inference::Model> model, std::vector<TokenId> text)
      : model_(std::move(model)), text_{std::move(text)} {}
  void stream(const std::function<bool(TensorId)>& wanted, const Sink& sink) override {
    inference::observe_linear_inputs(model_, text_, wanted, sink);
  }
  void replace(const quant::LogicalTensor&) override {}  // the model is seen as it was

 private:
  std::shared_ptr<const inference::Model> model_;
  std::vector<std::vector<TokenId>> text_;
};

void run(const char* in, const char* text_file, const char* out) {
  const auto context = std::make_shared<const ExecutionContext>();
  const auto files = quant::ModelReader::open(in, quant::FloatLinears::kKeep);
  const auto tokenizer = files->tokenizer();
  inference::LoadOptions as_stored;
  as_stored.floats = quant::FloatLinears::kKeep;
  const auto model = inference::Model::load(in, inference::make_cpu_backend(context), as_stored);
  std::vector<TokenId> text = model->require_tokenizer().encode(read_file(text_file));
  text.resize(std::min(text.size(), static_cast<std::size_t>(files->config().max_position)));

  Activations activations(model, std::move(text));
  quant::StreamedCalibration calibration(*context, activations, files->config());
  quant::QuantReport report;
  report.config.linears.method = quant::WeightMethod::kGptq;
  quant::Quantizer quantizer(*context, *files, report.config, {.calibration = &calibration});

  ModelConfig config = files->config();
  config.weights = WeightKind::kTernary;
  quant::write_model(out, config, tokenizer.get(), [&](TensorId id) { return quantizer.read(id); }, {});
  report.linears = quantizer.reports();
  std::cout << report.linears.size() << " linears in " << report.bits_per_weight()
            << " bits a weight, their outputs lost " << 100 * report.total().output_error() << " %\n";
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
