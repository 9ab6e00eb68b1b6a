// GgufFile, GgufWriter and GgufMetadata: what they write they read, what others wrote they read, and damaged
// files give an Error. Whole models are bitnet-quant's model_io_test.
#include <algorithm>
#include <cstring>
#include <fstream>
#include <limits>

#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/core/io/gguf.hpp"
#include "bitnet/testing/mutate.hpp"
#include "bitnet/testing/testing.hpp"
#include "readers.hpp"

namespace bitnet {
namespace {

using testing::source_path;
using testing::TempDir;

/// Builds GGUF bytes by hand, so that the reader is tested against the format and not against the writer.
class Bytes {
 public:
  template <class T>
  Bytes& put(T v) {
    text_.append(reinterpret_cast<const char*>(&v), sizeof(T));
    return *this;
  }
  Bytes& str(std::string_view s) { return put(std::uint64_t{s.size()}).raw(s); }
  Bytes& raw(std::string_view s) {
    text_.append(s);
    return *this;
  }
  Bytes& header(std::uint64_t n_tensors, std::uint64_t n_kv, std::uint32_t version = 3) {
    return raw("GGUF").put(version).put(n_tensors).put(n_kv);
  }
  Bytes& info(std::string_view name, std::initializer_list<std::int64_t> dims, std::int32_t type,
              std::uint64_t offset) {
    str(name).put(static_cast<std::uint32_t>(dims.size()));
    for (const std::int64_t d : dims) put(d);
    return put(type).put(offset);
  }
  Bytes& pad(std::size_t alignment = 32) {
    while (text_.size() % alignment) text_.push_back('\0');
    return *this;
  }
  const std::string& text() const { return text_; }

