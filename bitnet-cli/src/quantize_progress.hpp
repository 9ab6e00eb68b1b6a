#pragma once
// How far a quantisation is, and how long it still takes: a bar on a terminal, elsewhere a line now and then.
#include <cstdint>
#include <string>
#include <vector>

#include "bitnet/quant/quantizer.hpp"
#include "common.hpp"

namespace bitnet::cli {

/// Told of each linear when it is done. The time to go is that of the weights to come at the rate of those
/// that were worked on; layers that were there already (--work) took none.
class QuantizeProgress {
 public:
  /// Lines where there is no terminal come at most every `seconds`.
  QuantizeProgress(Io& io, const std::vector<quant::PlannedLinear>& plans, const ModelConfig& model,
                   double seconds = 30);
  /// `resumed`: layers so far that were taken as they were.
  void done(const quant::LinearReport& linear, std::int64_t resumed);
  /// Before anything else is written: a bar goes away.
  void clear() { bar_.clear(); }

  /// "layer 3 of 32 done, 1:02:03 to go"; without a rate no time.
  static std::string line(std::int64_t layers, std::int64_t all, double worked, double to_come,
                          double seconds);

 private:
  Io& io_;
  ProgressBar bar_;
  Stopwatch watch_;
  double interval_, said_ = 0;      // seconds of watch_
  double all_ = 0;                  // weights
  double seen_ = 0, skipped_ = 0;   // of them so far; of those, in layers that were there
  double began_ = 0;                // seconds of watch_ when the first layer was worked on
  double layer_weights_ = 0;        // of the layer that comes in
  std::vector<std::int64_t> left_;  // [layers], linears to come
  std::int64_t layers_ = 0, resumed_ = 0;
};

}  // namespace bitnet::cli
