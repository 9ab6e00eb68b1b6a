#pragma once
// Byte-pair merging of one piece: symbols in, token ids out. Splitting a text into pieces is
// pre_tokenizer.hpp.
#include <array>
#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "text/pair_table.hpp"
#include "text/spec.hpp"

namespace bitnet::text {

/// The merging part of a spec. Immutable, thread-safe; it keeps views into the spec's tokens.
class BpeModel {
 public:
  /// Memory that is reused over many pieces.
  struct Workspace {
    struct Symbol {
      std::int32_t id, previous, next;  // id -1: merged into the one before; previous, next -1: none
    };
    struct Candidate {
      std::int32_t rank, position, result;
    };
    std::vector<Symbol> symbols;
    std::vector<Candidate> heap;
  };

  /// `spec` must outlive the model. Throws Error(kCorruptFile | kUnsupported).
  explicit BpeModel(const TokenizerSpec& spec);

  /// Appends the ids of a piece (valid UTF-8, at most 2^31 - 1 bytes). O(n log n).
  void encode(std::string_view piece, Workspace& work, std::vector<TokenId>& ids) const;

  std::optional<TokenId> find(std::string_view token) const;

 private:
  void index_tokens();
  void index_merges();
  void index_scores();
  void add_symbols(std::string_view piece, Workspace& work) const;
  void add_character(std::string_view character, char32_t code_point, Workspace& work, bool& fused) const;
  void merge(Workspace& work) const;
  void emit(std::int32_t symbol, std::vector<TokenId>& ids) const;
  bool takes_part(TokenId id) const;
  std::int32_t character_id(char32_t c) const;

  const TokenizerSpec& spec_;
  std::unordered_map<std::string_view, TokenId> ids_;
  std::unordered_map<char32_t, TokenId> character_ids_;  // tokens of one character, where not byte-level
  std::array<TokenId, 256> byte_ids_;  // the byte's symbol (byte-level) or its <0xHH>; -1: none
  PairTable merges_;
  bool by_score_ = false;
};

}  // namespace bitnet::text