 private:
  std::string text_;
};

class Gguf : public ::testing::Test {
 protected:
  std::shared_ptr<const GgufFile> open(const std::string& bytes) {
    write_file(dir_ / "x.gguf", bytes);
    return GgufFile::open(dir_ / "x.gguf");
  }
  void expect_corrupt(const Bytes& b, const char* text) {
    BITNET_EXPECT_ERROR(open(b.text()), ErrorCode::kCorruptFile, text);
    BITNET_EXPECT_ERROR(open(b.text()), ErrorCode::kCorruptFile, "x.gguf");
  }
  TempDir dir_;
};

GgufMetadata all_kinds() {
  GgufMetadata m;
  m.set_string("general.architecture", "bitnet");
  m.set("k.u8", {0, 0, std::uint64_t{255}});
  m.set("k.i8", {1, 0, std::int64_t{-128}});
  m.set("k.u16", {2, 0, std::uint64_t{65535}});
  m.set("k.i16", {3, 0, std::int64_t{-32768}});
  m.set_u32("k.u32", 0xffffffffu);
  m.set_i32("k.i32", -5);
  m.set_f32("k.f32", 0.1f);
  m.set_bool("k.bool", true);
  m.set("k.u64", {10, 0, ~std::uint64_t{0}});
  m.set("k.i64", {11, 0, std::numeric_limits<std::int64_t>::min()});
  m.set("k.f64", {12, 0, 0.1});
  m.set_strings("k.strings", {"", "a", std::string("nul\0inside", 10)});
  const std::int32_t ints[] = {-1, 2};
  m.set_i32s("k.i32s", ints);
  const float floats[] = {0.1f, -3e38f};
  m.set_f32s("k.f32s", floats);
  m.set("k.bools", {9, 7, GgufArray(std::vector<bool>{true, false, true})});
  m.set("k.u8s", {9, 0, GgufArray(std::vector<std::uint64_t>{0, 255})});
  m.set("k.empty", {9, 8, GgufArray(std::vector<std::string>{})});
  return m;
}

std::vector<std::byte> ramp(std::size_t n) {
  std::vector<std::byte> b(n);
  for (std::size_t i = 0; i < n; ++i) b[i] = static_cast<std::byte>(i * 7 + 1);
  return b;
}

bool equal(std::span<const std::byte> a, std::span<const std::byte> b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end());
}

/// A small file with every kind of value and tensors whose sizes are no multiples of the alignment.
void write_sample(const std::filesystem::path& path) {
  GgufWriter writer(path, all_kinds(),
                    {{"a", {3, 5}, GgmlType::kF32, 0, 0},
                     {"b", {256, 2}, GgmlType::kTQ1_0, 0, 0},
                     {"c", {128, 3}, GgmlType::kI2_S, 0, 0},
                     {"d", {}, GgmlType::kF16, 0, 0},
                     {"e", {0, 7}, GgmlType::kF32, 0, 0}});
  writer.write("a", ramp(60));
  writer.write("b", ramp(108));
  writer.write("c", ramp(128));
  writer.write("d", ramp(2));
  writer.write("e", {});
  writer.finish();
}

TEST_F(Gguf, RoundTripKeepsEveryValueTypeAndByte) {
  write_sample(dir_ / "s.gguf");
  const auto file = GgufFile::open(dir_ / "s.gguf");
  const GgufMetadata expected = all_kinds();
  ASSERT_EQ(file->metadata().entries().size(), expected.entries().size());
  for (std::size_t i = 0; i < expected.entries().size(); ++i) {
    const auto& [key, value] = file->metadata().entries()[i];
    EXPECT_EQ(key, expected.entries()[i].first);
    EXPECT_EQ(value.type, expected.entries()[i].second.type) << key;
    if (value.type == 9) {
      EXPECT_EQ(value.element_type, expected.entries()[i].second.element_type) << key;
    }
    EXPECT_TRUE(value.data == expected.entries()[i].second.data) << key;
  }
  ASSERT_EQ(file->tensors().size(), 5u);
  for (const GgufTensorInfo& t : file->tensors()) {
    EXPECT_EQ(t.offset % 32, 0u);
    const auto data = file->data(t);
    EXPECT_TRUE(equal(data, ramp(t.bytes))) << t.name;
    EXPECT_EQ(file->find(t.name), &t);
  }
  EXPECT_EQ(file->find("zz"), nullptr);
  EXPECT_EQ(file->find("c")->bytes, 3u * 32 + 32);
}

TEST_F(Gguf, RewritingGivesTheSameBytes) {
  write_sample(dir_ / "s.gguf");
  const auto file = GgufFile::open(dir_ / "s.gguf");
  GgufWriter writer(dir_ / "t.gguf", file->metadata(), {file->tensors().begin(), file->tensors().end()});
  for (const auto& t : file->tensors()) writer.write(t.name, file->data(t));
  writer.finish();
  EXPECT_EQ(read_file(dir_ / "s.gguf"), read_file(dir_ / "t.gguf"));
}

TEST_F(Gguf, OtherAlignment) {
  GgufMetadata m;
  m.set_u32("general.alignment", 64);
  GgufWriter writer(dir_ / "s.gguf", m, {{"a", {1}, GgmlType::kF32, 0, 0}, {"b", {1}, GgmlType::kF32, 0, 0}});
  writer.write("a", ramp(4));
  writer.write("b", ramp(4));
  writer.finish();
  const auto file = GgufFile::open(dir_ / "s.gguf");
  EXPECT_EQ(file->find("b")->offset, 64u);
  EXPECT_TRUE(equal(file->data(*file->find("b")), ramp(4)));
}

TEST_F(Gguf, TypedLookUps) {
  const GgufMetadata m = all_kinds();
  EXPECT_EQ(m.integer("k.u8"), 255);
  EXPECT_EQ(m.integer("k.i64"), std::numeric_limits<std::int64_t>::min());
  EXPECT_EQ(m.integer("absent"), std::nullopt);
  EXPECT_EQ(m.number("k.u8"), 255.0);
  EXPECT_EQ(m.number("k.f32"), static_cast<double>(0.1f));
  EXPECT_EQ(m.boolean("k.bool"), true);
  EXPECT_EQ(m.string("general.architecture"), "bitnet");
  EXPECT_EQ(m.strings("k.strings")->at(2).size(), 10u);
  EXPECT_EQ(m.integers("k.u8s"), (std::vector<std::int64_t>{0, 255}));
  EXPECT_EQ(m.numbers("k.i32s"), (std::vector<double>{-1, 2}));
  BITNET_EXPECT_ERROR(m.integer("k.u64"), ErrorCode::kCorruptFile, "k.u64");
  BITNET_EXPECT_ERROR(m.integer("k.f32"), ErrorCode::kCorruptFile, "expected an integer, found f32");
  BITNET_EXPECT_ERROR(m.number("k.bool"), ErrorCode::kCorruptFile, "expected a number, found bool");
  BITNET_EXPECT_ERROR(m.string("k.u8"), ErrorCode::kCorruptFile, "expected a string, found u8");
  BITNET_EXPECT_ERROR(m.boolean("k.u8"), ErrorCode::kCorruptFile, "expected a bool");
  BITNET_EXPECT_ERROR(m.strings("k.i32s"), ErrorCode::kCorruptFile, "found array of i32");
  BITNET_EXPECT_ERROR(m.integers("k.f32s"), ErrorCode::kCorruptFile, "array of integers");
  BITNET_EXPECT_ERROR(m.numbers("k.strings"), ErrorCode::kCorruptFile, "array of numbers");
}

TEST_F(Gguf, ReadsTheFileOfThePythonPackage) {
  const auto file = GgufFile::open(source_path("tests/data/gguf/golden.gguf"));
  const GgufMetadata& m = file->metadata();
  EXPECT_EQ(m.string("general.architecture"), "bitnet-b1.58");
  EXPECT_EQ(m.integer("t.u8"), 200);
  EXPECT_EQ(m.integer("t.i8"), -100);
  EXPECT_EQ(m.integer("t.u16"), 60000);
  EXPECT_EQ(m.integer("t.i16"), -30000);
  EXPECT_EQ(m.integer("t.u32"), 4000000000);
  EXPECT_EQ(m.integer("t.i32"), -2000000000);
  EXPECT_EQ(std::get<std::uint64_t>(m.find("t.u64")->data), (std::uint64_t{1} << 63) + 5);
  EXPECT_EQ(m.integer("t.i64"), -(std::int64_t{1} << 62));
  EXPECT_EQ(m.number("t.f32"), 1.5);
  EXPECT_EQ(m.number("t.f64"), 0.1);
  EXPECT_EQ(m.boolean("t.bool"), true);
  EXPECT_EQ(m.string("t.string"), "naïve ∀");
  EXPECT_EQ(m.strings("t.strings"), (std::vector<std::string>{"a", "", "ü"}));
  EXPECT_EQ(m.integers("t.ints"), (std::vector<std::int64_t>{1, -2, 3}));
  EXPECT_EQ(m.numbers("t.floats"), (std::vector<double>{0.5, -0.25}));
  EXPECT_TRUE(std::get<GgufArray>(m.find("t.bools")->data) == GgufArray(std::vector<bool>{true, false}));
  ASSERT_NE(file->find("tq1_0"), nullptr);
  EXPECT_EQ(file->find("tq1_0")->dims, (std::vector<std::int64_t>{512, 3}));
  EXPECT_EQ(file->find("tq1_0")->bytes, 3u * 2 * 54);
  EXPECT_EQ(file->find("q6_k")->bytes, 2u * 2 * 210);
}

TEST_F(Gguf, ReadsRealVocabularyFiles) {
  BITNET_REQUIRE_TEST_DATA(data);
  const auto gpt2 = GgufFile::open(data / "ggml-vocab-gpt-2.gguf");
  EXPECT_EQ(gpt2->metadata().strings("tokenizer.ggml.tokens")->size(), 50257u);
  EXPECT_TRUE(gpt2->tensors().empty());
  const auto spm = GgufFile::open(data / "ggml-vocab-llama-spm.gguf");
  EXPECT_EQ(spm->metadata().strings("tokenizer.ggml.tokens")->size(), 32000u);
  EXPECT_EQ(spm->metadata().numbers("tokenizer.ggml.scores")->size(), 32000u);
  EXPECT_EQ(ModelConfig::from_gguf(spm->metadata()).vocab_size, 32000);
}

TEST_F(Gguf, EveryTruncationIsAnError) {
  write_sample(dir_ / "s.gguf");
  const std::string whole = read_file(dir_ / "s.gguf");
  for (std::size_t n = 0; n + 32 < whole.size(); ++n) {  // the last tensor is 2 bytes and 30 of padding
    write_file(dir_ / "cut.gguf", std::string_view(whole).substr(0, n));
    EXPECT_FALSE(fuzzing::read_gguf(dir_ / "cut.gguf")) << n;
  }
}

TEST_F(Gguf, DamagedFilesGiveOnlyErrors) {
  write_sample(dir_ / "s.gguf");
  const std::string whole = read_file(dir_ / "s.gguf");
  std::size_t accepted = 0;
  for (std::size_t bit = 0; bit < whole.size() * 8; bit += 3) {
    std::string flipped = whole;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << bit % 8));
    std::ofstream(dir_ / "f.gguf", std::ios::binary) << flipped;
    accepted += fuzzing::read_gguf(dir_ / "f.gguf");
  }
  Rng rng(1);
  for (int i = 0; i < 3000; ++i) {
    std::ofstream(dir_ / "f.gguf", std::ios::binary) << testing::mutate(whole, rng);
    accepted += fuzzing::read_gguf(dir_ / "f.gguf");
  }
  EXPECT_GT(accepted, 0u);  // flips in tensor data do no harm
}

