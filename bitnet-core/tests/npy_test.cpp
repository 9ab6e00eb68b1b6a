// .npy: NumPy's own files (tests/data/tensors/make_npy.py), round trips, and damaged headers.
#include "bitnet/core/io/npy.hpp"

#include <cstring>

#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/core/rng.hpp"
#include "bitnet/testing/mutate.hpp"
#include "bitnet/testing/testing.hpp"
#include "readers.hpp"

namespace bitnet {
namespace {

using testing::source_path;
using testing::TempDir;

Tensor golden(const std::string& name, NpyWide wide = NpyWide::kRefuse) {
  return read_npy(source_path("tests/data/tensors/npy/" + name + ".npy"), wide);
}

/// arange(24) − 5 as [2, 3, 4], which most of the files hold.
void expect_counting(const Tensor& t, DType dtype) {
  EXPECT_EQ(t.dtype(), dtype);
  ASSERT_EQ(t.shape(), (Shape{2, 3, 4}));
  const Tensor f = t.to(DType::kF32);
  for (std::size_t i = 0; i < 24; ++i) EXPECT_EQ(f.span<float>()[i], static_cast<float>(i) - 5);
}

Tensor parse(const std::string& bytes) {
  return parse_npy(std::as_bytes(std::span(bytes.data(), bytes.size())), "x.npy");
}

/// A file of version 1.0 with this header.
std::string file(const std::string& header, std::size_t data_bytes) {
  std::string s("\x93NUMPY\x01\x00", 8);
  s += static_cast<char>(header.size() & 0xff);
  s += static_cast<char>(header.size() >> 8);
  return s + header + std::string(data_bytes, '\0');
}

TEST(Npy, ReadsWhatNumPyWrites) {
  expect_counting(golden("little_f4"), DType::kF32);
  expect_counting(golden("big_f4"), DType::kF32);
  expect_counting(golden("little_f2"), DType::kF16);
  expect_counting(golden("i1"), DType::kI8);
  expect_counting(golden("little_i4"), DType::kI32);
  expect_counting(golden("big_i4"), DType::kI32);
  expect_counting(golden("version_2"), DType::kF32);
  expect_counting(golden("version_3"), DType::kF32);
  expect_counting(golden("fortran_f4"), DType::kF32);
  expect_counting(golden("fortran_i1"), DType::kI8);
  EXPECT_FALSE(golden("fortran_f4").is_contiguous());
  const Tensor mask = golden("bool");
  for (std::size_t i = 0; i < 24; ++i) EXPECT_EQ(mask.span<std::int8_t>()[i], i > 5 ? 1 : 0);
  EXPECT_EQ(golden("scalar").shape(), Shape{});
  EXPECT_EQ(golden("scalar").span<float>()[0], 2.5f);
  EXPECT_EQ(golden("one_axis").shape(), (Shape{2}));
  EXPECT_EQ(golden("empty").shape(), (Shape{3, 0, 2}));
}

TEST(Npy, NarrowsOnlyWhenAsked) {
  for (const char* name : {"little_f8", "little_i8", "big_i8", "little_i2"}) {
    BITNET_EXPECT_ERROR((void)golden(name), ErrorCode::kUnsupported, "NpyWide::kNarrow");
    expect_counting(golden(name, NpyWide::kNarrow),
                    std::string_view(name) == "little_f8" ? DType::kF32 : DType::kI32);
  }
  BITNET_EXPECT_ERROR((void)golden("u8", NpyWide::kNarrow), ErrorCode::kUnsupported, "element 1 is");
  for (const char* name : {"record", "complex", "text"})
    BITNET_EXPECT_ERROR((void)golden(name, NpyWide::kNarrow), ErrorCode::kUnsupported, name);
}

TEST(Npy, RoundTripsToTheBit) {
  const TempDir dir;
  Rng rng(1);
  for (const Shape& shape :
       {Shape{}, Shape{0}, Shape{7}, Shape{3, 5}, Shape{2, 0, 4}, Shape{1, 1, 1, 1, 1, 1, 1, 2}})
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kI8, DType::kI32}) {
      Tensor t(dtype, shape);
      for (std::byte& b : t.bytes()) b = static_cast<std::byte>(rng.below(256));  // NaNs with payloads, too
      write_npy(dir / "t.npy", t);
      const Tensor back = read_npy(dir / "t.npy");
      EXPECT_EQ(back.dtype(), dtype);
      EXPECT_EQ(back.shape(), shape);
      EXPECT_TRUE(std::ranges::equal(back.bytes(), t.bytes()));
    }
  write_npy(dir / "v.npy", golden("little_f4").transpose(0, 2));
  expect_counting(read_npy(dir / "v.npy").transpose(0, 2), DType::kF32);
}

TEST(Npy, WritesWhatNumPyWrites) {
  const TempDir dir;
  for (const char* name : {"little_f4", "little_f2", "i1", "little_i4", "scalar", "one_axis", "empty"}) {
    write_npy(dir / "t.npy", golden(name));
    EXPECT_EQ(read_file(dir / "t.npy"),
              read_file(source_path("tests/data/tensors/npy/" + std::string(name) + ".npy")));
  }
  BITNET_EXPECT_ERROR(write_npy(dir / "b.npy", Tensor(DType::kBF16, {2})), ErrorCode::kUnsupported,
                      "NumPy has no bf16");
  BITNET_EXPECT_ERROR(write_npy(dir / "b.npy", Tensor(DType::kTernary, {4})), ErrorCode::kUnsupported,
                      "ternary");
  EXPECT_FALSE(std::filesystem::exists(dir / "b.npy"));
  BITNET_EXPECT_ERROR((void)read_npy(dir / "none.npy"), ErrorCode::kNotFound, "none.npy");
}

