// The example without its data: IDX files, good and damaged; small networks trained on patterns made here,
// exported, and run on bitnet-quant's kernels with the same logits; damaged exports.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>

#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/core/io/safetensors.hpp"
#include "bitnet/testing/testing.hpp"
#include "classifier.hpp"
#include "idx.hpp"
#include "predictor.hpp"

namespace fashion {
namespace {

using bitnet::ErrorCode;
using bitnet::ExecutionContext;
using bitnet::Rng;
using bitnet::testing::TempDir;

constexpr std::int64_t kSize = 12;

/// Noise with a bright row and a bright column that depend on the class.
Dataset patterns(std::int64_t count, std::uint64_t seed) {
  Rng rng(seed);
  Dataset data{kSize, kSize, {}, {}};
  for (std::int64_t i = 0; i < count; ++i) {
    const auto label = static_cast<std::int64_t>(rng.below(kClasses));
    for (std::int64_t y = 0; y < kSize; ++y)
      for (std::int64_t x = 0; x < kSize; ++x)
        data.pixels.push_back(
            static_cast<std::uint8_t>((y == label || x == (7 * label) % kSize ? 150 : 0) + rng.below(100)));
    data.labels.push_back(static_cast<std::int32_t>(label));
  }
  return data;
}

void write_dataset(const std::filesystem::path& directory, const std::string& name, const Dataset& data,
                   const std::string& extension = ".gz") {
  const std::int64_t shape[] = {data.count(), data.height, data.width};
  const std::vector<std::uint8_t> labels(data.labels.begin(), data.labels.end());
  write_idx(directory / (name + "-images-idx3-ubyte" + extension), shape, data.pixels);
  write_idx(directory / (name + "-labels-idx1-ubyte" + extension), std::span(shape).first(1), labels);
}

std::string bytes_of(const std::filesystem::path& path) { return bitnet::read_file(path); }

TEST(Idx, ComesBackBareAndGzipped) {
  const TempDir dir;
  const Dataset data = patterns(7, 1);
  for (const std::string extension : {"", ".gz"}) {
    write_dataset(dir.path(), "t10k", data, extension);
    const IdxArray images = read_idx(dir / ("t10k-images-idx3-ubyte" + extension));
    EXPECT_EQ(images.shape, (std::vector<std::int64_t>{7, kSize, kSize}));
    EXPECT_EQ(images.values, data.pixels);
    const Dataset again = read_dataset(dir.path(), "t10k");
    EXPECT_EQ(again.pixels, data.pixels);
    EXPECT_EQ(again.labels, data.labels);
  }
  EXPECT_EQ(bytes_of(dir / "t10k-labels-idx1-ubyte").substr(0, 8), std::string("\0\0\x08\x01\0\0\0\x07", 8));
  EXPECT_EQ(bytes_of(dir / "t10k-images-idx3-ubyte").size(), 16 + data.pixels.size());
  EXPECT_EQ(bytes_of(dir / "t10k-labels-idx1-ubyte.gz").substr(0, 2), "\x1f\x8b");
}

TEST(Idx, EveryKindOfBadFileIsAnErrorThatNamesIt) {
  const TempDir dir;
  const auto read = [&](const std::string& bytes) {
    bitnet::write_file(dir / "bad.idx", bytes);
    return read_idx(dir / "bad.idx");
  };
  const auto header = [](const std::string& tail) { return std::string("\0\0", 2) + tail; };
  BITNET_EXPECT_ERROR(read_idx(dir / "none"), ErrorCode::kNotFound, "none': there is no such file");
  BITNET_EXPECT_ERROR(read_idx(dir.path()), ErrorCode::kIo, "no regular file");
  BITNET_EXPECT_ERROR(read(""), ErrorCode::kCorruptFile, "bad.idx': this is no IDX file");
  BITNET_EXPECT_ERROR(read("\x89PNG\r\n"), ErrorCode::kCorruptFile, "no IDX file");
  BITNET_EXPECT_ERROR(read(header(std::string("\x0d\x01\0\0\0\1", 6))), ErrorCode::kUnsupported, "type 13");
  BITNET_EXPECT_ERROR(read(header(std::string("\x08\0", 2))), ErrorCode::kUnsupported, "0 dimensions");
  BITNET_EXPECT_ERROR(read(header("\x08\x05")), ErrorCode::kUnsupported, "5 dimensions");
  BITNET_EXPECT_ERROR(read(header(std::string("\x08\x02\0\0\0\1\0", 7))), ErrorCode::kCorruptFile,
                      "ends in its header");
  BITNET_EXPECT_ERROR(read(header(std::string("\x08\x01\0\0\0\0", 6))), ErrorCode::kCorruptFile,
                      "dimension 0 is 0");
  const std::string huge = "\xff\xff\xff\xff";
  BITNET_EXPECT_ERROR(read(header("\x08\x04" + huge + huge + huge + huge)), ErrorCode::kUnsupported,
                      "more than 1073741824 values");
  // A gigabyte that is not there is not allocated either.
  BITNET_EXPECT_ERROR(read(header(std::string("\x08\x01\x40\0\0\0one", 9))), ErrorCode::kCorruptFile,
                      "after 3 of 1073741824 values");
  BITNET_EXPECT_ERROR(read(header(std::string("\x08\x01\0\0\0\1ab", 8))), ErrorCode::kCorruptFile,
                      "more than the 1 values");
}

TEST(Idx, DamagedAndTruncatedFilesAreErrorsOrUnchanged) {
  const TempDir dir;
  const std::vector<std::uint8_t> values = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
  const std::int64_t shape[] = {3, 4};
  for (const std::string name : {"a", "a.gz"}) {
    write_idx(dir / name, shape, values);
    const std::string whole = bytes_of(dir / name);
    for (std::size_t length = 0; length < whole.size(); ++length) {
      bitnet::write_file(dir / name, whole.substr(0, length));
      BITNET_EXPECT_ERROR(read_idx(dir / name), ErrorCode::kCorruptFile, "");
    }
    if (name == "a") continue;  // without gzip nothing protects the values
    for (std::size_t bit = 0; bit < 8 * whole.size(); ++bit) {
      std::string damaged = whole;
      damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << bit % 8));
      bitnet::write_file(dir / name, damaged);
      try {
        EXPECT_EQ(read_idx(dir / name).values, values) << bit;  // time stamps and the like
      } catch (const bitnet::Error&) {
      }
    }
  }
}

