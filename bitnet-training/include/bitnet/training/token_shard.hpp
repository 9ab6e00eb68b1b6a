#pragma once
// Tokens of a text in a file that is made once and memory-mapped by each run. The layout is described in
// docs/formats/tokens.md. What a text is and how it is tokenised: training_text.hpp.
#include <cstdint>
#include <filesystem>
#include <memory>

#include "bitnet/core/memory/mapped_file.hpp"
#include "bitnet/training/documents.hpp"

namespace bitnet::training {

/// Hash of the vocabulary, its rules and its chat template: shards of another tokenizer are refused.
std::uint64_t tokenizer_hash(const Tokenizer& tokenizer);

/// Writes a shard aside, fsyncs it and renames it over `path`. `packs`: the documents are to be packed and
/// see themselves only; false: they are one stream, and `documents` has one. Throws Error(kIo), and
/// Error(kInvalidArgument) for documents that contradict themselves or the vocabulary.
void write_token_shard(const std::filesystem::path& path, DocumentsView documents, bool packs,
                       const Tokenizer& tokenizer);

/// Whether a file begins as a shard does. False for one that cannot be read.
bool is_token_shard(const std::filesystem::path& path) noexcept;

/// A mapped shard. Immutable, thread-safe.
class TokenShard {
 public:
  /// Reads the whole file once, for its checksum. Throws Error(kNotFound | kIo), Error(kCorruptFile) for a
  /// file that is no shard, is truncated or damaged, Error(kUnsupported) for another version and
  /// Error(kInvalidArgument) for a shard of another tokenizer; each names the file and says why.
  static std::shared_ptr<const TokenShard> open(const std::filesystem::path& path,
                                                const Tokenizer& tokenizer);
  /// Lives as long as the shard.
  const DocumentsView& documents() const noexcept { return documents_; }
  bool packs() const noexcept { return packs_; }

 private:
  TokenShard() = default;
  std::shared_ptr<const MappedFile> file_;
  DocumentsView documents_;
  bool packs_ = false;
};

}  // namespace bitnet::training