TEST(Npy, BadHeadersAreNamed) {
  const auto corrupt = [](const std::string& header, std::size_t bytes, const char* text) {
    BITNET_EXPECT_ERROR((void)parse(file(header, bytes)), ErrorCode::kCorruptFile, text);
    BITNET_EXPECT_ERROR((void)parse(file(header, bytes)), ErrorCode::kCorruptFile, "x.npy");
  };
  const std::string start = "{'descr': '<f4', 'fortran_order': False, 'shape': ";
  EXPECT_EQ(parse(file(start + "(2,)}", 8)).shape(), (Shape{2}));
  EXPECT_EQ(parse(file("{\"shape\":(1,2),\"descr\":\"<f4\",\"fortran_order\":True}\n", 8)).shape(),
            (Shape{1, 2}));
  corrupt(start + "(2,)}", 7, "shape (2) of '<f4' takes 8 bytes, 7 follow");
  corrupt(start + "(2,)}", 9, "9 follow");
  corrupt(start + "(2)}", 8, "lacks its comma");
  corrupt(start + "(-2,)}", 8, "a number ≥ 0");
  corrupt(start + "(2, 99999999999999999999)}", 8, "64 bits");
  corrupt(start + "(4611686018427387904, 8)}", 8, "overflows 64 bits");
  corrupt(start + "(4611686018427387904, 8, 0)}", 0, "overflows 64 bits");
  // Fits 64 bits without a sign, which Shape counts with.
  corrupt("{'descr': '|i1', 'fortran_order': False, 'shape': (4611686018427387904, 3, 0)}", 0,
          "overflows 64 bits");
  EXPECT_EQ(parse(file(start + "(2L, 1L)}", 8)).shape(), (Shape{2, 1}));  // Python 2's
  corrupt(start + "(L,)}", 8, "a number ≥ 0");
  corrupt("{'\x1b[31m\r': 1}", 0, "key '\\x1b[31m\\x0d'");
  corrupt("{'" + std::string(100, 'k') + "': 1}", 0, (std::string(40, 'k') + "…'").c_str());
  corrupt(start + "(2,)} x", 8, "follows the dictionary");
  corrupt(start + "(2,), 'more': 1}", 8, "key 'more'");
  corrupt(start + "(2,), 'shape': (2,)}", 8, "twice");
  corrupt("{'descr': '<f4', 'shape': (2,)}", 8, "lacks 'fortran_order'");
  corrupt("{'descr': '<f4", 8, "does not end");
  corrupt("{'descr': <f4}", 8, "a string wanted at byte 10");
  corrupt("{'fortran_order': 1}", 8, "True or False");
  corrupt("", 0, "'{' wanted at byte 0");
  corrupt("{'descr': '|b1', 'fortran_order': False, 'shape': (1,)}\x02", 0, "follow");
  BITNET_EXPECT_ERROR((void)parse(file(start + "(1,1,1,1,1,1,1,1,1)}", 4)), ErrorCode::kUnsupported,
                      "9 axes, at most 8");
  BITNET_EXPECT_ERROR((void)parse("hello"), ErrorCode::kCorruptFile, "does not begin with");
  BITNET_EXPECT_ERROR((void)parse(""), ErrorCode::kCorruptFile, "does not begin with");
  BITNET_EXPECT_ERROR((void)parse(std::string("\x93NUMPY\x04\x00\x00\x00", 10)), ErrorCode::kUnsupported,
                      "version 4.0");
  BITNET_EXPECT_ERROR((void)parse(std::string("\x93NUMPY\x02\x00\xff\xff\xff\xff", 12)),
                      ErrorCode::kCorruptFile, "4294967295 bytes");
}

TEST(Npy, WhatCannotBeWrittenIsNamedOnce) {
  std::string message;
  try {
    write_npy("/no/such/x.npy", Tensor(DType::kF32, {2}));
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::kIo);
    message = e.what();
  }
  EXPECT_EQ(message.find("writing '/no/such/x.npy'"), 0u) << message;
  EXPECT_EQ(message.rfind("x.npy"), message.find("x.npy")) << message;
}

TEST(Npy, EveryTruncationIsCorrupt) {
  const std::string whole = read_file(source_path("tests/data/tensors/npy/fortran_f4.npy"));
  for (std::size_t n = 0; n < whole.size(); ++n) EXPECT_THROW((void)parse(whole.substr(0, n)), Error) << n;
}

TEST(Npy, DamagedFilesThrowNothingElse) {
  Rng rng(7);
  std::size_t accepted = 0;
  for (const char* name : {"fortran_f4", "little_f8", "bool", "u8", "version_3"}) {
    const std::string whole = read_file(source_path("tests/data/tensors/npy/" + std::string(name) + ".npy"));
    for (int i = 0; i < 2000; ++i) {
      const std::string bytes = testing::mutate(whole, rng);
      accepted += fuzzing::read_npy(std::as_bytes(std::span(bytes.data(), bytes.size())));
    }
  }
  EXPECT_GT(accepted, 0u);
}

}  // namespace
}  // namespace bitnet