TEST(Dataset, FilesThatDisagreeAreErrors) {
  const TempDir dir;
  Dataset data = patterns(5, 1);
  BITNET_EXPECT_ERROR(read_dataset(dir.path(), "train"), ErrorCode::kNotFound, "train-images-idx3-ubyte.gz");
  write_dataset(dir.path(), "train", data);
  const std::int64_t six[] = {6};
  write_idx(dir / "train-labels-idx1-ubyte.gz", six, std::vector<std::uint8_t>(6));
  BITNET_EXPECT_ERROR(read_dataset(dir.path(), "train"), ErrorCode::kCorruptFile,
                      "5 images of 'train' with 6 labels");
  write_idx(dir / "train-images-idx3-ubyte.gz", six, std::vector<std::uint8_t>(6));
  BITNET_EXPECT_ERROR(read_dataset(dir.path(), "train"), ErrorCode::kCorruptFile, "1 dimensions, expected 3");
  data.labels[3] = 10;
  write_dataset(dir.path(), "train", data);
  BITNET_EXPECT_ERROR(read_dataset(dir.path(), "train"), ErrorCode::kCorruptFile, "label 3 of 'train' is 10");
}

TEST(Dataset, BatchesAreTheImagesAskedFor) {
  const Dataset data = patterns(4, 2);
  const std::int64_t which[] = {2, 0, 2}, size = kSize * kSize;
  std::vector<float> batch(3 * size);
  std::vector<std::int32_t> labels(3);
  fill_batch(data, which, batch, labels);
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(labels[i], data.labels[static_cast<std::size_t>(which[i])]);
    for (std::int64_t p = 0; p < size; ++p)
      EXPECT_EQ(batch[i * size + static_cast<std::size_t>(p)],
                static_cast<float>(data.pixels[static_cast<std::size_t>(which[i] * size + p)]) / 255.0f);
  }
  const Dataset part = data.part(2, 4);
  EXPECT_EQ(part.labels, (std::vector<std::int32_t>{data.labels[2], data.labels[3]}));
  EXPECT_EQ(part.images(0, 1), std::vector<float>(batch.begin(), batch.begin() + size));
  EXPECT_EQ(data.images(2, 3), part.images(0, 1));
}

