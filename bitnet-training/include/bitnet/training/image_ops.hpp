#pragma once
// Operations on images. An image of height · width pixels is as many rows of channels (NHWC), several one
// after the other, so that a convolution is a linear layer on patches, and a ternary one a BitLinear. Not
// thread-safe, as their tape is not.
#include <cstdint>

#include "bitnet/training/tape.hpp"

namespace bitnet::training {

struct ImageShape {
  std::int64_t height, width;
  std::int64_t pixels() const noexcept { return height * width; }
};

/// A rectangle that moves over an image by `stride` and over `padding` pixels of zeros around it.
struct ImageWindow {
  std::int64_t height, width, stride = 1, padding = 0;
  /// How many places it has. Throws Error(kInvalidArgument) where there is none or a size is not positive.
  ImageShape places(ImageShape image) const;
};

/// What the window sees at each of its places: x [n · pixels, channels] → [n · places, window height · window
/// width · channels], channels innermost.
Variable patches(Tape& tape, Variable x, ImageShape image, const ImageWindow& window);

/// The largest value of each channel at each place of the window (of equal ones the first), padding left out:
/// [n · pixels, channels] → [n · places, channels].
Variable max_pool(Tape& tape, Variable x, ImageShape image, const ImageWindow& window);

}  // namespace bitnet::training
