#pragma once
// Where a text may be cut so that its parts, each encoded as what it is (a beginning, or what goes on), have
// the ids of the whole. Who cuts is StreamEncoder.
#include <cstddef>
#include <string_view>
#include <vector>

#include "text/spec.hpp"

namespace bitnet::text {

/// Places that the rules of a vocabulary do not look across, for text between added tokens. White space is
/// Unicode's White_Space, as \s of the patterns is.
struct CutRules {
  bool before_space = false;  ///< before U+0020 behind a character that is neither white space nor U+2581
  bool before_line = false;   ///< the same before U+000A
  bool after_line = false;    ///< behind U+000A before a character that is no white space

  bool any() const noexcept { return before_space || before_line || after_line; }
};

/// Those of a vocabulary. The cases and why they hold are in text_cuts.cpp; none for what is not known.
CutRules cut_rules(const TokenizerSpec& spec);

/// The last place in `text` (valid UTF-8) that the rules allow, from `from` (at least 1) to before `to`; npos
/// if there is none.
std::size_t last_cut(const CutRules& rules, std::string_view text, std::size_t from, std::size_t to);

/// A tokenizer that can encode parts of a text.
class PieceEncoder {
 public:
  virtual ~PieceEncoder() = default;
  /// The last place where `text`, which more text follows, may be cut; npos if there is none. `text` (valid
  /// UTF-8) begins the whole text, or at such a place. `special`: control tokens are parsed.
  virtual std::size_t last_cut(std::string_view text, bool special) const = 0;
  /// Appends the ids, without BOS and EOS. `continues`: the text begins at a cut.
  virtual void encode_piece(std::string_view text, bool special, bool continues,
                            std::vector<TokenId>& ids) const = 0;
};

}  // namespace bitnet::text
