// Where models are written: whole or not at all, over old ones, beside what is in the way, in several files.
#include <unistd.h>

#include "bitnet/core/error.hpp"
#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/core/io/safetensors.hpp"
#include "model_io_fixture.hpp"

namespace bitnet::quant {
namespace {

using ::testing::HasSubstr;
using testing::Linears;
using testing::MemoryModel;
using ::testing::Not;
using testing::small_config;

TEST_F(ModelIo, AFailureLeavesTheOldFilesWhole) {
  const ModelConfig config = small_config(ModelFamily::kBitNet25);
  const MemoryModel model(config, Linears::kTernary);
  const auto fail = [&](TensorId id) {
    if (id.layer == 1) throw Error(ErrorCode::kCancelled, "stopped");
    return model[id];
  };
  for (const LinearType type : {LinearType::kI2_S, LinearType::kHf}) {
    const auto path = dir_ / (type == LinearType::kHf ? "hf" : "x.gguf");
    write_model(path, config, nullptr, model.source(), options_of(type));
    BITNET_EXPECT_ERROR(write_model(path, config, nullptr, fail, options_of(type)), ErrorCode::kCancelled,
                        "stopped");
    expect_tensors(*ModelReader::open(path), model, kSame);
    BITNET_EXPECT_ERROR(write_model(dir_ / "new", config, nullptr, fail, options_of(type)),
                        ErrorCode::kCancelled, "writing model");
    write_model(path, config, nullptr, model.source(), options_of(type));  // over the old one
  }
  std::size_t entries = 0;
  for ([[maybe_unused]] const auto& e : std::filesystem::directory_iterator(dir_.path())) ++entries;
  EXPECT_EQ(entries, 2u);  // nothing written aside is left
  for (const auto& e : std::filesystem::directory_iterator(dir_ / "hf"))
    EXPECT_THAT(e.path().filename().string(), Not(HasSubstr("partial")));
}

TEST_F(ModelIo, ADirectoryIsReplacedWholeOrNotAtAll) {
  const ModelConfig config = small_config(ModelFamily::kBitNet25);
  const MemoryModel model(config, Linears::kTernary);
  WriteOptions divide = options_of(LinearType::kHf);
  divide.scale_form = WeightScaleForm::kDivide;
  const auto path = dir_ / "m";
  write_model(path, config, nullptr, model.source(), options_of(LinearType::kHf));
  std::filesystem::permissions(path / "config.json", std::filesystem::perms::owner_read);
  // What cannot be replaced stops it before the tensors are: they would mean the inverse under the old
  // config.
  std::filesystem::remove(path / "generation_config.json");
  std::filesystem::create_directory(path / "generation_config.json");
  BITNET_EXPECT_ERROR(write_model(path, config, nullptr, model.source(), divide), ErrorCode::kInvalidArgument,
                      "generation_config.json' is a directory");
  std::filesystem::remove(path / "generation_config.json");
  expect_tensors(*ModelReader::open(path), model, kSame);
  // A directory that a killed process of this id left is not in the way.
  std::filesystem::create_directory(path / (".new." + std::to_string(getpid()) + ".0.partial"));
  write_model(path, config, nullptr, model.source(), divide);
  expect_tensors(*ModelReader::open(path), model, [](float s) { return 1.0f / (1.0f / s); });
  EXPECT_EQ(std::filesystem::status(path / "config.json").permissions(), std::filesystem::perms::owner_read);
}

TEST_F(ModelIo, WhatAKilledProcessLeftIsRemoved) {
  namespace fs = std::filesystem;
  const ModelConfig config = small_config(ModelFamily::kBitNet25);
  const MemoryModel model(config, Linears::kTernary);
  const auto leave = [&](const fs::path& directory) {
    fs::create_directories(directory);
    write_file(directory / "layer-00000.safetensors", "half of it");
  };
  for (const LinearType type : {LinearType::kHf, LinearType::kExtended}) {
    const fs::path parent = dir_ / (type == LinearType::kHf ? "hf" : "extended"), path = parent / "m";
    leave(parent / ".m.12345.0.partial");
    leave(parent / ".other.12345.0.partial");
    write_model(path, config, nullptr, model.source(), options_of(type));
    expect_tensors(*ModelReader::open(path), model, kSame);
    EXPECT_FALSE(fs::exists(parent / ".m.12345.0.partial"));
    EXPECT_TRUE(fs::exists(parent / ".other.12345.0.partial"));
    // In a directory that was there and empty, which it then was not any more.
    const fs::path there = parent / "there";
    leave(there / ".new.12345.3.partial");
    write_model(there, config, nullptr, model.source(), options_of(type));
    EXPECT_FALSE(fs::exists(there / ".new.12345.3.partial"));
    expect_tensors(*ModelReader::open(there), model, kSame);
  }
}

TEST_F(ModelIo, AnotherModelsShardsAreNotMixedIn) {
  const ModelConfig config = small_config(ModelFamily::kBitNet25);
  const MemoryModel model(config, Linears::kTernary);
  std::filesystem::create_directory(dir_ / "old");
  write_file(dir_ / "old" / "model.safetensors.index.json", "{}");
  BITNET_EXPECT_ERROR(write_model(dir_ / "old", config, nullptr, model.source(), options_of(LinearType::kHf)),
                      ErrorCode::kInvalidArgument, "another model");
  write_file(dir_ / "file", "x");
  BITNET_EXPECT_ERROR(
      write_model(dir_ / "file", config, nullptr, model.source(), options_of(LinearType::kHf)),
      ErrorCode::kInvalidArgument, "not a directory");
}

TEST_F(ModelIo, SeveralFilesWhereOneWouldBeTooLarge) {
  namespace fs = std::filesystem;
  const ModelConfig config = small_config(ModelFamily::kBitNetOld);
  for (const bool packed : {true, false}) {
    const MemoryModel model(config, packed ? Linears::kTernary : Linears::kFloat);
    WriteOptions options = options_of(packed ? LinearType::kHf : LinearType::kDense, false);
    options.dense_type = DType::kF32;
    const auto write = [&](const fs::path& to, std::uint64_t bytes) {
      options.shard_bytes = bytes;
      write_model(to, config, nullptr, model.source(), options);
    };
    const std::string name = packed ? "packed" : "dense";
    write(dir_ / name, 0);
    const auto whole = SafeTensors::open(dir_ / name / "model.safetensors");
    std::uint64_t all = 0, largest = 0;
    for (const SafeTensorInfo& t : whole->tensors()) {
      all += t.end - t.begin;
      largest = std::max<std::uint64_t>(largest, t.end - t.begin);
    }
    write(dir_ / (name + "-fits"), all);
    EXPECT_TRUE(fs::exists(dir_ / (name + "-fits") / "model.safetensors"));
    EXPECT_FALSE(fs::exists(dir_ / (name + "-fits") / "model.safetensors.index.json"));
    for (const std::uint64_t most : {all - 1, largest + 4, std::uint64_t{1}}) {
      const fs::path to = dir_ / (name + std::to_string(most));
      fs::create_directory(to);
      write_file(to / "x", "");
      BITNET_EXPECT_ERROR(write(to, most), ErrorCode::kInvalidArgument, "is not empty");
      fs::remove(to / "x");
      write(to, most);
      const auto split = SafeTensors::open(to);
      const auto files = split->files();
      ASSERT_GE(files.size(), 2u);
      const std::string all_of = std::to_string(files.size());
      EXPECT_TRUE(fs::exists(
          to / ("model-00001-of-" + std::string(5 - all_of.size(), '0') + all_of + ".safetensors")));
      ASSERT_EQ(split->tensors().size(), whole->tensors().size());
      std::map<std::string, std::uint64_t> sizes;  // of files, by name
      for (const SafeTensorInfo& t : whole->tensors()) {
        const SafeTensorInfo* const there = split->find(t.name);
        ASSERT_TRUE(there) << t.name;
        const auto a = whole->data(t), b = split->data(*there);
        EXPECT_TRUE(std::equal(a.begin(), a.end(), b.begin(), b.end())) << t.name;
        if (most > largest) sizes[split->file(*there).path().string()] += b.size();
      }
      for (const auto& [path, bytes] : sizes) EXPECT_LE(bytes, most) << path;
      expect_tensors(*ModelReader::open(to, FloatLinears::kKeep), model, kSame);
      EXPECT_THAT(read_file(to / "model.safetensors.index.json"),
                  HasSubstr("\"total_size\": " + std::to_string(all)));
    }
  }
}

}  // namespace
}  // namespace bitnet::quant
