// Names and sizes of element types; conversions of values are tensor.cpp's.
#include "bitnet/core/dtype.hpp"

namespace bitnet {

std::string_view to_string(DType dtype) noexcept {
  switch (dtype) {
    case DType::kF32:
      return "f32";
    case DType::kF16:
      return "f16";
    case DType::kBF16:
      return "bf16";
    case DType::kI8:
      return "i8";
    case DType::kI32:
      return "i32";
    case DType::kTernary:
      return "ternary";
  }
  return "?";
}

}  // namespace bitnet
