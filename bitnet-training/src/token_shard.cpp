// Token shards: 64 bytes of header, ends of documents, tokens, loss mask, each filled up to 8 bytes.
#include "bitnet/training/token_shard.hpp"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>

#include "bitnet/core/error.hpp"
#include "bitnet/core/hash64.hpp"
#include "bitnet/core/io/atomic_file.hpp"

namespace bitnet::training {
namespace {

static_assert(std::endian::native == std::endian::little, "shards are mapped as they lie in memory");

constexpr char kMagic[8] = {'B', 'I', 'T', 'N', 'T', 'O', 'K', '\n'};
constexpr std::uint32_t kVersion = 1;
constexpr std::uint32_t kPacks = 1, kMasked = 2;

struct Header {
  char magic[8];
  std::uint32_t version, flags;
  std::uint64_t tokenizer, vocab_size, tokens, documents;
  std::uint64_t bytes;     ///< of the whole file
  std::uint64_t checksum;  ///< of everything, itself as 0
};
static_assert(sizeof(Header) == 64);

std::uint64_t padded(std::uint64_t bytes) { return (bytes + 7) / 8 * 8; }

/// Bytes of a file with these counts, each below 2^56.
std::uint64_t file_bytes(const Header& h) {
  return sizeof(Header) + 8 * h.documents + padded(4 * h.tokens) + (h.flags & kMasked ? padded(h.tokens) : 0);
}

Hash64 hash_of(Header h) {
  h.checksum = 0;
  return Hash64().add(std::as_bytes(std::span(&h, 1)));
}

/// Throws Error(`code`) unless the parts belong together.
void check_documents(DocumentsView d, bool packs, std::int64_t vocab, ErrorCode code) {
  std::int64_t before = 0;
  for (const std::int64_t end : d.ends) {
    if (end < before) throw Error(code, "the ends of its documents do not ascend");
    before = end;
  }
  if (before != static_cast<std::int64_t>(d.tokens.size()))
    throw Error(code, "its documents end at token " + std::to_string(before) + " of " +
                          std::to_string(d.tokens.size()));
  if (!packs && d.ends.size() > 1) throw Error(code, "one stream cannot have several documents");
  if (!d.learned.empty() && d.learned.size() != d.tokens.size())
    throw Error(code, "its loss mask has another size than its tokens");
  if (!packs && !d.learned.empty()) throw Error(code, "a stream cannot have a loss mask");
  for (const TokenId id : d.tokens)
    if (id < 0 || id >= vocab)
      throw Error(code,
                  "token " + std::to_string(id) + " is outside the vocabulary of " + std::to_string(vocab));
}

/// Refuses what cannot be a whole shard of this tokenizer; the checksum comes after.
void check_header(const Header& h, std::uint64_t size, const Tokenizer& tokenizer) {
  if (h.version != kVersion)
    throw Error(ErrorCode::kUnsupported, "token shard of version " + std::to_string(h.version) +
                                             "; this build reads " + std::to_string(kVersion));
  if (h.flags > (kPacks | kMasked))
    throw Error(ErrorCode::kCorruptFile, "unknown flags " + std::to_string(h.flags) + " in its header");
  if (size < h.bytes)
    throw Error(ErrorCode::kCorruptFile,
                "truncated: " + std::to_string(size) + " bytes of " + std::to_string(h.bytes));
  if (h.tokens > size || h.documents > size || file_bytes(h) != size || h.bytes != size)
    throw Error(ErrorCode::kCorruptFile,
                "its header does not fit a file of " + std::to_string(size) + " bytes");
  const auto vocab = static_cast<std::uint64_t>(tokenizer.vocab_size());
  if (h.vocab_size != vocab)
    throw Error(ErrorCode::kInvalidArgument, "made with a vocabulary of " + std::to_string(h.vocab_size) +
                                                 " tokens; this run's has " + std::to_string(vocab));
  if (h.tokenizer != tokenizer_hash(tokenizer))
    throw Error(ErrorCode::kInvalidArgument, "made with another tokenizer of the same size");
}

template <class T>
std::span<const T> part(std::span<const std::byte> file, std::uint64_t at, std::uint64_t count) {
  return {reinterpret_cast<const T*>(file.data() + at), static_cast<std::size_t>(count)};
}

}  // namespace

std::uint64_t tokenizer_hash(const Tokenizer& tokenizer) {
  Hash64 hash;
  hash.add(tokenizer.to_json()).add(tokenizer.chat_template());
  hash.add(tokenizer.adds_bos() && tokenizer.bos() ? static_cast<std::uint64_t>(*tokenizer.bos()) + 1 : 0);
  hash.add(tokenizer.eos().empty() ? 0 : static_cast<std::uint64_t>(tokenizer.eos().front()) + 1);
  return hash.value();
}

void write_token_shard(const std::filesystem::path& path, DocumentsView documents, bool packs,
                       const Tokenizer& tokenizer) {
  with_context("writing token shard '" + path.string() + "'", [&] {
    check_documents(documents, packs, tokenizer.vocab_size(), ErrorCode::kInvalidArgument);
    Header h{};
    std::memcpy(h.magic, kMagic, sizeof kMagic);
    h.version = kVersion;
    h.flags = (packs ? kPacks : 0u) | (documents.learned.empty() ? 0u : kMasked);
    h.tokenizer = tokenizer_hash(tokenizer);
    h.vocab_size = static_cast<std::uint64_t>(tokenizer.vocab_size());
    h.tokens = documents.tokens.size();
    h.documents = documents.ends.size();
    h.bytes = file_bytes(h);
    Hash64 hash = hash_of(h);
    const std::span<const std::byte> parts[] = {
        std::as_bytes(documents.ends), std::as_bytes(documents.tokens), std::as_bytes(documents.learned)};
    for (const auto& p : parts) hash.add(p);
    h.checksum = hash.value();
    AtomicFile file(path);
    file.write(std::as_bytes(std::span(&h, 1)));
    const std::byte zeros[8]{};
    for (const auto& p : parts) {
      file.write(p);
      file.write(std::span(zeros).first(static_cast<std::size_t>(padded(p.size()) - p.size())));
    }
    file.commit();
  });
}

bool is_token_shard(const std::filesystem::path& path) noexcept {
  try {
    if (!std::filesystem::is_regular_file(path)) return false;
    std::ifstream file(path, std::ios::binary);
    char magic[sizeof kMagic] = {};
    return file.read(magic, sizeof magic) && std::memcmp(magic, kMagic, sizeof magic) == 0;
  } catch (...) {
    return false;
  }
}

std::shared_ptr<const TokenShard> TokenShard::open(const std::filesystem::path& path,
                                                   const Tokenizer& tokenizer) {
  auto mapped = MappedFile::open(path);
  return with_context("token shard '" + path.string() + "'", [&] {
    const auto bytes = mapped->bytes();
    if (bytes.size() < sizeof(Header) || std::memcmp(bytes.data(), kMagic, sizeof kMagic) != 0)
      throw Error(ErrorCode::kCorruptFile,
                  bytes.size() < sizeof(Header)
                      ? "truncated: " + std::to_string(bytes.size()) + " bytes are less than its header"
                      : std::string("not a token shard: it begins with other bytes"));
    Header h;
    std::memcpy(&h, bytes.data(), sizeof h);
    check_header(h, bytes.size(), tokenizer);
    if (hash_of(h).add(bytes.subspan(sizeof h)).value() != h.checksum)
      throw Error(ErrorCode::kCorruptFile, "damaged: its checksum does not agree");
    const std::shared_ptr<TokenShard> shard(new TokenShard);
    const std::uint64_t tokens_at = sizeof h + 8 * h.documents, mask_at = tokens_at + padded(4 * h.tokens);
    shard->documents_.ends = part<std::int64_t>(bytes, sizeof h, h.documents);
    shard->documents_.tokens = part<TokenId>(bytes, tokens_at, h.tokens);
    if (h.flags & kMasked) shard->documents_.learned = part<std::uint8_t>(bytes, mask_at, h.tokens);
    shard->packs_ = (h.flags & kPacks) != 0;
    check_documents(shard->documents_, shard->packs_, tokenizer.vocab_size(), ErrorCode::kCorruptFile);
    shard->file_ = std::move(mapped);
    return std::shared_ptr<const TokenShard>(shard);
  });
}

}  // namespace bitnet::training
