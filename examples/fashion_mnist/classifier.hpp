#pragma once
// A network while it is trained: layers of bitnet-training, the loop that trains them, and the file that they
// are exported to. How that file is run is predictor.hpp. Not thread-safe.
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "bitnet/training/convolution.hpp"
#include "bitnet/training/modules.hpp"
#include "dataset.hpp"
#include "network.hpp"

namespace fashion {

class Classifier {
 public:
  /// Random weights. `ternary` false: the same network in full precision.
  Classifier(const bitnet::ExecutionContext& context, std::string network_name, Extent image, bool ternary,
             std::uint64_t seed);
  /// [n · height · width, 1] → logits [n, classes].
  bitnet::training::Variable logits(bitnet::training::Tape& tape, bitnet::training::Variable pixels);
  /// Ternary forms anew, after weights have changed.
  void refresh(const bitnet::ExecutionContext& context);
  const std::vector<bitnet::training::Parameter*>& parameters() const noexcept { return parameters_; }
  std::int64_t ternary_weights() const noexcept;
  Extent image() const noexcept { return layers_.front().stage.in; }

  /// One safetensors file: trits packed as Hugging Face's with a scale, everything else f32; the metadata
  /// says which network it is. Throws as bitnet::SafeTensorsWriter.
  void save(const std::filesystem::path& path);

 private:
  struct Layer {
    Stage stage;
    std::unique_ptr<bitnet::training::RmsNorm> norm;
    std::unique_ptr<bitnet::training::Conv2d> convolution;
    std::unique_ptr<bitnet::training::Linear> dense;
    bitnet::training::Linear& linear() const noexcept { return dense ? *dense : convolution->linear(); }
  };
  std::string name_;
  bool ternary_;
  std::vector<Layer> layers_;
  std::vector<bitnet::training::Parameter*> parameters_;
};

struct TrainingOptions {
  std::int64_t epochs = 10, batch = 128;
  double rate = 2e-3, weight_decay = 0.05;
  std::uint64_t seed = 1;  ///< of the order of images
};

/// Trains with AdamW and a cosine. `report(epoch, mean loss)` is called after each epoch, ternary forms
/// fresh. Throws bitnet::Error(kInvalidArgument) for fewer images than a batch and for images of another
/// size.
void train(const bitnet::ExecutionContext& context, Classifier& classifier, const Dataset& data,
           const TrainingOptions& options, const std::function<void(std::int64_t, double)>& report);

/// Logits of every image [count, classes]. Throws bitnet::Error(kInvalidArgument) for images of another size.
std::vector<float> evaluate(const bitnet::ExecutionContext& context, Classifier& classifier,
                            const Dataset& data);

/// The largest of each row of logits, the first of equal ones.
std::vector<std::int32_t> answers(const std::vector<float>& logits);

}  // namespace fashion
