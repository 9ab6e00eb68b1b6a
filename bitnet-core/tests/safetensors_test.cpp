// SafeTensors and SafeTensorsWriter: round trips, the Python package's file, shards, and damaged files.
#include <cstring>
#include <fstream>

#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/core/io/safetensors.hpp"
#include "bitnet/testing/mutate.hpp"
#include "bitnet/testing/testing.hpp"
#include "readers.hpp"

namespace bitnet {
namespace {

using testing::source_path;
using testing::TempDir;

std::string file_bytes(std::string_view header, std::size_t data_bytes) {
  const std::uint64_t n = header.size();
  std::string out(reinterpret_cast<const char*>(&n), 8);
  return out.append(header).append(data_bytes, 'd');
}

template <class T>
std::vector<T> values(const SafeTensors& file, std::string_view name) {
  const auto data = file.data(*file.find(name));
  std::vector<T> out(data.size() / sizeof(T));
  std::memcpy(out.data(), data.data(), data.size());
  return out;
}

class Safe : public ::testing::Test {
 protected:
  std::shared_ptr<const SafeTensors> open(const std::string& bytes) {
    write_file(dir_ / "x.safetensors", bytes);
    return SafeTensors::open(dir_ / "x.safetensors");
  }
  void expect_corrupt(std::string_view header, std::size_t data_bytes, const char* text) {
    const std::string bytes = file_bytes(header, data_bytes);
    BITNET_EXPECT_ERROR(open(bytes), ErrorCode::kCorruptFile, text);
    BITNET_EXPECT_ERROR(open(bytes), ErrorCode::kCorruptFile, "x.safetensors");
  }
  void write(const std::string& name, const std::vector<std::string>& tensors) {
    std::vector<SafeTensorInfo> infos;
    for (const auto& t : tensors) infos.push_back({t, SafeDType::kU8, {2}, 0, 0, 0});
    SafeTensorsWriter writer(dir_ / name, infos, {{"format", "pt"}});
    for (const auto& t : tensors) writer.write(t, std::as_bytes(std::span("ab", 2)));
    writer.finish();
  }
  void index(std::string_view map) {
    write_file(dir_ / "model.safetensors.index.json",
               "{\"metadata\":{},\"weight_map\":" + std::string(map) + "}");
  }
  TempDir dir_;
};

TEST_F(Safe, RoundTrip) {
  SafeTensorsWriter writer(dir_ / "m.safetensors",
                           {{"z \"quoted\"\n", SafeDType::kF32, {2, 1}, 0, 0, 0},
                            {"a", SafeDType::kU8, {3}, 0, 0, 0},
                            {"e", SafeDType::kBF16, {0, 9}, 0, 0, 0},
                            {"s", SafeDType::kF64, {}, 0, 0, 0}},
                           {{"format", "pt"}});
  const float z[] = {1.5f, -2.0f};
  writer.write("z \"quoted\"\n", std::as_bytes(std::span(z)));
  writer.write("a", std::as_bytes(std::span("xyz", 3)));
  writer.write("e", {});
  const double s = 0.1;
  writer.write("s", std::as_bytes(std::span(&s, 1)));
  writer.finish();
  const auto file = SafeTensors::open(dir_.path());
  ASSERT_EQ(file->tensors().size(), 4u);
  EXPECT_EQ(file->tensors()[0].name, "a");
  EXPECT_EQ(values<float>(*file, "z \"quoted\"\n"), (std::vector<float>{1.5f, -2.0f}));
  EXPECT_EQ(values<double>(*file, "s"), std::vector<double>{0.1});
  EXPECT_EQ(file->find("e")->shape, (std::vector<std::int64_t>{0, 9}));
  EXPECT_EQ(file->metadata().at("format"), "pt");
  EXPECT_EQ(file->find("b"), nullptr);
  EXPECT_EQ(file->files(), std::vector{dir_ / "m.safetensors"});
}

TEST_F(Safe, ReadsTheFileOfThePythonPackage) {
  const auto file = SafeTensors::open(source_path("tests/data/safetensors/golden.safetensors"));
  EXPECT_EQ(file->tensors().size(), 11u);
  EXPECT_EQ(values<double>(*file, "f64"), (std::vector<double>{0.1, -2.0}));
  EXPECT_EQ(values<float>(*file, "f32"), (std::vector<float>{0, .25f, .5f, .75f, 1, 1.25f}));
  EXPECT_EQ(values<std::uint16_t>(*file, "f16"), (std::vector<std::uint16_t>{0x3e00, 0xb400}));
  EXPECT_EQ(values<std::int64_t>(*file, "i64"), std::vector{-(std::int64_t{1} << 62)});
  EXPECT_EQ(values<std::int16_t>(*file, "i16"), std::vector<std::int16_t>{-300});
  EXPECT_EQ(values<std::uint8_t>(*file, "u8"), (std::vector<std::uint8_t>{161, 24, 144, 10}));
  EXPECT_EQ(file->find("bool")->dtype, SafeDType::kBool);
  EXPECT_TRUE(file->find("scalar")->shape.empty());
  EXPECT_EQ(file->find("empty")->shape, (std::vector<std::int64_t>{0, 4}));
}

TEST_F(Safe, EveryTruncationIsAnError) {
  const std::string whole = read_file(source_path("tests/data/safetensors/golden.safetensors"));
  for (std::size_t n = 0; n < whole.size(); ++n) {
    write_file(dir_ / "cut.safetensors", std::string_view(whole).substr(0, n));
    EXPECT_FALSE(fuzzing::read_safetensors(dir_ / "cut.safetensors")) << n;
  }
  write_file(dir_ / "long.safetensors", whole + "x");
  EXPECT_FALSE(fuzzing::read_safetensors(dir_ / "long.safetensors"));
}

TEST_F(Safe, DamagedFilesGiveOnlyErrors) {
  const std::string whole = read_file(source_path("tests/data/safetensors/golden.safetensors"));
  std::size_t accepted = 0;
  for (std::size_t bit = 0; bit < whole.size() * 8; ++bit) {
    std::string flipped = whole;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << bit % 8));
    std::ofstream(dir_ / "f.safetensors", std::ios::binary) << flipped;
    accepted += fuzzing::read_safetensors(dir_ / "f.safetensors");
  }
  Rng rng(2);
  for (int i = 0; i < 3000; ++i) {
    std::ofstream(dir_ / "f.safetensors", std::ios::binary) << testing::mutate(whole, rng);
    accepted += fuzzing::read_safetensors(dir_ / "f.safetensors");
  }
  EXPECT_GT(accepted, 0u);
}

