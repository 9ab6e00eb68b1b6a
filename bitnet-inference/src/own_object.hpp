#pragma once
// Buffers and weights come back to the backend that made them: the one check of backends that are made of
// others.
#include "bitnet/core/device/backend_types.hpp"
#include "bitnet/core/error.hpp"

namespace bitnet::inference {

/// `buffer` as a backend's own kind. Throws Error(kInvalidArgument) for one that it has not made.
template <class T>
const T& own_buffer(const Buffer& buffer) {
  const auto* p = dynamic_cast<const T*>(&buffer);
  if (p == nullptr) throw Error(ErrorCode::kInvalidArgument, "a buffer of another backend");
  return *p;
}

/// The same of weights.
template <class T>
const T& own_weights(const PreparedWeights& weights) {
  const auto* p = dynamic_cast<const T*>(&weights);
  if (p == nullptr) throw Error(ErrorCode::kInvalidArgument, "weights of another backend");
  return *p;
}

}  // namespace bitnet::inference