TEST_F(Gguf, BadHeaders) {
  expect_corrupt(Bytes().raw("GGML").put(3).put(std::uint64_t{0}).put(std::uint64_t{0}), "magic");
  BITNET_EXPECT_ERROR(open(Bytes().header(0, 0, 1).text()), ErrorCode::kUnsupported, "version");
  BITNET_EXPECT_ERROR(open(Bytes().header(0, 0, 0x03000000).text()), ErrorCode::kUnsupported, "big-endian");
  BITNET_EXPECT_ERROR(GgufFile::open(dir_ / "none.gguf"), ErrorCode::kNotFound, "none.gguf");
  EXPECT_TRUE(open(Bytes().header(0, 0, 2).text())->tensors().empty());
}

TEST_F(Gguf, ClaimedCountsAreComparedWithTheFile) {
  expect_corrupt(Bytes().header(std::uint64_t{1} << 60, 0), "number of tensors");
  expect_corrupt(Bytes().header(0, ~std::uint64_t{0}), "number of key-values");
  expect_corrupt(Bytes().header(0, 1).put(~std::uint64_t{0}).raw(std::string(40, 'x')), "a key");
  expect_corrupt(
      Bytes().header(0, 1).str("k").put(9).put(10).put(std::uint64_t{1} << 61).put(std::uint64_t{0}),
      "array's length");
  expect_corrupt(Bytes().header(0, 1).str("k").put(8).put(std::uint64_t{1} << 63), "a string");
  expect_corrupt(Bytes().header(2, 0).info("a", {1}, 0, 0).pad(), "tensors");
}

