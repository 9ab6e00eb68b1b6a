#pragma once
// Pictures with labels, as Fashion-MNIST has them (Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747), and the
// batches that a network is given. The file format is idx.hpp. Plain values and pure functions: thread-safe.
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

namespace fashion {

inline constexpr std::int64_t kClasses = 10;

struct Dataset {
  std::int64_t height = 0, width = 0;
  std::vector<std::uint8_t> pixels;  // [count, height, width]
  std::vector<std::int32_t> labels;  // [count], 0 … kClasses − 1
  std::int64_t count() const noexcept { return static_cast<std::int64_t>(labels.size()); }
  /// Images [begin, end).
  Dataset part(std::int64_t begin, std::int64_t end) const;
  /// Their pixels, 0 … 1. [end − begin, height, width]
  std::vector<float> images(std::int64_t begin, std::int64_t end) const;
};

/// "<name>-images-idx3-ubyte" and "<name>-labels-idx1-ubyte" of a directory, with or without ".gz"; `name` is
/// "train" or "t10k". Throws bitnet::Error as read_idx(), and kCorruptFile where the two disagree or a label
/// is none.
Dataset read_dataset(const std::filesystem::path& directory, const std::string& name);

/// Pixels of the images `which`, 0 … 1, to `to` [which.size(), height, width], and their labels.
void fill_batch(const Dataset& data, std::span<const std::int64_t> which, std::span<float> to,
                std::span<std::int32_t> labels);

}  // namespace fashion
