// Tokenizer::load: which file of which kind, and the errors that name it.
#include <fstream>

#include "bitnet/core/error.hpp"
#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/core/io/gguf.hpp"
#include "bitnet/core/text/tokenizer.hpp"
#include "text/spec.hpp"
#include "text/utf8.hpp"

namespace bitnet {
namespace fs = std::filesystem;
namespace {

// Eight times the largest in use; a vocabulary takes a multiple of its file while it is read.
constexpr std::uint64_t kMaxFileBytes = std::uint64_t{256} << 20;

bool is_there(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

// A file in the directory of `path`, "" where there is none.
std::string read_beside(const fs::path& path, const char* name) {
  const fs::path file = path.parent_path() / name;
  return is_there(file) ? read_file(file, kMaxFileBytes) : std::string();
}

// What newer transformers save apart from tokenizer_config.json; as there, it comes before the template in
// it.
void apply_template_file(const fs::path& path, text::TokenizerSpec& spec) {
  std::string chat = read_beside(path, "chat_template.jinja");
  if (chat.empty()) return;
  const std::size_t bad = text::find_invalid_utf8(chat);
  if (bad != std::string::npos)
    throw Error(ErrorCode::kCorruptFile, "chat_template.jinja: invalid UTF-8 at byte " + std::to_string(bad));
  spec.chat_template = std::move(chat);
}

std::shared_ptr<const Tokenizer> load_json(const fs::path& path) {
  return with_context("loading tokenizer '" + path.string() + "'", [&] {
    text::TokenizerSpec spec =
        text::read_tokenizer_json(read_file(path, kMaxFileBytes), read_beside(path, "tokenizer_config.json"));
    apply_template_file(path, spec);
    return text::make_tokenizer(std::move(spec));
  });
}

std::shared_ptr<const Tokenizer> load_sentencepiece(const fs::path& path) {
  return with_context("loading tokenizer '" + path.string() + "'", [&] {
    text::TokenizerSpec spec = text::read_sentencepiece_model(read_file(path, kMaxFileBytes));
    const std::string config = read_beside(path, "tokenizer_config.json");
    if (!config.empty()) text::apply_tokenizer_config(config, spec);
    apply_template_file(path, spec);
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
