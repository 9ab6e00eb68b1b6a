// Hugging Face directories: written aside as a whole, then renamed; into an existing directory file by file,
// its config.json removed first and the new one coming last, so that no reader ever sees a config with the
// tensors of another.
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <iterator>
#include <nlohmann/json.hpp>
#include <utility>

#include "bitnet/core/error.hpp"
#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/core/io/safetensors.hpp"
#include "bitnet/core/io/written_aside.hpp"
#include "model_io/extended.hpp"
#include "model_io/writer_base.hpp"

namespace bitnet::quant::model_io {
namespace {

namespace fs = std::filesystem;

SafeDType safe_dtype(DType dtype) {
  return dtype == DType::kF32 ? SafeDType::kF32 : dtype == DType::kF16 ? SafeDType::kF16 : SafeDType::kBF16;
}

/// A tensor and, where it is packed, its scale.
std::vector<SafeTensorInfo> declare(TensorId id, const ModelConfig& config, const WriteOptions& options) {
  const Shape shape = tensor_shape(id, config);
  SafeTensorInfo info;
  info.name = hf_name(id, config.family);
  info.shape.assign(shape.dims().begin(), shape.dims().end());
  info.dtype = safe_dtype(dense_dtype(id, options));
  if (!is_linear(id.role) || options.type != LinearType::kHf) return {info};
  info.dtype = SafeDType::kU8;
  info.shape[0] = (info.shape[0] + 3) / 4;
  return {info, {info.name + "_scale", SafeDType::kF32, {1}, 0, 0, 0}};
}

std::uint64_t size_of(const SafeTensorInfo& info) {
  std::uint64_t n = bytes_of(info.dtype);
  for (const std::int64_t dim : info.shape) n *= static_cast<std::uint64_t>(dim);
  return n;
}

struct Shard {
  std::vector<TensorId> ids;
  std::vector<SafeTensorInfo> infos;
  std::uint64_t bytes = 0;
};

/// In file order, each as full as WriteOptions::shard_bytes allows.
std::vector<Shard> shards_of(const ModelConfig& config, const WriteOptions& options) {
  std::vector<Shard> shards(1);
  for (const TensorId id : model_tensors(config)) {
    std::vector<SafeTensorInfo> infos = declare(id, config, options);
    std::uint64_t bytes = 0;
    for (const SafeTensorInfo& info : infos) bytes += size_of(info);
    if (options.shard_bytes > 0 && !shards.back().ids.empty() &&
        bytes > options.shard_bytes - std::min(options.shard_bytes, shards.back().bytes))
      shards.emplace_back();
    Shard& shard = shards.back();
    shard.ids.push_back(id);
    shard.bytes += bytes;
    std::move(infos.begin(), infos.end(), std::back_inserter(shard.infos));
  }
  return shards;
}

void write_tensor(SafeTensorsWriter& writer, TensorId id, const ModelConfig& config, const Source& source,
                  const WriteOptions& options) {
  LogicalTensor t = take(source, id, config, options.type == LinearType::kHf);
  const std::string name = hf_name(id, config.family);
  if (!t.ternary) {
    with_context(fmt::format("tensor '{}'", name),
                 [&] { writer.write(name, as_dtype(std::move(t), dense_dtype(id, options))); });
    return;
  }
  with_context(fmt::format("tensor '{}'", name),
               [&] { writer.write(name, pack(TernaryLayout::kHfUint8, t.weights)); });
  // A matrix of zeros may come with the scale 0 (llama.cpp quantises so), which readers refuse: any does.
  float m = t.weights.scales.at(0);
  if (m == 0 && std::all_of(t.weights.trits.begin(), t.weights.trits.end(), [](auto v) { return v == 0; }))
    m = 1.0f;
  const float stored = options.scale_form == WeightScaleForm::kDivide ? 1.0f / m : m;
  if (!(stored > 0) || !std::isfinite(stored))
    throw Error(
        ErrorCode::kUnsupported,
        fmt::format("tensor '{}': the scale {} cannot be stored: expected {} to be above 0 and finite", name,
                    m, stored));
  writer.write(name + "_scale", std::as_bytes(std::span(&stored, 1)));
}

/// model.safetensors, or several files and their index.
void write_tensors(const fs::path& directory, const ModelConfig& config, const Source& source,
                   const WriteOptions& options) {
  std::vector<Shard> shards = shards_of(config, options);
  nlohmann::ordered_json index;
  std::uint64_t total = 0;
  for (std::size_t i = 0; i < shards.size(); ++i) {
    Shard& shard = shards[i];
    const std::string name = shards.size() == 1
                                 ? std::string("model.safetensors")
                                 : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
    for (const SafeTensorInfo& info : shard.infos) index["weight_map"][info.name] = name;
    total += shard.bytes;
    SafeTensorsWriter writer(directory / name, std::move(shard.infos), {{"format", "pt"}});
    for (const TensorId id : shard.ids) write_tensor(writer, id, config, source, options);
    writer.finish();
  }
  if (shards.size() == 1) return;
  index["metadata"]["total_size"] = total;
  write_file(directory / "model.safetensors.index.json", index.dump(2) + "\n");
}

std::string generation_config(const ModelConfig& config) {
  nlohmann::ordered_json out;
  out["_from_model_config"] = true;
  if (config.bos_id >= 0) out["bos_token_id"] = config.bos_id;
  if (config.eos_ids.size() == 1) out["eos_token_id"] = config.eos_ids[0];
  if (config.eos_ids.size() > 1) out["eos_token_id"] = config.eos_ids;
  return out.dump(2) + "\n";
}

void write_files(const fs::path& directory, const ModelConfig& config, const Tokenizer* tokenizer,
                 const Source& source, const WriteOptions& options) {
  const auto form = options.type == LinearType::kHf ? std::optional(options.scale_form) : std::nullopt;
  const bool extended = options.type == LinearType::kExtended;
  std::string text = config.to_json(form);  // throws before anything is written
  if (extended) {
    text = declare_extended(text, write_extended(directory, config, source, options));
  } else {
    write_tensors(directory, config, source, options);
  }
  if (tokenizer) {
    write_file(directory / "tokenizer.json", tokenizer->to_json());
    write_file(directory / "tokenizer_config.json", tokenizer->config_json());
  }
  write_file(directory / "generation_config.json", generation_config(config));
  write_file(directory / "config.json", text);
}

/// An older model's files that the new one may not have, and that readers (ours, and others') would take for
/// its own.
constexpr const char* kTokenizerFiles[] = {"tokenizer.json",    "tokenizer_config.json",
                                           "tokenizer.model",   "special_tokens_map.json",
                                           "added_tokens.json", "vocab.json",
                                           "merges.txt",        "chat_template.jinja"};
constexpr const char* kWrittenFiles[] = {"model.safetensors", "generation_config.json", "config.json",
                                         "tokenizer.json", "tokenizer_config.json"};

[[noreturn]] void io_error(const fs::path& path, const std::error_code& error,
                           SourceLocation where = SourceLocation::current()) {
  throw Error(ErrorCode::kIo, fmt::format("'{}': {}", path.string(), error.message()), where);
}

/// An older model's tensors in the directory would be read instead of, or beside, the new ones; and what is
/// no file cannot be replaced by one.
void refuse_other_model(const fs::path& directory) {
  std::error_code error;
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (name == "model.safetensors.index.json" ||
        (it->path().extension() == ".safetensors" && name != "model.safetensors"))
      throw Error(
          ErrorCode::kInvalidArgument,
          fmt::format("the directory holds another model's '{}'; expected a new or empty directory", name));
    std::error_code ignored;
    if (std::find(std::begin(kWrittenFiles), std::end(kWrittenFiles), name) != std::end(kWrittenFiles) &&
        it->is_directory(ignored))
      throw Error(ErrorCode::kInvalidArgument,
                  fmt::format("'{}' is a directory; expected a file", it->path().string()));
  }
  if (error)
    throw Error(ErrorCode::kIo, fmt::format("cannot list '{}': {}", directory.string(), error.message()));
}

/// A new directory, which is known as being written as long as this lives.
class Aside {
 public:
  /// In `parent`. Another number when a run that was killed left one of the same process id.
  Aside(const fs::path& parent, const std::string& stem) {
    for (int i = 0; fd_ < 0; ++i) {
      path_ = parent / fmt::format("{}.{}.{}.partial", stem, getpid(), i);
      std::error_code error;
      const bool made = fs::create_directory(path_, error);
      if (error || i == 1000) io_error(path_, error ? error : std::make_error_code(std::errc::file_exists));
      if (!made) continue;
      fd_ = ::open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
      if (fd_ < 0) io_error(path_, std::error_code(errno, std::generic_category()));
      if (!hold_written_aside(fd_)) close(std::exchange(fd_, -1));
    }
  }
  ~Aside() { close(fd_); }
  Aside(const Aside&) = delete;
  Aside& operator=(const Aside&) = delete;
  const fs::path& path() const noexcept { return path_; }

