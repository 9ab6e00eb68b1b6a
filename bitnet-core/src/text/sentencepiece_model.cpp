// Reads SentencePiece's tokenizer.model, a protobuf message (sentencepiece_model.proto), of model type BPE.
// The parser is ours: a message is a run of fields, each checked against the bytes that remain.
#include <bit>
#include <cstring>

#include "bitnet/core/error.hpp"
#include "text/spec.hpp"

namespace bitnet::text {
namespace {

/// One field of a message: its number, and its value as a number or as bytes.
struct Field {
  std::uint32_t number = 0;
  std::uint32_t wire = 0;  // 0 varint, 1 eight bytes, 2 counted bytes, 5 four bytes
  std::uint64_t value = 0;
  std::string_view bytes;
};

/// Walks the fields of a message.
class Message {
 public:
  Message(std::string_view bytes, std::string name) : bytes_(bytes), name_(std::move(name)) {}

  bool next(Field& field) {
    if (at_ == bytes_.size()) return false;
    field = {};
    const std::uint64_t tag = varint();
    field.number = static_cast<std::uint32_t>(tag >> 3);
    field.wire = tag & 7;
    if (tag >> 32 != 0 || field.number == 0) corrupt("invalid field number");
    switch (field.wire) {
      case 0:
        field.value = varint();
        break;
      case 1:
        field.value = fixed(8);
        break;
      case 5:
        field.value = fixed(4);
        break;
      case 2: {
        const std::uint64_t n = varint();
        if (n > bytes_.size() - at_)
          corrupt("a field of " + std::to_string(n) + " bytes reaches beyond the end");
        field.bytes = bytes_.substr(at_, n);
        at_ += n;
        break;
      }
      default:
        corrupt("unknown wire type " + std::to_string(field.wire));
    }
    return true;
  }

  /// The value, checked to be of the wire type that the schema has.
  std::string_view bytes(const Field& f) const { return expect(f, 2), f.bytes; }
  bool boolean(const Field& f) const { return expect(f, 0), f.value != 0; }
  std::int32_t integer(const Field& f) const { return expect(f, 0), static_cast<std::int32_t>(f.value); }
  float number(const Field& f) const {
    return expect(f, 5), std::bit_cast<float>(static_cast<std::uint32_t>(f.value));
  }

  [[noreturn]] void corrupt(const std::string& message,
                            SourceLocation where = SourceLocation::current()) const {
    throw Error(ErrorCode::kCorruptFile,
                "tokenizer.model: " + name_ + ", byte " + std::to_string(at_) + ": " + message, where);
  }

 private:
  void expect(const Field& f, std::uint32_t wire) const {
    if (f.wire != wire)
      corrupt("field " + std::to_string(f.number) + " has wire type " + std::to_string(f.wire));
  }
  std::uint64_t varint() {
    std::uint64_t value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
      if (at_ == bytes_.size()) corrupt("the file ends within a number");
      const auto byte = static_cast<unsigned char>(bytes_[at_++]);
      value |= std::uint64_t{byte & 0x7Fu} << shift;
      if (byte < 0x80) return value;
    }
    corrupt("a number of more than ten bytes");
  }
  std::uint64_t fixed(std::size_t n) {
    if (n > bytes_.size() - at_) corrupt("the file ends within a number");
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < n; ++i)
      value |= std::uint64_t{static_cast<unsigned char>(bytes_[at_ + i])} << (8 * i);
    at_ += n;
    return value;
  }

  std::string_view bytes_;
  std::string name_;
  std::size_t at_ = 0;
};

[[noreturn]] void unsupported(const std::string& message, SourceLocation where = SourceLocation::current()) {
  throw Error(ErrorCode::kUnsupported, "tokenizer.model: " + message, where);
}

struct Flags {
  std::int32_t model_type = 1, unknown = 0, bos = 1, eos = 2;
  bool add_dummy_prefix = true, remove_extra_whitespaces = true;
};

