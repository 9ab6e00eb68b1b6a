#pragma once
// Whole models in files: Hugging Face directories and GGUF files ↔ logical tensors (trits and scales, or
// dense values), one tensor in memory at a time. The only place that knows tensor names, scale directions,
// row permutations and packings at once; inference, training's export and `bitnet convert` are its callers.
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bitnet/core/device/backend_types.hpp"
#include "bitnet/core/dtype.hpp"
#include "bitnet/core/model/model_config.hpp"
#include "bitnet/core/model/tensor_names.hpp"
#include "bitnet/core/text/tokenizer.hpp"
#include "bitnet/quant/packing.hpp"

namespace bitnet::quant {

/// What a model is stored as.
enum class ModelFormat : std::uint8_t { kHf, kGguf };

/// A matrix of int8 with a scale a row: W ≈ q · scale.
struct Int8Rows {
  std::vector<std::int8_t> values;  // [out, in]
  std::vector<float> scales;        // [out]
};

/// One tensor, whole: ternary (trits and scales) or dense (bytes of f32, f16 or bf16). Vectors are [1,
/// n]-free: shape as in tensor_shape().
struct LogicalTensor {
  TensorId id;
  Shape shape;
  bool ternary = false;
  TernaryWeights weights;        ///< if ternary
  DType dtype = DType::kF32;     ///< if dense
  std::vector<std::byte> dense;  // if dense: [shape] of dtype
  /// What dense values are made of, if they are (kExtended): then `dense`, of f32, is filled by readers and
  /// may be left empty for writers.
  std::optional<TwoPlanes> planes = {};
  std::optional<Int8Rows> int8 = {};
  ActivationForm activations = ActivationForm::kInt8;  ///< of what a ternary or int8 linear multiplies

  /// Dense values widened to f32 (ternary: scale · trit, of two planes their sum; int8: q · scale).
  std::vector<float> to_f32() const;
};

/// One tensor whose rows are decoded from the mapped file when they are asked for, on the threads that ask.
/// A vector is one row. Usable while its ModelReader lives; what it leaves of the file in memory is given
/// back as it goes and when its last copy ends.
struct TensorRows {
  TensorId id;
  Shape shape;
  bool ternary = false;
  std::vector<float> scales;            // if ternary
  std::int64_t rows_per_scale = 0;      ///< if ternary
  std::int64_t cols_per_scale = 0;      ///< if ternary, as in TernaryWeights
  std::vector<TensorRows> planes = {};  ///< if dense rows are the sum of two planes: both of them, ternary
  bool int8 = false;                    ///< dense rows that are int8 times a scale a row
  DType dtype = DType::kF32;            ///< if dense
  RowSource<std::int8_t> trits;         ///< if ternary; throws Error(kCorruptFile) on invalid codes
  RowSource<std::byte> dense;           ///< if dense: rows of dtype
  ActivationForm activations = ActivationForm::kInt8;  ///< as in LogicalTensor

  /// For Backend::prepare(): a view of this object. Matrices only.
  LinearWeights weights() const;
};

/// How float linears of a model are treated on reading.
enum class FloatLinears : std::uint8_t {
  kAsConfigured,  ///< ternarise where the config says BitNet, else leave dense
  kTernarise,     ///< absmean whatever the config says (`--quantize absmean`)
  kKeep,          ///< leave dense (training continues from latent weights)
};

/// A model opened for reading. Files stay mapped; read() is thread-safe.
class ModelReader {
 public:
  /// `path`: a Hugging Face directory or a GGUF file. Checks config, that every tensor of the architecture is
  /// there once with its shape and a type that can be read, and that nothing unknown is (extra tensors are
  /// reported in notes()). Throws Error(kNotFound | kIo | kCorruptFile | kUnsupported), file and place named.
  static std::unique_ptr<ModelReader> open(const std::filesystem::path& path,
                                           FloatLinears floats = FloatLinears::kAsConfigured);
  virtual ~ModelReader() = default;

  virtual ModelFormat format() const noexcept = 0;
  virtual const ModelConfig& config() const noexcept = 0;
  /// Absent when the files carry no tokenizer. Throws as Tokenizer::load.
  virtual std::shared_ptr<const Tokenizer> tokenizer() const = 0;
  /// The tensors in file order of model_tensors().
  virtual std::vector<TensorId> tensors() const = 0;
  /// Decoded tensor. Throws Error(kCorruptFile) on invalid codes or scales that are not finite; a scale that
  /// is implausible for its declared direction is a note.
  virtual LogicalTensor read(TensorId id) const = 0;
  /// The same without the tensor in memory: float linears to be ternarised are read once for their scale
  /// here, codes are checked when their rows are decoded.
  virtual TensorRows rows(TensorId id) const = 0;
  /// Whether linears are stored as numbers (F32, F16, BF16, Q8_0, Q6_K), be they ternarised at load or not.
  virtual bool float_linears() const noexcept = 0;
  /// Whether some linear is what only extended files hold (LinearWeights::extended()).
  virtual bool extended_linears() const noexcept { return false; }
  /// The type of dense values that read(id) gives, which holds all that the file says (f32 for Q8_0 and
  /// Q6_K); absent where it gives trits.
  virtual std::optional<DType> float_type(TensorId id) const = 0;
  /// Stored type of a tensor ("I2_S", "U8 packed", "BF16 → ternary", …) and its bytes, for `inspect`.
  virtual std::string stored_type(TensorId id) const = 0;
  virtual std::uint64_t stored_bytes(TensorId id) const = 0;
  virtual std::uint64_t file_bytes() const = 0;
  /// Remarks for people: ignored tensors, a suspicious scale, float weights ternarised at load.
  virtual std::vector<std::string> notes() const = 0;
};

/// Type of the linears in the file written.
enum class LinearType : std::uint8_t {
  kHf,
  kI2_S,
  kTQ1_0,
  kTQ2_0,
  kDense,
  kExtended,  ///< a directory with linears of any kind (docs/formats/extended.md)
};

struct WriteOptions {
  LinearType type = LinearType::kI2_S;  ///< kHf and kDense without `gguf` write a directory
  bool gguf = true;                     ///< with kDense: GGUF or directory
  WeightScaleForm scale_form = WeightScaleForm::kMultiply;  ///< kHf only
  DType dense_type = DType::kF16;                           ///< embeddings, head and dense linears
  DType norm_type = DType::kF32;
  /// Of directories: most bytes of tensors a file, one tensor at least; 0: all in one file. kExtended has a
  /// file a layer whatever this says, a GGUF is one file. Several files want a new or an empty directory.
  std::uint64_t shard_bytes = 0;
};

/// What write_model() finds wrong before it asks for a tensor, for callers whose work comes before: the
/// configuration, types, the tokenizer's size, linears whose columns `options.type` cannot hold, and, of a
/// directory, what is at `path` already. Throws Error(kInvalidArgument | kUnsupported | kIo).
void check_write(const std::filesystem::path& path, const ModelConfig& config, const Tokenizer* tokenizer,
                 const WriteOptions& options);

/// Writes a model tensor by tensor, atomically per file. `source(id)` is called once for each of
/// model_tensors(config), in that order. Throws Error(kUnsupported) before anything is written when a tensor
/// cannot be held by the type (K, or several scales), naming the types that would do; Error(kIo).
void write_model(const std::filesystem::path& path, const ModelConfig& config, const Tokenizer* tokenizer,
                 const std::function<LogicalTensor(TensorId)>& source, const WriteOptions& options);

}  // namespace bitnet::quant
