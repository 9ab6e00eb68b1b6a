// Names and sizes of GGUF's tensor types. Decoding them is bitnet-quant's business.
#include <fmt/format.h>

#include <array>

#include "bitnet/core/error.hpp"
#include "bitnet/core/io/gguf.hpp"

namespace bitnet {
namespace {

struct TypeRow {
  std::int32_t id;
  const char* name;
  std::uint32_t block;  // elements; 0: the size is unknown
  std::uint32_t bytes;  // per block
};

// ggml-common.h's block structs; I2_S is microsoft/BitNet's and has 32 more bytes a tensor.
constexpr std::array kTypes = {
    TypeRow{0, "F32", 1, 4},        TypeRow{1, "F16", 1, 2},       TypeRow{2, "Q4_0", 32, 18},
    TypeRow{3, "Q4_1", 32, 20},     TypeRow{6, "Q5_0", 32, 22},    TypeRow{7, "Q5_1", 32, 24},
    TypeRow{8, "Q8_0", 32, 34},     TypeRow{9, "Q8_1", 32, 36},    TypeRow{10, "Q2_K", 256, 84},
    TypeRow{11, "Q3_K", 256, 110},  TypeRow{12, "Q4_K", 256, 144}, TypeRow{13, "Q5_K", 256, 176},
    TypeRow{14, "Q6_K", 256, 210},  TypeRow{15, "Q8_K", 256, 292}, TypeRow{24, "I8", 1, 1},
    TypeRow{25, "I16", 1, 2},       TypeRow{26, "I32", 1, 4},      TypeRow{27, "I64", 1, 8},
    TypeRow{28, "F64", 1, 8},       TypeRow{30, "BF16", 1, 2},     TypeRow{34, "TQ1_0", 256, 54},
    TypeRow{35, "TQ2_0", 256, 66},  TypeRow{36, "I2_S", 128, 32},  TypeRow{38, "TL1", 0, 0},
    TypeRow{39, "TL2/MXFP4", 0, 0}, TypeRow{42, "Q2_0", 0, 0},
};

const TypeRow* row_of(GgmlType type) noexcept {
  for (const TypeRow& row : kTypes)
    if (row.id == static_cast<std::int32_t>(type)) return &row;
  return nullptr;
}

}  // namespace

std::string to_string(GgmlType type) {
  const TypeRow* row = row_of(type);
  return row ? row->name : fmt::format("type {}", static_cast<std::int32_t>(type));
}

std::uint64_t ggml_bytes(GgmlType type, std::span<const std::int64_t> dims) {
  const TypeRow* row = row_of(type);
  if (!row || row->block == 0)
    throw Error(ErrorCode::kUnsupported, fmt::format("the size of tensor {} is unknown", to_string(type)));
  std::uint64_t elements = 1;
  for (const std::int64_t dim : dims) {
    if (dim < 0)
      throw Error(ErrorCode::kCorruptFile, fmt::format("expected dimensions of at least 0, got {}", dim));
    // 2^60 elements of at most 8 bytes stay below 2^63.
    if (dim != 0 && elements > (std::uint64_t{1} << 60) / static_cast<std::uint64_t>(dim))
      throw Error(ErrorCode::kCorruptFile, "the product of the dimensions exceeds 2^60");
    elements *= static_cast<std::uint64_t>(dim);
  }
  const std::uint64_t fastest = dims.empty() ? 1 : static_cast<std::uint64_t>(dims[0]);
  if (fastest % row->block != 0)
    throw Error(ErrorCode::kCorruptFile,
                fmt::format("type {} needs a first dimension that is a multiple of {}, got {}", row->name,
                            row->block, fastest));
  const std::uint64_t bytes = elements / row->block * row->bytes;
  return type == GgmlType::kI2_S ? bytes + 32 : bytes;
}

}  // namespace bitnet
