// See scale_tuning.hpp.
#include "scale_tuning.hpp"

#include <algorithm>
#include <cmath>
#include <ostream>

#include "common.hpp"

namespace bitnet::cli {
namespace {

std::string words_of(const training::TunedParts& parts) {
  std::string words;
  for (const auto& [chosen, word] :
       {std::pair{parts.scales, "scales"}, {parts.norms, "norms"}, {parts.embeddings, "embeddings"}})
    if (chosen) words += (words.empty() ? "" : ", ") + std::string(word);
  return words;
}

quant::TuningFigures figures_of(const training::TuningResult& r) {
  return {r.steps, r.tokens, r.loss_before, r.loss_after, std::exp(r.nll_before), std::exp(r.nll_after),
          r.kept};
}

void say(const quant::TuningFigures& f, const training::TunedParts& parts, Io& io) {
  if (f.kept) {
    io.err << "warning: " << f.steps << " steps did not lower the loss of " << fixed(f.loss_before, 4)
           << " nats a token: " << words_of(parts)
           << " are as they were; a lower rate, or more text, may help\n";
    return;
  }
  io.err << "tuned " << words_of(parts) << " for " << f.steps << " steps of "
         << grouped(f.tokens / std::max<std::int64_t>(f.steps, 1)) << " tokens: loss "
         << fixed(f.loss_before, 4) << " → " << fixed(f.loss_after, 4)
         << " nats a token, perplexity of the text " << fixed(f.perplexity_before, 4) << " → "
         << fixed(f.perplexity_after, 4) << '\n';
}

}  // namespace

void check_enough(const std::vector<std::vector<TokenId>>& windows, const training::TuningOptions& options) {
  const auto there = static_cast<std::int64_t>(windows.size());
  if (there >= options.batch) return;
  const std::size_t length = windows.empty() ? 0 : windows[0].size();
  throw Error(ErrorCode::kInvalidArgument, "the text to tune on gives " + std::to_string(windows.size()) +
                                               " windows: a step takes " + std::to_string(options.batch) +
                                               " windows of " + std::to_string(length) + " tokens");
}

Tuned tune_model(const ExecutionContext& context, const TuneInputs& inputs,
                 const training::TuningOptions& options, const training::TunedParts& parts, Io& io) {
  options.validate();
  const auto length =
      inputs.windows.empty() ? std::int64_t{0} : static_cast<std::int64_t>(inputs.windows[0].size());
  bool quantised = false;
  Tuned tuned;
  tuned.model = std::make_unique<training::TunedModel>(
      context, inputs.config,
      [&](TensorId id) {
        check_cancelled(io);
        quant::LogicalTensor t = inputs.source(id);
        quantised = quantised || t.ternary || t.planes || t.int8;
        return t;
      },
      parts, length);
  if (!quantised)
    throw Error(ErrorCode::kInvalidArgument,
                "every linear of the model is in full precision: `bitnet quantize` makes them ternary first");
  auto teacher = with_context("'" + inputs.original.string() + "'", [&] {
    const auto reader = quant::ModelReader::open(inputs.original, inputs.floats);
    return std::make_unique<training::FrozenModel>(
        context, reader->config(), [&](TensorId id) { return reader->read(id); }, length);
  });
  io.err << "tuning holds both models, " << human_bytes(tuned.model->bytes() + teacher->bytes())
         << ", and the activations of a window of " << length << " tokens\n";
  training::TuningResult result;
  {
    ProgressBar bar(io, "steps");
    result = training::tune(context, *tuned.model, std::move(teacher), inputs.windows, options,
                            {.progress = [&](std::int64_t step, double loss) {
                              check_cancelled(io);
                              bar.update(static_cast<double>(step), static_cast<double>(options.steps),
                                         "loss " + fixed(loss, 4));
                            }});
  }
  tuned.figures = figures_of(result);
  say(tuned.figures, parts, io);
  return tuned;
}

}  // namespace bitnet::cli
