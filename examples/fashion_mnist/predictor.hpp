#pragma once
// An exported network run by bitnet-quant's kernels: no training code. The file is written by classifier.hpp.
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "bitnet/core/execution.hpp"
#include "bitnet/quant/bit_linear.hpp"
#include "network.hpp"

namespace fashion {

/// Immutable once loaded; predictions of several threads need no lock.
class Predictor {
 public:
  /// Throws bitnet::Error as bitnet::SafeTensors::open, and kCorruptFile, naming the file and the tensor, for
  /// a file that is none of ours, that lacks a tensor or has one in another shape or type than its network
  /// asks for, and for values that are not finite; kInvalidArgument for images that its network cannot have.
  static Predictor load(const bitnet::ExecutionContext& context, const std::filesystem::path& path);

  Extent image() const noexcept { return layers_.front().stage.in; }
  std::int64_t classes() const noexcept { return layers_.back().stage.out.values(); }
  /// Logits [n, classes] of images [n, height, width], 0 … 1: the same bits as the training side's, on any
  /// number of threads. Throws bitnet::Error(kInvalidArgument) for another number of values.
  std::vector<float> logits(const bitnet::ExecutionContext& context, std::span<const float> images) const;

 private:
  struct Layer {
    Stage stage;
    std::vector<float> norm, bias;
    std::vector<float> weight;  // [out, fan_in], or
    std::optional<bitnet::quant::BitLinear> ternary;
  };
  static void multiply(const bitnet::ExecutionContext& context, const Layer& layer,
                       const std::vector<float>& x, std::int64_t n, std::vector<float>& y);
  std::vector<Layer> layers_;
};

}  // namespace fashion
