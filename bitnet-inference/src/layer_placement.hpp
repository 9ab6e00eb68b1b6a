#pragma once
// What a loader tells a backend whose layers lie in several places: which tensor or cache is made next. Other
// backends are not concerned.
#include <cstdint>
#include <optional>
#include <vector>

#include "bitnet/core/device/backend.hpp"
#include "bitnet/core/model/tensor_names.hpp"

namespace bitnet::inference {

/// A backend with places for layers. Not thread-safe.
class LayerPlacer {
 public:
  virtual ~LayerPlacer() = default;
  /// Buffers and weights made from now on belong to this tensor, or to nothing in particular.
  virtual void place(std::optional<TensorId> id) noexcept = 0;
  /// The backends that the layers are on.
  virtual std::vector<const Backend*> parts() const = 0;
};

/// While it lives, what the backend makes belongs to `id`.
class Placed {
 public:
  Placed(Backend& backend, TensorId id) noexcept : placer_(dynamic_cast<LayerPlacer*>(&backend)) {
    if (placer_ != nullptr) placer_->place(id);
  }
  Placed(const Placed&) = delete;
  Placed& operator=(const Placed&) = delete;
  ~Placed() {
    if (placer_ != nullptr) placer_->place(std::nullopt);
  }

 private:
  LayerPlacer* placer_;
};

}  // namespace bitnet::inference