TEST_F(Gguf, SparseFilesTakeNoMemory) {
  // Zeros that take no space on the disk back what the head claims.
  const auto sparse = [&](const Bytes& head, std::uint64_t bytes) {
    write_file(dir_ / "sparse.gguf", head.text());
    std::filesystem::resize_file(dir_ / "sparse.gguf", bytes);
    return GgufFile::open(dir_ / "sparse.gguf");
  };
  constexpr std::uint64_t kGiB = std::uint64_t{1} << 30;
  BITNET_EXPECT_ERROR(sparse(Bytes().header(0, std::uint64_t{1} << 32), 64 * kGiB), ErrorCode::kCorruptFile,
                      "expected a key of 1 to 65535 bytes");
  BITNET_EXPECT_ERROR(sparse(Bytes().header(std::uint64_t{1} << 32, 0), 128 * kGiB), ErrorCode::kCorruptFile,
                      "expected a tensor name");
  for (const std::int32_t type : {0, 1, 8})  // bytes, which widen to 8, and empty strings
    BITNET_EXPECT_ERROR(
        sparse(Bytes().header(0, 1).str("k").put(9).put(type).put(std::uint64_t{1} << 27), 2 * kGiB),
        ErrorCode::kUnsupported, "key 'k': at byte 49: the metadata exceed");
  BITNET_EXPECT_ERROR(sparse(Bytes().header(0, 1).str("k").put(8).put(kGiB), 2 * kGiB),
                      ErrorCode::kUnsupported, "the metadata exceed");
  // Values that are small enough each are counted together.
  const std::uint64_t half = kGiB / 7;
  (void)sparse(Bytes().header(0, 1).str("a").put(8).put(half), 45 + half);
  {
    std::ofstream more(dir_ / "sparse.gguf", std::ios::binary | std::ios::app);
    more << Bytes().str("b").put(8).put(half).text();
    std::fstream head(dir_ / "sparse.gguf", std::ios::binary | std::ios::in | std::ios::out);
    head << Bytes().header(0, 2).text();
  }
  std::filesystem::resize_file(dir_ / "sparse.gguf", 2 * kGiB);
  BITNET_EXPECT_ERROR(GgufFile::open(dir_ / "sparse.gguf"), ErrorCode::kUnsupported, "key 'b'");
}