double share_right(const std::vector<std::int32_t>& answers, const Dataset& data) {
  double right = 0;
  for (std::size_t i = 0; i < answers.size(); ++i) right += answers[i] == data.labels[i];
  return right / static_cast<double>(answers.size());
}

TEST(Networks, LearnAndRunOnTheKernelsOfQuantWithTheSameLogits) {
  const TempDir dir;
  const ExecutionContext context(ExecutionContext::Options{2, {}});
  const ExecutionContext alone(ExecutionContext::Options{1, {}});
  const Dataset data = patterns(480, 5), test = patterns(110, 6);  // more than one batch of evaluate()
  for (const std::string name : {"mlp", "cnn"})
    for (const bool ternary : {true, false}) {
      SCOPED_TRACE(name + (ternary ? " ternary" : " full"));
      Classifier net(context, name, {kSize, kSize, 1}, ternary, 7);
      EXPECT_EQ(net.ternary_weights() > 0, ternary);
      std::vector<double> losses;
      train(context, net, data, {.epochs = 4, .batch = 32, .rate = 4e-3},
            [&](std::int64_t, double loss) { losses.push_back(loss); });
      EXPECT_EQ(losses.size(), 4u);
      EXPECT_LT(losses.back(), losses.front());
      const std::vector<float> ours = evaluate(context, net, test);
      EXPECT_GT(share_right(answers(ours), test), 0.9);
      net.save(dir / name);
      const Predictor predictor = Predictor::load(context, dir / name);
      EXPECT_EQ(predictor.classes(), kClasses);
      const std::vector<float> images = test.images(0, test.count());
      const std::vector<float> theirs = predictor.logits(context, images);
      EXPECT_EQ(answers(theirs), answers(ours));
      EXPECT_EQ(theirs, ours);  // to the bit
      EXPECT_EQ(predictor.logits(alone, images), theirs);
      EXPECT_TRUE(predictor.logits(context, {}).empty());
      BITNET_EXPECT_ERROR(predictor.logits(context, std::span(images).first(100)),
                          ErrorCode::kInvalidArgument, "no whole number of images");
      // Packed: a quarter of a byte a ternary weight, four bytes for the rest.
      std::int64_t parameters = 0;
      for (const auto* p : net.parameters()) parameters += p->value().size();
      const std::int64_t bytes = net.ternary_weights() / 4 + 4 * (parameters - net.ternary_weights());
      EXPECT_NEAR(static_cast<double>(std::filesystem::file_size(dir / name)), static_cast<double>(bytes),
                  2500.0);
    }
}

TEST(Networks, UnknownOnesAndSizesThatDoNotFitAreErrors) {
  const ExecutionContext context;
  BITNET_EXPECT_ERROR(network("rnn", {28, 28, 1}, 10), ErrorCode::kInvalidArgument, "there are: mlp, cnn");
  BITNET_EXPECT_ERROR(network("cnn", {7, 28, 1}, 10), ErrorCode::kInvalidArgument, "7 x 28 are too small");
  Classifier net(context, "mlp", {kSize, kSize, 1}, true, 1);
  const auto nothing = [](std::int64_t, double) {};
  BITNET_EXPECT_ERROR(train(context, net, patterns(5, 1), {.epochs = 1, .batch = 6}, nothing),
                      ErrorCode::kInvalidArgument, "batches of 6 of 5 images");
  const Dataset other{2, kSize, std::vector<std::uint8_t>(2 * kSize), {0}};
  BITNET_EXPECT_ERROR(train(context, net, other, {.epochs = 1, .batch = 1}, nothing),
                      ErrorCode::kInvalidArgument, "images of 2 x 12 for a network of 12 x 12");
  BITNET_EXPECT_ERROR(evaluate(context, net, other), ErrorCode::kInvalidArgument, "images of 2 x 12");
}

