#pragma once
// Plain text as tokens, whole or as documents. Other kinds of files are training_text.hpp; how tokens become
// sequences is data.hpp. Functions of their arguments and files, thread-safe.
#include <cstdint>
#include <filesystem>
#include <span>
#include <string_view>
#include <vector>

#include "bitnet/core/execution.hpp"
#include "bitnet/core/text/tokenizer.hpp"

namespace bitnet::training {

/// The tokens of a whole text, no BOS. Encoded in parallel in pieces cut after line ends, where no pre-token
/// crosses. Throws Error(kInvalidArgument) on invalid UTF-8, with the byte.
std::vector<TokenId> tokenize_text(const ExecutionContext& context, const Tokenizer& tokenizer,
                                   std::string_view text);
/// The same of a file, which errors name; Error(kNotFound | kIo), too.
std::vector<TokenId> tokenize_file(const ExecutionContext& context, const Tokenizer& tokenizer,
                                   const std::filesystem::path& path);

/// Tokens of documents one behind the other, wherever they lie: what it points to must outlive it.
struct DocumentsView {
  std::span<const TokenId> tokens;
  std::span<const std::int64_t> ends;  ///< ascending: document i is tokens [ends[i − 1], ends[i])
  /// [tokens], 0 where a token is read but no target of the loss (a prompt); empty: all are targets.
  std::span<const std::uint8_t> learned;
};

/// The same in memory of its own.
struct Documents {
  std::vector<TokenId> tokens;
  std::vector<std::int64_t> ends;
  std::vector<std::uint8_t> learned = {};
  DocumentsView view() const noexcept { return {tokens, ends, learned}; }
};

/// The documents of a text: what lies between `separator`s, empty ones left out, each followed by the
/// tokenizer's end-of-text token where it has one. Throws like tokenize_text, and Error(kInvalidArgument) for
/// an empty separator.
Documents documents_of_text(const ExecutionContext& context, const Tokenizer& tokenizer,
                            std::string_view text, std::string_view separator);
/// The same of a file, which errors name; Error(kNotFound | kIo), too.
Documents tokenize_documents(const ExecutionContext& context, const Tokenizer& tokenizer,
                             const std::filesystem::path& path, std::string_view separator);

}  // namespace bitnet::training
