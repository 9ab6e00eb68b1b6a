#pragma once
// What both kinds of model readers share: the tensors found, and ModelReader's answers about them. Private to
// bitnet-quant.
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "bitnet/quant/model_io.hpp"
#include "model_io/stored_tensor.hpp"

namespace bitnet::quant::model_io {

/// Filled by a derived class's constructor, immutable afterwards.
class ReaderBase : public ModelReader {
 public:
  const ModelConfig& config() const noexcept override { return config_; }
  std::vector<TensorId> tensors() const override { return model_tensors(config_); }
  LogicalTensor read(TensorId id) const override;
  TensorRows rows(TensorId id) const override;
  std::optional<DType> float_type(TensorId id) const override;
  bool float_linears() const noexcept override { return float_linears_ > 0; }
  bool extended_linears() const noexcept override { return extended_linears_; }
  std::string stored_type(TensorId id) const override;
  std::uint64_t stored_bytes(TensorId id) const override;
  std::vector<std::string> notes() const override { return notes_; }

 protected:
  explicit ReaderBase(std::string place) : place_(std::move(place)) {}
  const StoredTensor& stored(TensorId id) const;
  void add(TensorId id, StoredTensor tensor);
  /// Float linears → trits or not, per `floats`, and one note about it.
  void decide_floats(FloatLinears floats);

  std::string place_;  // "model directory 'x'", for messages
  ModelConfig config_;
  std::vector<std::string> notes_;

 private:
  std::size_t float_linears_ = 0;
  bool extended_linears_ = false;
  std::map<std::pair<TensorRole, std::int64_t>, StoredTensor> stored_;
};

std::unique_ptr<ModelReader> open_hf(const std::filesystem::path& directory, FloatLinears floats);
std::unique_ptr<ModelReader> open_gguf(const std::filesystem::path& path, FloatLinears floats);

}  // namespace bitnet::quant::model_io
