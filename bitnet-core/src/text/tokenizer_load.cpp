// Tokenizer::load: which file of which kind, and the errors that name it.
#include <fstream>

#include "bitnet/core/error.hpp"
#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/core/io/gguf.hpp"
#include "bitnet/core/text/tokenizer.hpp"
#include "text/spec.hpp"

namespace bitnet {
namespace fs = std::filesystem;
namespace {

bool is_there(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

// tokenizer_config.json beside the file, "" where there is none.
std::string config_beside(const fs::path& path) {
  const fs::path config = path.parent_path() / "tokenizer_config.json";
  return is_there(config) ? read_file(config) : std::string();
}

std::shared_ptr<const Tokenizer> load_json(const fs::path& path) {
  return with_context("loading tokenizer '" + path.string() + "'",
                      [&] { return Tokenizer::from_json(read_file(path), config_beside(path)); });
}

std::shared_ptr<const Tokenizer> load_sentencepiece(const fs::path& path) {
  return with_context("loading tokenizer '" + path.string() + "'", [&] {
    text::TokenizerSpec spec = text::read_sentencepiece_model(read_file(path));
    const std::string config = config_beside(path);
    if (!config.empty()) text::apply_tokenizer_config(config, spec);
    return text::make_tokenizer(std::move(spec));
  });
}

bool is_gguf(const fs::path& path) {
  std::error_code ignored;
  if (!fs::is_regular_file(path, ignored)) return false;  // opening a FIFO would wait for a writer
  char magic[4] = {};
  std::ifstream file(path, std::ios::binary);
  return file.read(magic, 4) && std::string_view(magic, 4) == "GGUF";
}

}  // namespace

std::shared_ptr<const Tokenizer> Tokenizer::load(const fs::path& path) {
  std::error_code ignored;
  if (fs::is_directory(path, ignored)) {
    if (is_there(path / "tokenizer.json")) return load_json(path / "tokenizer.json");
    if (is_there(path / "tokenizer.model")) return load_sentencepiece(path / "tokenizer.model");
    throw Error(ErrorCode::kNotFound,
                "directory '" + path.string() + "' has neither tokenizer.json nor tokenizer.model");
  }
  if (!is_there(path))
    throw Error(ErrorCode::kNotFound, "no such file or directory: '" + path.string() + "'");
  if (is_gguf(path)) {
    const auto file = GgufFile::open(path);
    return with_context("loading tokenizer '" + path.string() + "'",
                        [&] { return from_gguf(file->metadata()); });
  }
  if (path.extension() == ".json") return load_json(path);
  if (path.extension() == ".model") return load_sentencepiece(path);
  throw Error(ErrorCode::kUnsupported, "'" + path.string() +
                                           "': expected a directory, a GGUF file, a tokenizer.json or a "
                                           "tokenizer.model");
}

std::shared_ptr<const Tokenizer> Tokenizer::from_gguf(const GgufMetadata& metadata) {
  return text::make_tokenizer(text::read_gguf_vocabulary(metadata));
}

std::shared_ptr<const Tokenizer> Tokenizer::from_json(std::string_view json, std::string_view config) {
  return text::make_tokenizer(text::read_tokenizer_json(json, config));
}

std::shared_ptr<const Tokenizer> Tokenizer::from_sentencepiece(std::span<const std::byte> protobuf) {
  return text::make_tokenizer(
      text::read_sentencepiece_model({reinterpret_cast<const char*>(protobuf.data()), protobuf.size()}));
}

}  // namespace bitnet