/// Copies an export, changing what `edit` changes.
struct Export {
  std::map<std::string, std::string> metadata;
  std::vector<bitnet::SafeTensorInfo> infos;
  std::vector<std::string> bytes;

  explicit Export(const std::filesystem::path& path) {
    const auto file = bitnet::SafeTensors::open(path);
    metadata = file->metadata();
    for (const auto& info : file->tensors()) {
      const auto data = file->data(info);
      infos.push_back(info);
      bytes.emplace_back(reinterpret_cast<const char*>(data.data()), data.size());
    }
  }
  std::size_t index(const std::string& name) const {
    return static_cast<std::size_t>(
        std::find_if(infos.begin(), infos.end(), [&](const auto& i) { return i.name == name; }) -
        infos.begin());
  }
  void save(const std::filesystem::path& path) const {
    bitnet::SafeTensorsWriter writer(path, infos, metadata);
    for (std::size_t i = 0; i < infos.size(); ++i)
      writer.write(infos[i].name, std::as_bytes(std::span(bytes[i])));
    writer.finish();
  }
};

TEST(Predictor, DamagedExportsAreErrors) {
  const TempDir dir;
  const ExecutionContext context;
  Classifier net(context, "mlp", {kSize, kSize, 1}, true, 1);
  net.save(dir / "good");
  const Export good(dir / "good");
  const auto load = [&](const std::function<void(Export&)>& edit) {
    Export copy = good;
    edit(copy);
    copy.save(dir / "bad");
    return Predictor::load(context, dir / "bad");
  };
  EXPECT_EQ(load([](Export&) {}).image().height, kSize);
  const auto refused = [&](const std::function<void(Export&)>& edit, const char* text) {
    BITNET_EXPECT_ERROR(load(edit), ErrorCode::kCorruptFile, text);
  };
  refused([](Export& e) { e.metadata["format"] = "x"; }, "bad': this is no network of this program");
  refused([](Export& e) { e.metadata["network"] = "rnn"; }, "its network is 'rnn'");
  refused([](Export& e) { e.metadata.erase("width"); }, "its width is ''");
  refused([](Export& e) { e.metadata["height"] = "100000"; }, "expected 1 to 1024");
  BITNET_EXPECT_ERROR(load([](Export& e) { e.metadata["network"] = "cnn", e.metadata["height"] = "7"; }),
                      ErrorCode::kInvalidArgument, "bad': images of 7 x 12 are too small for cnn");
  refused([](Export& e) { e.metadata["height"] = "13"; }, "has another type or shape");
  refused(
      [](Export& e) {
        const std::size_t i = e.index("dense2.bias");
        e.infos.erase(e.infos.begin() + static_cast<std::ptrdiff_t>(i));
        e.bytes.erase(e.bytes.begin() + static_cast<std::ptrdiff_t>(i));
      },
      "tensor 'dense2.bias' is missing");
  refused([](Export& e) { e.bytes[e.index("dense1.weight")][5] = '\xff'; }, "dense1.weight");
  refused([](Export& e) { e.bytes[e.index("dense1.scale")] = std::string("\0\0\xc0\x7f", 4); },
          "tensor 'dense1.scale' holds a value that is not finite");
  refused([](Export& e) { e.infos[e.index("answer.weight")].shape = {5120, 1}; }, "F32 [10, 512]");
  BITNET_EXPECT_ERROR(Predictor::load(context, dir / "none"), ErrorCode::kNotFound, "none");
}

}  // namespace
}  // namespace fashion
