// See quantize_progress.hpp.
#include "quantize_progress.hpp"

#include <ostream>

namespace bitnet::cli {

QuantizeProgress::QuantizeProgress(Io& io, const std::vector<quant::PlannedLinear>& plans,
                                   const ModelConfig& model, double seconds)
    : io_(io), bar_(io, "layers"), interval_(seconds), left_(static_cast<std::size_t>(model.n_layers)) {
  for (const quant::PlannedLinear& l : plans) {
    all_ += static_cast<double>(tensor_shape(l.id, model).numel());
    ++left_.at(static_cast<std::size_t>(l.id.layer));
  }
}

std::string QuantizeProgress::line(std::int64_t layers, std::int64_t all, double worked, double to_come,
                                   double seconds) {
  std::string text = "layer " + std::to_string(layers) + " of " + std::to_string(all) + " done";
  if (worked > 0 && to_come > 0) text += ", " + human_time(seconds / worked * to_come) + " to go";
  return text;
}

void QuantizeProgress::done(const quant::LinearReport& linear, std::int64_t resumed) {
  const double weights = static_cast<double>(linear.out) * static_cast<double>(linear.in);
  seen_ += weights;
  layer_weights_ += weights;
  if (--left_.at(static_cast<std::size_t>(linear.id.layer)) > 0) return;
  ++layers_;
  const auto all = static_cast<std::int64_t>(left_.size());
  if (resumed > resumed_) {
    skipped_ += layer_weights_;
    began_ = watch_.seconds();
  }
  resumed_ = resumed;
  layer_weights_ = 0;
  const double now = watch_.seconds(), worked = seen_ - skipped_;
  if (io_.err_is_terminal) {
    // The bar's own estimate: of layers alike, without those that were there.
    bar_.update(static_cast<double>(layers_ - resumed), static_cast<double>(all - resumed),
                resumed > 0 ? std::to_string(resumed) + " were done before" : "");
    if (layers_ == all) bar_.clear();
    return;
  }
  if (now - said_ < interval_) return;
  said_ = now;
  io_.err << line(layers_, all, worked, all_ - seen_, now - began_) << '\n';
}

}  // namespace bitnet::cli