void read_piece(std::string_view bytes, TokenizerSpec& spec) {
  const std::size_t id = spec.tokens.size();
  Message message(bytes, "piece " + std::to_string(id));
  std::string token;
  float score = 0;
  std::int32_t type = 1;
  for (Field f; message.next(f);) {
    if (f.number == 1) token = message.bytes(f);
    if (f.number == 2) score = message.number(f);
    if (f.number == 3) type = message.integer(f);
  }
  if (type < 1 || type > 6) message.corrupt("piece of type " + std::to_string(type));
  if (token.empty()) message.corrupt("empty piece");
  if (type == 5) unsupported("unused pieces ('" + token + "') are not supported");
  spec.tokens.push_back(std::move(token));
  spec.scores.push_back(score);
  spec.types.push_back(static_cast<TokenType>(type));
  const bool special = type == 2 || type == 3;
  if (special || type == 4) spec.added.push_back({static_cast<TokenId>(id), special, false, false});
}

void read_trainer(std::string_view bytes, Flags& flags, TokenizerSpec& spec) {
  Message message(bytes, "trainer_spec");
  for (Field f; message.next(f);) {
    if (f.number == 3) flags.model_type = message.integer(f);
    if (f.number == 24 && message.boolean(f)) unsupported("treat_whitespace_as_suffix is not supported");
    if (f.number == 35) spec.byte_fallback = message.boolean(f);
    if (f.number == 40) flags.unknown = message.integer(f);
    if (f.number == 41) flags.bos = message.integer(f);
    if (f.number == 42) flags.eos = message.integer(f);
  }
}

void read_normalizer(std::string_view bytes, Flags& flags) {
  Message message(bytes, "normalizer_spec");
  for (Field f; message.next(f);) {
    if (f.number == 2 && !message.bytes(f).empty())
      unsupported("a character map (normalizer_spec.precompiled_charsmap) is not supported");
    if (f.number == 3) flags.add_dummy_prefix = message.boolean(f);
    if (f.number == 4) flags.remove_extra_whitespaces = message.boolean(f);
    if (f.number == 5 && !message.boolean(f)) unsupported("escape_whitespaces = false is not supported");
  }
}

std::optional<TokenId> token_id(std::int32_t id, const TokenizerSpec& spec, const char* name) {
  if (id == -1) return std::nullopt;  // disabled
  if (id < 0 || static_cast<std::size_t>(id) >= spec.tokens.size())
    throw Error(ErrorCode::kCorruptFile, std::string("tokenizer.model: trainer_spec.") + name + " " +
                                             std::to_string(id) + " is outside the vocabulary of " +
                                             std::to_string(spec.tokens.size()));
  return id;
}

}  // namespace

TokenizerSpec read_sentencepiece_model(std::string_view protobuf) {
  TokenizerSpec spec;
  Flags flags;
  Message message(protobuf, "model");
  for (Field f; message.next(f);) {
    if (f.number == 1) read_piece(message.bytes(f), spec);
    if (f.number == 2) read_trainer(message.bytes(f), flags, spec);
    if (f.number == 3) read_normalizer(message.bytes(f), flags);
  }
  if (spec.tokens.empty()) message.corrupt("no pieces");
  if (flags.model_type != 2)
    unsupported("model type " + std::to_string(flags.model_type) + " is not supported, only BPE (2)");
  spec.unknown = token_id(flags.unknown, spec, "unk_id");
  spec.bos = token_id(flags.bos, spec, "bos_id");
  if (const auto eos = token_id(flags.eos, spec, "eos_id")) spec.eos = {*eos};
  // Llama's tokenizer, for which such a file stands alone, begins every text with BOS.
  spec.adds_bos = spec.bos.has_value();
  spec.fuse_unknown = true;
  // SentencePiece finds these in the normalised text, we and Hugging Face in the original.
  for (const TokenType type : spec.types)
    if (type == TokenType::kUserDefined && (flags.add_dummy_prefix || flags.remove_extra_whitespaces))
      unsupported("user-defined pieces with add_dummy_prefix or remove_extra_whitespaces are not supported");
  using Kind = NormalizerStep::Kind;
  if (flags.remove_extra_whitespaces) spec.normalizer.push_back({Kind::kCollapseSpaces, "", ""});
  if (flags.add_dummy_prefix) spec.normalizer.push_back({Kind::kPrepend, "", std::string(kVisibleSpace)});
  spec.normalizer.push_back({Kind::kReplace, " ", std::string(kVisibleSpace)});
  spec.strip_leading_space = flags.add_dummy_prefix;
  find_well_known_tokens(spec);
  return spec;
}

}  // namespace bitnet::text
