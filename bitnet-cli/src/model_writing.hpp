#pragma once
// Writing models as the options of convert, quantize and synth say. The files themselves are bitnet-quant's
// model_io.
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

#include "bitnet/cli/app.hpp"
#include "bitnet/quant/model_io.hpp"
#include "options.hpp"

namespace bitnet::cli {

/// Write options of a --type word and a --dense-type word; `dense` models keep float linears of `dense_type`.
quant::WriteOptions write_options(std::string_view type, std::string_view dense_type, bool dense);

/// Whether an extended model, whose configuration is a dense one's, has linears that are no floats.
bool has_quantised_linears(const quant::ModelReader& model);

/// Takes --shard-size over. Throws UsageError for what is no size, and where `options` write no files that
/// can be split.
void set_shard_size(const Values& values, quant::WriteOptions& options);

/// The narrowest type that holds the values of all that is stored as numbers, norms apart.
DType default_dense_type(const quant::ModelReader& model);

/// The type that is written without --type: what the input has, in the container that the output's name says;
/// where that cannot hold its linears, the type extended, and of a name that ends in .gguf, i2_s. `floats`:
/// of float linears in a GGUF file. Throws Error(kUnsupported) where no GGUF file holds the linears
/// unrounded.
std::string default_type(const quant::ModelReader& model, DType floats, const std::filesystem::path& out);

/// Throws Error(kInvalidArgument) when `out` is the same file as `in`, lies where it cannot be written (no
/// parent directory, a device), or does not look like the container of `options`: a GGUF into a directory,
/// say.
void check_output_path(const std::filesystem::path& out, const std::filesystem::path& in,
                       const quant::WriteOptions& options);

/// write_model() with a progress bar, unless the source draws one of its own, and Ctrl-C; says on io.err what
/// was written.
void write_with_progress(const std::filesystem::path& out, const ModelConfig& config,
                         const Tokenizer* tokenizer,
                         const std::function<quant::LogicalTensor(TensorId)>& source,
                         const quant::WriteOptions& options, Io& io, bool with_bar = true);

}  // namespace bitnet::cli
