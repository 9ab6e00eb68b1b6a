// Fashion-MNIST's files checked against each other, and batches of their images.
#include "dataset.hpp"

#include <algorithm>

#include "bitnet/core/error.hpp"
#include "idx.hpp"

namespace fashion {
namespace {

using bitnet::Error;
using bitnet::ErrorCode;

float intensity(std::uint8_t pixel) { return static_cast<float>(pixel) / 255.0f; }

IdxArray read_part(const std::filesystem::path& directory, const std::string& name, std::size_t dimensions) {
  std::filesystem::path path = directory / (name + ".gz");
  if (!std::filesystem::exists(path) && std::filesystem::exists(directory / name)) path = directory / name;
  IdxArray array = read_idx(path);
  if (array.shape.size() != dimensions)
    throw Error(ErrorCode::kCorruptFile, "'" + path.string() + "': " + std::to_string(array.shape.size()) +
                                             " dimensions, expected " + std::to_string(dimensions));
  return array;
}

}  // namespace

Dataset Dataset::part(std::int64_t begin, std::int64_t end) const {
  const std::int64_t size = height * width;
  return {height,
          width,
          {pixels.begin() + begin * size, pixels.begin() + end * size},
          {labels.begin() + begin, labels.begin() + end}};
}

std::vector<float> Dataset::images(std::int64_t begin, std::int64_t end) const {
  const std::int64_t size = height * width;
  std::vector<float> values(static_cast<std::size_t>((end - begin) * size));
  std::transform(pixels.begin() + begin * size, pixels.begin() + end * size, values.begin(), intensity);
  return values;
}

Dataset read_dataset(const std::filesystem::path& directory, const std::string& name) {
  IdxArray images = read_part(directory, name + "-images-idx3-ubyte", 3);
  const IdxArray labels = read_part(directory, name + "-labels-idx1-ubyte", 1);
  if (images.shape[0] != labels.shape[0])
    throw Error(ErrorCode::kCorruptFile, "'" + directory.string() + "': " + std::to_string(images.shape[0]) +
                                             " images of '" + name + "' with " +
                                             std::to_string(labels.shape[0]) + " labels");
  const auto bad = std::find_if(labels.values.begin(), labels.values.end(),
                                [](std::uint8_t label) { return label >= kClasses; });
  if (bad != labels.values.end())
    throw Error(ErrorCode::kCorruptFile, "'" + directory.string() + "': label " +
                                             std::to_string(bad - labels.values.begin()) + " of '" + name +
                                             "' is " + std::to_string(*bad) + ", expected 0 to 9");
  return {images.shape[1],
          images.shape[2],
          std::move(images.values),
          {labels.values.begin(), labels.values.end()}};
}

void fill_batch(const Dataset& data, std::span<const std::int64_t> which, std::span<float> to,
                std::span<std::int32_t> labels) {
  const std::int64_t size = data.height * data.width;
  for (std::size_t i = 0; i < which.size(); ++i) {
    labels[i] = data.labels[static_cast<std::size_t>(which[i])];
    const auto from = data.pixels.begin() + which[i] * size;
    std::transform(from, from + size, to.begin() + static_cast<std::int64_t>(i) * size, intensity);
  }
}

}  // namespace fashion
