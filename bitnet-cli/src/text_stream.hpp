#pragma once
// Texts that commands read in blocks, so that their size is no matter: files, pipes, standard input. Texts
// that are needed whole are read_text()'s (common.hpp).
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "bitnet/cli/app.hpp"
#include "bitnet/core/text/tokenizer.hpp"

namespace bitnet::cli {

/// A text from its beginning to its end. Not thread-safe.
class TextReader {
 public:
  /// Opens the file, or takes standard input for "-". Throws Error(kNotFound | kIo).
  TextReader(std::string path, Io& io);
  ~TextReader();
  TextReader(const TextReader&) = delete;
  TextReader& operator=(const TextReader&) = delete;

  /// What comes next, at most 64 KiB in place of what `block` held; false at the end. Throws Error(kIo), and
  /// Error(kCancelled) once the user pressed Ctrl-C.
  bool next(std::string& block);
  const std::string& path() const noexcept { return path_; }

 private:
  std::string path_;
  Io& io_;
  int fd_ = -1;
};

/// Hands on the ids that Tokenizer::encode() gives the whole text, in order, as they come; memory does not
/// grow with the text (StreamEncoder). Throws what reading and StreamEncoder throw.
void stream_tokens(const std::shared_ptr<const Tokenizer>& tokenizer, TextReader& text,
                   const std::function<void(std::span<const TokenId>)>& sink);
/// The same with several tokenizers, the text read once; those that are null have no ids. `which`: of them.
void stream_tokens(const std::vector<std::shared_ptr<const Tokenizer>>& tokenizers, TextReader& text,
                   const std::function<void(std::size_t which, std::span<const TokenId>)>& sink);

/// Hands on each line, without its line end ("\n" or "\r\n"), blank ones too.
void stream_lines(TextReader& text, const std::function<void(std::string_view line)>& sink);

}  // namespace bitnet::cli
