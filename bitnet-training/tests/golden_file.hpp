#pragma once
// Numbers that PyTorch has computed, stored by the scripts in tests/data/training.
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "bitnet/core/error.hpp"
#include "bitnet/core/io/safetensors.hpp"
#include "bitnet/testing/testing.hpp"

namespace bitnet::training {

struct GoldenFile {
  std::shared_ptr<const SafeTensors> file;
  explicit GoldenFile(const std::string& path) : file(SafeTensors::open(testing::source_path(path))) {}

  template <class T = float>
  std::vector<T> values(const std::string& name) const {
    const SafeTensorInfo* info = file->find(name);
    if (!info) throw Error(ErrorCode::kNotFound, name);
    const auto bytes = file->data(*info);
    std::vector<T> v(bytes.size() / sizeof(T));
    std::memcpy(v.data(), bytes.data(), bytes.size());
    return v;
  }
};

}  // namespace bitnet::training