 private:
  fs::path path_;
  int fd_ = -1;
};

/// Where write_hf() writes what will be `target`, and under which name. Inside an existing one, which may be
/// a link to, or the root of, another file system.
std::pair<fs::path, std::string> place_aside(const fs::path& target) {
  std::error_code error;
  if (fs::exists(target, error)) return {target, ".new"};
  return {target.parent_path(), "." + target.filename().string()};
}

/// A file system without permissions may refuse this; the content is what matters there.
void take_permissions(const fs::path& from, const fs::path& to) {
  std::error_code error;
  const fs::file_status old = fs::status(from, error);
  if (!error && fs::is_regular_file(old)) fs::permissions(to, old.permissions(), error);
}

void move_over(const fs::path& from, const fs::path& to) {
  std::error_code error;
  fs::rename(from, to, error);
  if (error) io_error(to, error);
}

void remove_file(const fs::path& path) {
  std::error_code error;
  fs::remove(path, error);
  if (error) io_error(path, error);
}

/// Into an empty directory; config.json, without which it is no model, comes last.
void move_files(const fs::path& aside, const fs::path& target) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(aside))
    if (entry.path().filename() != "config.json") files.push_back(entry.path());
  for (const fs::path& file : files) move_over(file, target / file.filename());
  sync_directory(target);
  move_over(aside / "config.json", target / "config.json");
  sync_directory(target);
}

