#pragma once
// A model ready to run on one backend: immutable, shared between sessions and schedulers. Files are read by
// bitnet-quant's model_io; there is no file format here.
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bitnet/core/device/backend.hpp"
#include "bitnet/core/model/model_config.hpp"
#include "bitnet/core/precision.hpp"
#include "bitnet/core/text/tokenizer.hpp"
#include "bitnet/quant/model_io.hpp"

namespace bitnet::inference {

struct ModelWeights;
class ModelBuilder;

/// In which form the embedding and the output head are kept (docs/numerics.md, "Heads and embeddings").
enum class HeadType : std::uint8_t {
  kAuto,    ///< int8 beside ternary linears, as stored in a dense model
  kInt8,    ///< int8 with a scale a row, where the backend can
  kF16,     ///< rounded to f16 while loading, half to even; a finite weight beyond ±65504 is an error
  kStored,  ///< f16, bf16 or f32 as the files have it, f32 for a quantised type (Q8_0, Q6_K)
};
std::string_view to_string(HeadType type) noexcept;  ///< "auto", "int8", "f16", "stored"

struct LoadOptions {
  quant::FloatLinears floats = quant::FloatLinears::kAsConfigured;
  /// What the embedding, the head and by default the KV cache are stored in; none:
  /// PrecisionPolicy::inference() of what the linears are.
  std::optional<PrecisionPolicy> precision = {};
  HeadType head = HeadType::kAuto;  ///< other than kAuto: in place of the policy's embedding and head
  /// Called after each tensor with what is done and the total.
  std::function<void(std::int64_t done, std::int64_t total)> progress;
};

/// `asked`, or what the default policy says beside linears that run on ternary weights or do not.
HeadType resolve_head(HeadType asked, bool ternary) noexcept;

/// A model's files, opened: configuration, tensors' shapes and types, tokenizer and policy were checked.
/// Used by one thread at a time, though its reader is thread-safe.
struct ModelFiles {
  /// Throws Error with the path as context: what ModelReader::open throws, Error(kUnsupported | kCorruptFile)
  /// for what inference cannot run.
  static ModelFiles open(const std::filesystem::path& path, const LoadOptions& options = {});
  /// That a backend needs at least: the ternary linears in the densest code there is (five trits a byte).
  std::size_t least_bytes() const;

  std::filesystem::path path;
  LoadOptions options;
  std::unique_ptr<quant::ModelReader> reader;
  std::shared_ptr<const Tokenizer> tokenizer;  ///< null when the files carry none
  PrecisionPolicy precision = PrecisionPolicy::inference();
  double seconds = 0;  ///< that opening them took, a part of Model::load_seconds()
};

/// Config, tokenizer and prepared weights. Thread-safe to read; ops of its backend are issued by one thread
/// at a time (Backend), so sessions and schedulers of one Model take turns.
class Model {
 public:
  /// Throws Error with the path as context: what ModelFiles::open and ModelReader::read throw,
  /// Error(kOutOfMemory), Error(kUnsupported) for a policy that inference does not implement, before any
  /// tensor is read.
  static std::shared_ptr<const Model> load(const std::filesystem::path& path,
                                           std::shared_ptr<Backend> backend, const LoadOptions& options = {});
  /// The same of files that are open: what is wrong with them was found out then, without a backend. Of
  /// `files` the tensors alone are read; they can be loaded again.
  static std::shared_ptr<const Model> load(const ModelFiles& files, std::shared_ptr<Backend> backend);
  /// From tensors in memory: `source(id)` is called once for each of model_tensors(config). `tokenizer` may
  /// be null. Of `options` only `precision` and `head` count. Throws Error(kInvalidArgument) on tensors whose
  /// shape or kind does not fit.
  static std::shared_ptr<const Model> build(const ModelConfig& config,
                                            std::shared_ptr<const Tokenizer> tokenizer,
                                            std::shared_ptr<Backend> backend,
                                            const std::function<quant::LogicalTensor(TensorId)>& source,
                                            const LoadOptions& options = {});
  /// The same model with other linears: `linear(id)` is asked for each of them in file order, and where it
  /// gives none this model's weights are shared. Its head and its policy stay as they are. Throws as build().
  std::shared_ptr<const Model> with_linears(
      const std::function<std::optional<quant::LogicalTensor>(TensorId)>& linear) const;
  ~Model();

  const ModelConfig& config() const noexcept { return config_; }
  /// Null when the files carry none.
  const std::shared_ptr<const Tokenizer>& tokenizer() const noexcept { return tokenizer_; }
  /// Throws Error(kNotFound) when there is none.
  const Tokenizer& require_tokenizer() const;
  Backend& backend() const noexcept { return *backend_; }
  const std::shared_ptr<Backend>& shared_backend() const noexcept { return backend_; }
  const ModelWeights& weights() const noexcept { return *weights_; }

  /// Tokens that end a generation: the tokenizer's and the config's, ascending.
  const std::vector<TokenId>& eos() const noexcept { return eos_; }
  bool is_eos(TokenId token) const noexcept;
  /// True when the linears run on ternary weights, false for a dense model.
  bool ternary() const noexcept { return ternary_; }
  /// What the ops run in; valid for inference.
  const PrecisionPolicy& precision() const noexcept { return precision_; }
  /// Of the head, as precision() has it; never kAuto.
  HeadType head_type() const noexcept;
  /// Of KV caches: `asked`, or precision()'s. Throws Error(kUnsupported) listing the types for another one.
  DType kv_type(std::optional<DType> asked = {}) const;
  std::int64_t n_parameters() const noexcept { return n_parameters_; }
  std::size_t weight_bytes() const noexcept { return weight_bytes_; }        ///< as prepared
  const std::vector<std::string>& notes() const noexcept { return notes_; }  ///< of the reader
  double load_seconds() const noexcept { return load_seconds_; }

 private:
  /// Hands one tensor to the builder.
  using Feed = std::function<void(TensorId, ModelBuilder&)>;
  Model();
  static std::shared_ptr<Model> make(const ModelConfig& config, std::shared_ptr<const Tokenizer> tokenizer,
                                     std::shared_ptr<Backend> backend, const PrecisionPolicy& precision,
                                     const Feed& feed);
  ModelConfig config_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::shared_ptr<Backend> backend_;
  std::unique_ptr<const ModelWeights> weights_;
  std::vector<TokenId> eos_;
  bool ternary_ = true;
  PrecisionPolicy precision_ = PrecisionPolicy::inference();
  std::int64_t n_parameters_ = 0;
  std::size_t weight_bytes_ = 0;
  std::vector<std::string> notes_;
  double load_seconds_ = 0;
};

}  // namespace bitnet::inference