TEST_F(Gguf, BadValues) {
  expect_corrupt(Bytes().header(0, 1).str("k").put(13).put(0), "unknown value type 13");
  expect_corrupt(Bytes().header(0, 1).str("k").put(9).put(-1).put(std::uint64_t{0}),
                 "unknown array element type");
  expect_corrupt(Bytes().header(0, 1).str("k").put(7).put(std::uint8_t{2}), "bool");
  expect_corrupt(Bytes().header(0, 1).str("").put(0).put(std::uint8_t{2}), "key");
  expect_corrupt(Bytes().header(0, 2).str("k").put(0).put('a').str("k").put(0).put('b'), "'k' occurs twice");
  BITNET_EXPECT_ERROR(open(Bytes().header(0, 1).str("k").put(9).put(9).put(std::uint64_t{1}).put(0).text()),
                      ErrorCode::kUnsupported, "arrays of arrays");
  for (const std::uint32_t alignment : {0u, 3u, 1u << 31})
    expect_corrupt(Bytes().header(0, 1).str("general.alignment").put(4).put(alignment), "power of two");
}

TEST_F(Gguf, BadTensors) {
  const std::string data(64, 'd');
  expect_corrupt(Bytes().header(1, 0).info("a", {1, 1, 1, 1, 1}, 0, 0).pad().raw(data),
                 "at most 4 dimensions");
  expect_corrupt(Bytes().header(1, 0).info("", {1}, 0, 0).pad().raw(data), "name");
  expect_corrupt(Bytes().header(1, 0).info("a", {-1}, 0, 0).pad().raw(data), "got -1");
  expect_corrupt(Bytes().header(1, 0).info("a", {1 << 30, 1 << 30, 1 << 30}, 0, 0).pad().raw(data), "2^60");
  expect_corrupt(Bytes().header(1, 0).info("a", {17}, 0, 0).pad().raw(data), "expected 68 bytes");
  expect_corrupt(Bytes().header(1, 0).info("a", {1}, 0, 8).pad().raw(data), "aligned to 32");
  expect_corrupt(Bytes().header(1, 0).info("a", {1}, 0, ~std::uint64_t{31}).pad().raw(data), "offset");
  expect_corrupt(Bytes().header(1, 0).info("a", {255}, 34, 0).pad().raw(data), "multiple of 256");
  expect_corrupt(Bytes().header(2, 0).info("a", {9}, 0, 0).info("b", {1}, 0, 32).pad().raw(data), "overlap");
  expect_corrupt(Bytes().header(2, 0).info("a", {1}, 0, 0).info("b", {1}, 0, 0).pad().raw(data), "overlap");
  expect_corrupt(Bytes().header(2, 0).info("a", {1}, 0, 0).info("a", {1}, 0, 32).pad().raw(data),
                 "'a' occurs twice");
  const auto unknown = open(Bytes().header(1, 0).info("a", {4}, 99, 0).pad().raw(data).text());
  EXPECT_EQ(to_string(unknown->tensors()[0].type), "type 99");
  EXPECT_TRUE(unknown->data(unknown->tensors()[0]).empty());
}

