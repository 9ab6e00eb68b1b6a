#pragma once
// Convolutions, in full precision and ternary. Patches and pooling are image_ops.hpp. Not thread-safe, like
// every module.
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "bitnet/training/image_ops.hpp"
#include "bitnet/training/modules.hpp"

namespace bitnet::training {

/// Convolution of images as rows of channels (image_ops.hpp): a linear layer on patches. Weights [out, window
/// height · window width · in], channels innermost.
class Conv2d : public Module {
 public:
  Conv2d(const ExecutionContext& context, std::string name, std::int64_t out, std::int64_t in,
         const ImageWindow& window, bool bias = true);
  Variable forward(Tape& tape, Variable x, ImageShape image);
  ImageShape output(ImageShape image) const { return window_.places(image); }
  void parameters(std::vector<Parameter*>& all) override { linear_->parameters(all); }
  void refresh(const ExecutionContext& context) override { linear_->refresh(context); }
  void set_lambda(float lambda) override { linear_->set_lambda(lambda); }
  Linear& linear() noexcept { return *linear_; }

 protected:
  Conv2d(std::unique_ptr<Linear> linear, const ImageWindow& window);

 private:
  std::unique_ptr<Linear> linear_;
  ImageWindow window_;
};

/// The same of a BitLinear: each patch is a row of its own to the quantiser.
class BitConv2d final : public Conv2d {
 public:
  BitConv2d(const ExecutionContext& context, std::string name, std::int64_t out, std::int64_t in,
            const ImageWindow& window, const BitLinearOptions& options = {});
};

}  // namespace bitnet::training
