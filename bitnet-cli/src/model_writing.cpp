// See model_writing.hpp.
#include "model_writing.hpp"

#include <algorithm>
#include <optional>
#include <ostream>

#include "bitnet/core/io/written_aside.hpp"
#include "bitnet/quant/linear_types.hpp"
#include "common.hpp"

namespace bitnet::cli {
namespace {

namespace fs = std::filesystem;
using quant::LinearType;
using quant::WriteOptions;

[[noreturn]] void refuse(const fs::path& path, const std::string& message,
                         SourceLocation where = SourceLocation::current()) {
  throw Error(ErrorCode::kInvalidArgument, "'" + path.string() + "': " + message, where);
}

std::uint64_t bytes_at(const fs::path& path) {
  std::error_code ignored;
  if (fs::is_regular_file(path, ignored)) return fs::file_size(path, ignored);
  std::uint64_t sum = 0;
  for (const auto& entry : fs::directory_iterator(path, ignored))
    if (entry.is_regular_file(ignored)) sum += entry.file_size(ignored);
  return sum;
}

DType dense_type_of(std::string_view word) {
  if (word == "f32") return DType::kF32;
  return word == "bf16" ? DType::kBF16 : DType::kF16;
}

/// Whether nothing is in a directory but what a writer that was killed left, which the next one removes.
bool is_free(const fs::path& directory) {
  std::error_code error;
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error))
    if (!is_written_aside(it->path().filename().string())) return false;
  return true;
}

}  // namespace

WriteOptions write_options(std::string_view type, std::string_view dense_type, bool dense) {
  WriteOptions options;
  options.dense_type = dense_type_of(dense_type);
  options.gguf = type != "hf" && type != "extended";
  if (type == "hf") options.type = dense ? LinearType::kDense : LinearType::kHf;
  if (type == "extended") options.type = LinearType::kExtended;
  if (type == "i2_s") options.type = LinearType::kI2_S;
  if (type == "tq1_0") options.type = LinearType::kTQ1_0;
  if (type == "tq2_0") options.type = LinearType::kTQ2_0;
  if (type == "f16" || type == "bf16" || type == "f32") {
    options.type = LinearType::kDense;
    options.dense_type = dense_type_of(type);
  }
  return options;
}

bool has_quantised_linears(const quant::ModelReader& model) {
  const std::vector<TensorId> ids = model.tensors();
  return model.config().weights == WeightKind::kDense &&
         std::any_of(ids.begin(), ids.end(), [&](TensorId id) {
           if (!is_linear(id.role)) return false;
           const std::string stored = model.stored_type(id);
           return stored.starts_with("U8") || stored.starts_with("I8");
         });
}

void set_shard_size(const Values& values, WriteOptions& options) {
  if (!values.has(opt::kShardSize)) return;
  if (options.gguf || options.type == LinearType::kExtended)
    throw UsageError(
        "--shard-size is for --type hf: a GGUF is one file, and type extended has a file a layer in any "
        "case");
  options.shard_bytes =
      checked(values, opt::kShardSize, [](const std::string& text) { return parse_bytes(text); });
  if (options.shard_bytes == 0) throw UsageError("--shard-size: expected more than 0 bytes");
}

DType default_dense_type(const quant::ModelReader& model) {
  std::optional<DType> widest;
  for (const TensorId id : model.tensors())
    if (const auto type = model.float_type(id);
        type && !is_norm(id.role) && !model.stored_type(id).starts_with("I8"))
      widest = !widest || *widest == *type ? *type : DType::kF32;  // f16 and bf16: neither holds the other
  return widest.value_or(DType::kF16);
}

std::string default_type(const quant::ModelReader& model, DType floats, const fs::path& out) {
  const bool quantised = has_quantised_linears(model), gguf = out.extension() == ".gguf";
  if (model.config().weights == WeightKind::kDense && !quantised)
    return gguf ? std::string(to_string(floats)) : "hf";
  if (!gguf) return quantised || !quant::holds_linears(model, LinearType::kHf) ? "extended" : "hf";
  const std::string stored = model.stored_type({TensorRole::kAttnQ, 0});
  for (const auto& [name, type] : {std::pair{"TQ1_0", "tq1_0"}, {"TQ2_0", "tq2_0"}})
    if (stored.starts_with(name)) return type;
  if (quantised)
    with_context("--type, for a name that ends in .gguf",
                 [&] { quant::check_linears(model, LinearType::kI2_S); });
  return "i2_s";
}

void check_output_path(const fs::path& out, const fs::path& in, const WriteOptions& options) {
  const bool directory = !options.gguf || options.type == LinearType::kHf;
  std::error_code ignored;
  if (!in.empty() && fs::equivalent(out, in, ignored)) refuse(out, "input and output are the same");
  if (!in.empty() && would_replace(out, in)) refuse(out, "is a file of the input, which it would replace");
  if (fs::exists(out, ignored)) {
    if (directory && !fs::is_directory(out, ignored))
      refuse(out, "expected a directory: that is what this type writes");
    if (options.type == LinearType::kExtended && !is_free(out))
      refuse(out, "is not empty; expected a new or empty directory for a model in several files");
    if (!directory && fs::is_directory(out, ignored))
      refuse(out, "is a directory; this type writes a GGUF file");
    if (!directory && !fs::is_regular_file(out, ignored)) refuse(out, "is no ordinary file");
  } else if (directory && (out.has_filename() ? out : out.parent_path()).extension() == ".gguf") {
    refuse(out, "type hf writes a directory; a name that ends in .gguf would mislead");
  }
  const fs::path parent = (out.has_filename() ? out : out.parent_path()).parent_path();  // of "small/", too
  if (!parent.empty() && !fs::is_directory(parent, ignored))
    refuse(out, "there is no directory '" + parent.string() + "'");
}

void write_with_progress(const fs::path& out, const ModelConfig& config, const Tokenizer* tokenizer,
                         const std::function<quant::LogicalTensor(TensorId)>& source,
                         const WriteOptions& options, Io& io, bool with_bar) {
  const Stopwatch watch;
  const auto total = static_cast<double>(model_tensors(config).size());
  {
    ProgressBar bar(io, "tensors");
    double done = 0;
    quant::write_model(
        out, config, tokenizer,
        [&](TensorId id) {
          check_cancelled(io);
          if (with_bar) bar.update(done++, total);
          return source(id);
        },
        options);
  }
  io.err << "wrote '" << out.string() << "': " << human_bytes(bytes_at(out)) << " in "
         << fixed(watch.seconds(), 1) << " s\n";
}

}  // namespace bitnet::cli
