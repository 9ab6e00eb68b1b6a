#pragma once
// Finding the tile and work-group sizes that suit a device, and the file that keeps them for later processes
// (docs/formats/opencl-tuning.md). No size changes a result. Functions may be called from several threads,
// but measure little when they are.
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "bitnet/core/execution.hpp"
#include "bitnet/core/model/model_config.hpp"
#include "bitnet/gpu/register.hpp"

namespace bitnet::gpu {

/// A matrix [out, in] that a model multiplies with.
struct TuneShape {
  enum class Kind : std::uint8_t {
    kTernary,  ///< a ternary linear
    kInt8,     ///< an embedding or head of int8
    kDense,    ///< a linear of f16
  };
  Kind kind = Kind::kTernary;
  std::int64_t out = 0, in = 0;
  std::int64_t count = 1;  ///< times in a model: how much its time counts
};

/// What a model of this shape multiplies with in a step: its linears, each once, and its head.
std::vector<TuneShape> tune_shapes(const ModelConfig& config);

struct TuneProgress {
  std::size_t done = 0, total = 0;  ///< candidates, of all programs
  std::string what;                 ///< "ternary_matmul, many rows"
};

struct TuneOptions {
  Options device;                 ///< how programs are built; its tuning_file is not read
  std::vector<TuneShape> shapes;  ///< not empty
  std::string model;              ///< whose shapes they are, for people who read the table
  int rounds = 5;                 ///< samples of each candidate, of which the median counts; from 1 on
  /// May throw: that ends the search, and tune() throws it.
  std::function<void(const TuneProgress&)> progress = {};
};

/// What was found out about one program.
struct TunedProgram {
  std::string program, rows;  ///< "ternary_matmul", for "one", "many" or "any" number of rows
  std::string chosen;         ///< "BN_OUT_WG=64 BN_SPLIT=4"
  std::string before;         ///< the default row's, as fitted to the device
  double gain = 1;            ///< time with `before` over time with `chosen`
  std::size_t candidates = 0;
  std::size_t refused = 0;  ///< of them, those that the device could not build or run
  std::size_t unequal = 0;  ///< of them, those whose results were wrong
};

struct TuneResult {
  std::string device;  ///< CL_DEVICE_NAME
  std::vector<TunedProgram> programs;
  std::string yaml;  ///< a table with this device alone
};

/// Measures every candidate of every program that the shapes need, interleaved, on the device of this name
/// ("opencl:0:0"). A candidate whose results are not the definition's to the bit (docs/numerics.md) cannot be
/// chosen, and what is not faster than the default by more than 2 % is not. Takes memory for a few matrices
/// of each candidate, one shape at a time. `context`: of the host; null: a default one. Throws
/// Error(kNotFound) for a name that is not there, Error(kInvalidArgument) for no shapes, sizes below 1 or no
/// rounds, Error(kDevice) where not even the default gives the right results, and what the driver throws, as
/// Error(kDevice | kOutOfMemory).
TuneResult tune(std::string_view device, const TuneOptions& options,
                std::shared_ptr<const ExecutionContext> context = nullptr);

/// Where the library looks for a user's table: BITNET_OPENCL_TUNING, or `bitnet/opencl-tuning.yaml` in
/// XDG_DATA_HOME or in ~/.local/share; empty where there is none of these.
std::filesystem::path user_tuning_file();

/// Throws what save_tuning() would throw of a table that is there, or of a place that cannot be written, so
/// that it is known before anything is measured.
void check_tuning_file(const std::filesystem::path& path);
/// Puts the result into a table: a row of the same device is replaced, others stay. The folder has to be
/// there. Throws Error(kInvalidArgument) with file and line where `path` is no such table, and what
/// AtomicFile throws.
void save_tuning(const TuneResult& result, const std::filesystem::path& path);

}  // namespace bitnet::gpu