TEST_F(Gguf, SizesOfTypes) {
  const std::int64_t dims[] = {512, 3};
  EXPECT_EQ(ggml_bytes(GgmlType::kF32, dims), 6144u);
  EXPECT_EQ(ggml_bytes(GgmlType::kQ8_0, dims), 48u * 34);
  EXPECT_EQ(ggml_bytes(GgmlType::kQ6_K, dims), 6u * 210);
  EXPECT_EQ(ggml_bytes(GgmlType::kTQ2_0, dims), 6u * 66);
  EXPECT_EQ(ggml_bytes(GgmlType::kI2_S, dims), 384u + 32);
  BITNET_EXPECT_ERROR(ggml_bytes(GgmlType::kTL1, dims), ErrorCode::kUnsupported, "TL1");
}

TEST_F(Gguf, WriterRefusesWhatItCannotKeep) {
  const auto path = dir_ / "w.gguf";
  const auto one = [&](GgufValue v) {
    GgufMetadata m;
    m.set("k", std::move(v));
    GgufWriter(path, m, {});
  };
  BITNET_EXPECT_ERROR(one({0, 0, std::uint64_t{256}}), ErrorCode::kInvalidArgument, "does not fit");
  BITNET_EXPECT_ERROR(one({8, 0, std::uint64_t{1}}), ErrorCode::kInvalidArgument, "key 'k'");
  BITNET_EXPECT_ERROR(one({4, 0, GgufArray(std::vector<bool>{})}), ErrorCode::kInvalidArgument, "array");
  const auto tensors = [&](std::vector<GgufTensorInfo> t) { GgufWriter(path, {}, std::move(t)); };
  BITNET_EXPECT_ERROR(tensors({{"a", {1}, GgmlType::kF32, 0, 0}, {"a", {1}, GgmlType::kF32, 0, 0}}),
                      ErrorCode::kInvalidArgument, "distinct");
  BITNET_EXPECT_ERROR(tensors({{"a", {100}, GgmlType::kI2_S, 0, 0}}), ErrorCode::kInvalidArgument, "128");
  GgufWriter writer(path, {}, {{"a", {1}, GgmlType::kF32, 0, 0}});
  BITNET_EXPECT_ERROR(writer.write("b", ramp(4)), ErrorCode::kInvalidArgument, "expected tensor 'a'");
  BITNET_EXPECT_ERROR(writer.write("a", ramp(5)), ErrorCode::kInvalidArgument, "4 bytes");
  BITNET_EXPECT_ERROR(writer.finish(), ErrorCode::kInvalidArgument, "not written");
  EXPECT_FALSE(std::filesystem::exists(path));
}

}  // namespace
}  // namespace bitnet
