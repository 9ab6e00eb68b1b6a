#pragma once
// The two networks as lists of stages, which the training side (classifier.hpp) and the running side
// (predictor.hpp) both go through. Plain values and pure functions: thread-safe.
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace fashion {

/// Images lie as rows of channels: [n · height · width, channels].
struct Extent {
  std::int64_t height, width, channels;
  std::int64_t pixels() const noexcept { return height * width; }
  std::int64_t values() const noexcept { return pixels() * channels; }
};

enum class StageKind : std::uint8_t {
  kConvolution,  ///< 3 x 3 with a border of zeros: the extent stays
  kMaxPool,      ///< 2 x 2, one pixel of each
  kDense,        ///< of all values of an image
};

/// One stage: [norm →] weights and bias [→ ReLU], or pooling.
struct Stage {
  StageKind kind;
  std::string name;  ///< its tensors are "name.weight", "name.bias", "name.norm"
  Extent in, out;
  bool ternary;  ///< in a ternary network: trits and int8 activations, else f32
  bool norm;     ///< RMSNorm before it, over channels (convolution) or all values
  bool relu;
  bool has_weights() const noexcept { return kind != StageKind::kMaxPool; }
  /// Inputs of one output.
  std::int64_t fan_in() const noexcept {
    return kind == StageKind::kConvolution ? 9 * in.channels : in.values();
  }
  std::int64_t norm_size() const noexcept {
    return kind == StageKind::kConvolution ? in.channels : in.values();
  }
};

inline constexpr float kNormEps = 1e-5f;

/// The stages of "mlp" or "cnn" for images of this extent. Throws bitnet::Error(kInvalidArgument) for another
/// name, and for images too small to pool.
std::vector<Stage> network(std::string_view name, Extent image, std::int64_t classes);

}  // namespace fashion