TEST_F(Safe, BadHeaders) {
  BITNET_EXPECT_ERROR(open("1234567"), ErrorCode::kCorruptFile, "8 bytes of the header's length");
  BITNET_EXPECT_ERROR(open(std::string(8, '\xff') + "{}"), ErrorCode::kCorruptFile, "header's length");
  expect_corrupt("[1]", 0, "JSON object");
  expect_corrupt("{\"a\":", 0, "JSON");
  expect_corrupt("{\"a\xff\":1}", 0, "JSON");
  expect_corrupt(std::string(100000, '['), 0, "nested");
  expect_corrupt(
      R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
      1, "'a' occurs twice");
  expect_corrupt(R"({"__metadata__":{"a":1}})", 0, "__metadata__");
}

TEST_F(Safe, BadTensors) {
  expect_corrupt(R"({"a":3})", 0, "tensor 'a': expected an object");
  expect_corrupt(R"({"a":{"shape":[1],"data_offsets":[0,1]}})", 1, "key 'dtype'");
  expect_corrupt(R"({"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}})", 1, "shape");
  expect_corrupt(R"({"a":{"dtype":"U8","shape":[1.5],"data_offsets":[0,1]}})", 1, "shape");
  expect_corrupt(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0]}})", 1, "[begin, end]");
  expect_corrupt(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1,0]}})", 1, "range");
  expect_corrupt(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})", 1, "range");
  expect_corrupt(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,18446744073709551615]}})", 1, "2^62");
  expect_corrupt(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4, "need 8 bytes");
  expect_corrupt(R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0, "2^62");
  expect_corrupt(
      R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
      3, "overlap");
  expect_corrupt(
      R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}})",
      3, "gap");
  expect_corrupt(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 2,
                 "expected the data to end after 1");
  const auto other = open(file_bytes(R"({"a":{"dtype":"F8_E4M3","shape":[3],"data_offsets":[0,3]}})", 3));
  EXPECT_EQ(other->tensors()[0].dtype, SafeDType::kOther);
}