/// Puts the files of `aside` over those of `target`. A directory without config.json is no model: what a
/// crash leaves between is refused, not read as new tensors under an old config (whose scales may be the
/// inverses).
void replace_model(const fs::path& aside, const fs::path& target) {
  std::error_code ignored;
  const bool had_model =
      fs::exists(target / "config.json", ignored) || fs::exists(target / "model.safetensors", ignored);
  for (const char* name : kWrittenFiles) take_permissions(target / name, aside / name);
  remove_file(target / "config.json");
  sync_directory(target);
  for (const char* name : kTokenizerFiles)
    if (had_model && !fs::exists(aside / name, ignored)) remove_file(target / name);
  for (const char* name : kWrittenFiles)
    if (name != std::string_view("config.json") && fs::exists(aside / name, ignored))
      move_over(aside / name, target / name);
  sync_directory(target);
  move_over(aside / "config.json", target / "config.json");
  sync_directory(target);
}

bool in_several_files(const ModelConfig& config, const WriteOptions& options) {
  return options.type == LinearType::kExtended || shards_of(config, options).size() > 1;
}

/// Whether nothing is in a directory but what is written aside, of which what was abandoned goes.
bool is_free(const fs::path& directory) {
  std::error_code error;
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error))
    if (!is_written_aside(it->path().filename().string())) return false;
  return true;
}

[[noreturn]] void refuse_used(const fs::path& directory, SourceLocation where = SourceLocation::current()) {
  throw Error(ErrorCode::kInvalidArgument,
              fmt::format("'{}' is not empty; expected a new directory for a model in several files",
                          directory.string()),
              where);
}

/// "out/" names the same directory as "out".
fs::path without_slash(const fs::path& directory) {
  return directory.has_filename() ? directory : directory.parent_path();
}

}  // namespace

void check_hf_place(const fs::path& directory, const ModelConfig& config, const WriteOptions& options) {
  const fs::path target = without_slash(directory);
  std::error_code error;
  if (!fs::exists(target, error)) return;
  if (!fs::is_directory(target, error))
    throw Error(ErrorCode::kInvalidArgument, fmt::format("'{}' is not a directory", target.string()));
  refuse_other_model(target);
  if (in_several_files(config, options) && !is_free(target)) refuse_used(target);
}

void write_hf(const fs::path& directory, const ModelConfig& config, const Tokenizer* tokenizer,
              const Source& source, const WriteOptions& options) {
  const fs::path target = without_slash(directory);
  const bool several = in_several_files(config, options);
  std::error_code error;
  const auto [parent, stem] = place_aside(target);
  remove_abandoned(parent, stem);
  const bool exists = fs::exists(target, error);
  if (exists && several && !fs::is_empty(target, error)) refuse_used(target);  // another one writes there
  const Aside held(parent, stem);
  const fs::path& aside = held.path();
  try {
    write_files(aside, config, tokenizer, source, options);
    if (exists) {
      if (several) {
        move_files(aside, target);
      } else {
        replace_model(aside, target);
      }
      fs::remove_all(aside, error);
    } else {
      fs::rename(aside, target, error);
      if (error) io_error(target, error);
      sync_directory(target.has_parent_path() ? target.parent_path() : ".");
    }
  } catch (...) {
    fs::remove_all(aside, error);
    throw;
  }
}

}  // namespace bitnet::quant::model_io
