// Patches and pooling; one work item an image. Convolutions are made of them in modules.cpp.
#include "bitnet/training/image_ops.hpp"

#include <algorithm>
#include <cstring>

#include "ops_common.hpp"

namespace bitnet::training {
namespace {

/// How the pixels of one image meet the places of a window.
struct Geometry {
  ImageShape image, places;
  ImageWindow window;
  std::int64_t channels;

  /// Calls visit(place, tap, pixel) for each pixel that a place sees; tap counts within the window.
  template <class Visit>
  void each(Visit&& visit) const {
    for (std::int64_t py = 0; py < places.height; ++py)
      for (std::int64_t px = 0; px < places.width; ++px)
        for (std::int64_t ty = 0; ty < window.height; ++ty)
          for (std::int64_t tx = 0; tx < window.width; ++tx) {
            const std::int64_t y = py * window.stride + ty - window.padding,
                               x = px * window.stride + tx - window.padding;
            if (y < 0 || y >= image.height || x < 0 || x >= image.width) continue;
            visit(py * places.width + px, ty * window.width + tx, y * image.width + x);
          }
  }
};

Geometry geometry_of(const char* op, Variable x, ImageShape image, const ImageWindow& window) {
  const ImageShape places = window.places(image);
  BITNET_REQUIRE(x.rows() % image.pixels() == 0, op,
                 "input " + dims(x) + " is no whole number of images of " + std::to_string(image.height) +
                     " x " + std::to_string(image.width));
  return {image, places, window, x.cols()};
}

}  // namespace

ImageShape ImageWindow::places(ImageShape image) const {
  const bool positive = image.height > 0 && image.width > 0 && height > 0 && width > 0 && stride > 0;
  BITNET_REQUIRE(positive && padding >= 0 && padding < height && padding < width &&
                     image.height + 2 * padding >= height && image.width + 2 * padding >= width,
                 "window",
                 std::to_string(height) + " x " + std::to_string(width) + ", stride " +
                     std::to_string(stride) + ", padding " + std::to_string(padding) +
                     " does not fit an image of " + std::to_string(image.height) + " x " +
                     std::to_string(image.width));
  return {(image.height + 2 * padding - height) / stride + 1,
          (image.width + 2 * padding - width) / stride + 1};
}

Variable patches(Tape& tape, Variable x, ImageShape image, const ImageWindow& window) {
  const Geometry g = geometry_of("patches", x, image, window);
  const std::int64_t n = x.rows() / image.pixels(), c = x.cols(), taps = window.height * window.width;
  Variable out = tape.make(n * g.places.pixels(), taps * c, x.needs_grad());
  for_rows(tape, n, 1, [&](std::int64_t i) {
    const float* from = x.value().data() + i * g.image.pixels() * c;
    float* to = out.value().data() + i * g.places.pixels() * taps * c;
    std::fill_n(to, g.places.pixels() * taps * c, 0.0f);
    g.each([&](std::int64_t place, std::int64_t tap, std::int64_t pixel) {
      std::memcpy(to + (place * taps + tap) * c, from + pixel * c,
                  static_cast<std::size_t>(c) * sizeof(float));
    });
  });
  Tape* t = &tape;
  tape.on_backward(out, [t, x, out, g, n, c, taps] {
    const auto dx = t->grad_target(x);
    for_rows(*t, n, 1, [&](std::int64_t i) {
      float* to = dx.data + i * g.image.pixels() * c;
      const float* from = out.grad().data() + i * g.places.pixels() * taps * c;
      if (!dx.accumulate) std::fill_n(to, g.image.pixels() * c, 0.0f);
      g.each([&](std::int64_t place, std::int64_t tap, std::int64_t pixel) {
        f32_of(*t).add(from + (place * taps + tap) * c, to + pixel * c, static_cast<std::size_t>(c));
      });
    });
  });
  return out;
}

Variable max_pool(Tape& tape, Variable x, ImageShape image, const ImageWindow& window) {
  const Geometry g = geometry_of("max_pool", x, image, window);
  const std::int64_t n = x.rows() / image.pixels(), c = x.cols();
  Variable out = tape.make(n * g.places.pixels(), c, x.needs_grad());
  // The pixel that each value came from, as a float: exact below 2^24.
  BITNET_REQUIRE(image.pixels() < (1 << 24), "max_pool", "images of 2^24 pixels or more");
  float* origins = tape.floats(out.value().size());
  for_rows(tape, n, 1, [&](std::int64_t i) {
    const float* from = x.value().data() + i * g.image.pixels() * c;
    const std::int64_t base = i * g.places.pixels() * c;
    float *to = out.value().data() + base, *origin = origins + base;
    std::int64_t seen = -1;  // the last place of which a pixel was seen
    g.each([&](std::int64_t place, std::int64_t, std::int64_t pixel) {
      const float *const values = from + pixel * c, here = static_cast<float>(pixel);
      float *const best = to + place * c, *const best_at = origin + place * c;
      if (place != seen) {
        seen = place;
        std::copy_n(values, c, best);
        std::fill_n(best_at, c, here);
        return;
      }
      // Two loops of one choice each: compilers make vectors of those. A NaN is taken, and stays.
      const auto better = [&](std::int64_t k) { return (values[k] > best[k]) | (values[k] != values[k]); };
      for (std::int64_t k = 0; k < c; ++k) best_at[k] = better(k) ? here : best_at[k];
      for (std::int64_t k = 0; k < c; ++k) best[k] = better(k) ? values[k] : best[k];
    });
  });
  Tape* t = &tape;
  tape.on_backward(out, [t, x, out, g, n, c, origins] {
    const auto dx = t->grad_target(x);
    for_rows(*t, n, 1, [&](std::int64_t i) {
      float* to = dx.data + i * g.image.pixels() * c;
      const std::int64_t base = i * g.places.pixels() * c;
      const float* from = out.grad().data() + base;
      if (!dx.accumulate) std::fill_n(to, g.image.pixels() * c, 0.0f);
      for (std::int64_t at = 0; at < g.places.pixels() * c; ++at)
        to[static_cast<std::int64_t>(origins[base + at]) * c + at % c] += from[at];
    });
  });
  return out;
}

}  // namespace bitnet::training