TEST_F(Safe, Shards) {
  write("one.safetensors", {"a", "b"});
  write("two.safetensors", {"c"});
  index(R"({"a":"one.safetensors","b":"one.safetensors","c":"two.safetensors"})");
  const auto file = SafeTensors::open(dir_.path());
  EXPECT_EQ(file->tensors().size(), 3u);
  EXPECT_EQ(file->files().size(), 2u);
  EXPECT_EQ(values<char>(*file, "c"), (std::vector<char>{'a', 'b'}));
}

TEST_F(Safe, BadShards) {
  write("one.safetensors", {"a", "b"});
  write("two.safetensors", {"c"});
  const auto expect = [&](const char* map, const char* text, ErrorCode code = ErrorCode::kCorruptFile) {
    index(map);
    BITNET_EXPECT_ERROR(SafeTensors::open(dir_.path()), code, text);
  };
  expect(R"({"a":"../one.safetensors"})", "same directory");
  expect(R"({"a":"/etc/passwd"})", "same directory");
  expect(R"({"a":"model.safetensors.index.json"})", "same directory");
  expect(R"({"a":"one.safetensors\u0000.safetensors"})", "same directory");
  expect(R"({"a":7})", "same directory");
  expect(R"({})", "at least one");
  expect(R"([])", "weight_map");
  expect(R"({"a":"one.safetensors","c":"two.safetensors"})", "the index says nothing");
  expect(R"({"a":"one.safetensors","b":"two.safetensors","c":"two.safetensors"})",
         "the index says 'two.safetensors'");
  expect(R"({"a":"one.safetensors","b":"one.safetensors","d":"one.safetensors"})", "'d' is not in");
  expect(R"({"a":"three.safetensors"})", "three.safetensors", ErrorCode::kNotFound);
}

TEST_F(Safe, DirectoriesWithoutOneFile) {
  BITNET_EXPECT_ERROR(SafeTensors::open(dir_.path()), ErrorCode::kNotFound, "found 0");
  write("one.safetensors", {"a"});
  EXPECT_EQ(SafeTensors::open(dir_.path())->tensors().size(), 1u);
  write("two.safetensors", {"a"});
  BITNET_EXPECT_ERROR(SafeTensors::open(dir_.path()), ErrorCode::kNotFound, "found 2");
}

TEST_F(Safe, WriterRefusesWhatItCannotKeep) {
  const auto path = dir_ / "w.safetensors";
  const auto declare = [&](std::vector<SafeTensorInfo> t) { SafeTensorsWriter(path, std::move(t)); };
  BITNET_EXPECT_ERROR(declare({{"a", SafeDType::kU8, {1}, 0, 0, 0}, {"a", SafeDType::kU8, {1}, 0, 0, 0}}),
                      ErrorCode::kInvalidArgument, "distinct");
  BITNET_EXPECT_ERROR(declare({{"a", SafeDType::kOther, {1}, 0, 0, 0}}), ErrorCode::kInvalidArgument,
                      "dtype");
  BITNET_EXPECT_ERROR(declare({{"a", SafeDType::kU8, {-1}, 0, 0, 0}}), ErrorCode::kInvalidArgument, "-1");
  BITNET_EXPECT_ERROR(declare({{"\xff", SafeDType::kU8, {1}, 0, 0, 0}}), ErrorCode::kInvalidArgument,
                      "UTF-8");
  SafeTensorsWriter writer(path, {{"a", SafeDType::kU8, {1}, 0, 0, 0}});
  BITNET_EXPECT_ERROR(writer.write("b", {}), ErrorCode::kInvalidArgument, "expected tensor 'a'");
  BITNET_EXPECT_ERROR(writer.finish(), ErrorCode::kInvalidArgument, "not written");
  EXPECT_FALSE(std::filesystem::exists(path));
}

}  // namespace
}  // namespace bitnet
