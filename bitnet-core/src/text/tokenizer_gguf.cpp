// Vocabularies in GGUF metadata, `tokenizer.ggml.model` gpt2 (byte-level BPE, splitter named by `pre`) and
// llama (SentencePiece-BPE), as llama.cpp reads them. A `pre` that is not in the table is an error, never a
// guess.
#include <algorithm>
#include <set>
#include <unordered_map>

#include "bitnet/core/error.hpp"
#include "bitnet/core/io/gguf.hpp"
#include "text/regex.hpp"
#include "text/spec.hpp"
#include "text/utf8.hpp"

namespace bitnet::text {
namespace {

/// What a `tokenizer.ggml.pre` means. The first row with a pattern is the name we write for it.
struct Splitter {
  std::string_view name, pattern;
  bool ignore_merges, adds_bos;
};

const std::vector<Splitter>& splitters() {
  static const std::vector<Splitter> table = {
      {"llama-bpe", kLlama3Pattern, true, true}, {"llama3", kLlama3Pattern, true, true},
      {"llama-v3", kLlama3Pattern, true, true},  {"falcon3", kLlama3Pattern, true, true},
      {"gpt-2", kGpt2Pattern, false, false},     {"qwen2", kQwen2Pattern, false, false},
  };
  return table;
}

[[noreturn]] void unsupported(const std::string& message, SourceLocation where = SourceLocation::current()) {
  throw Error(ErrorCode::kUnsupported, message, where);
}
[[noreturn]] void corrupt(const std::string& message, SourceLocation where = SourceLocation::current()) {
  throw Error(ErrorCode::kCorruptFile, message, where);
}

constexpr std::int64_t kLlama3VocabSize = 128256;

const Splitter& find_splitter(const GgufMetadata& metadata, std::size_t vocab_size) {
  const auto pre = metadata.string("tokenizer.ggml.pre");
  const std::string architecture = metadata.string("general.architecture").value_or("");
  if (!pre) {
    // The official BitNet b1.58 2B-4T file lacks the key.
    if (architecture.rfind("bitnet", 0) == 0 && vocab_size == kLlama3VocabSize) return splitters().front();
    unsupported("tokenizer.ggml.pre is missing: the pre-tokenizer of this vocabulary is not known");
  }
  std::string known;
  for (const Splitter& s : splitters()) {
    if (s.name == *pre) return s;
    known += (known.empty() ? "" : ", ") + std::string(s.name);
  }
  unsupported("tokenizer.ggml.pre '" + *pre + "' is not supported (supported: " + known + ")");
}

void read_tokens(const GgufMetadata& metadata, TokenizerSpec& spec) {
  auto tokens = metadata.strings("tokenizer.ggml.tokens");
  if (!tokens) corrupt("tokenizer.ggml.tokens is missing");
  spec.tokens = std::move(*tokens);
  spec.types.assign(spec.tokens.size(), TokenType::kNormal);
  const auto types = metadata.integers("tokenizer.ggml.token_type");
  if (!types) return;
  if (types->size() != spec.tokens.size())
    corrupt("tokenizer.ggml.token_type: expected " + std::to_string(spec.tokens.size()) + " entries, found " +
            std::to_string(types->size()));
  for (std::size_t i = 0; i < types->size(); ++i) {
    const std::int64_t type = (*types)[i];
    if (type < 0 || type > 6)
      corrupt("tokenizer.ggml.token_type: entry " + std::to_string(i) + " is " + std::to_string(type) +
              ", expected 1 to 6");
    spec.types[i] = type == 0 ? TokenType::kNormal : static_cast<TokenType>(type);
    const bool special = spec.types[i] == TokenType::kControl || spec.types[i] == TokenType::kUnknown;
    if (special || spec.types[i] == TokenType::kUserDefined)
      spec.added.push_back({static_cast<TokenId>(i), special, false, false});
  }
}

void read_gguf_merges(const GgufMetadata& metadata, TokenizerSpec& spec) {
  const auto merges = metadata.strings("tokenizer.ggml.merges");
  if (!merges) corrupt("tokenizer.ggml.merges is missing");
  std::unordered_map<std::string_view, TokenId> ids;
  for (std::size_t i = 0; i < spec.tokens.size(); ++i) ids.emplace(spec.tokens[i], static_cast<TokenId>(i));
  for (std::size_t i = 0; i < merges->size(); ++i) {
    const std::string_view merge = (*merges)[i];
    const std::size_t space = merge.find(' ', 1);
    const auto left = ids.find(merge.substr(0, space));
    const auto right = space == std::string_view::npos ? ids.end() : ids.find(merge.substr(space + 1));
    if (left == ids.end() || right == ids.end())
      corrupt("tokenizer.ggml.merges: entry " + std::to_string(i) +
              ", expected two tokens with a space between");
    spec.merges.emplace_back(left->second, right->second);
  }
}

std::optional<TokenId> read_id(const GgufMetadata& metadata, const char* key, std::size_t n) {
  const auto id = metadata.integer(std::string("tokenizer.ggml.") + key);
  // Files without such a token write -1, as 32 bits without a sign.
  if (!id || *id == -1 || *id == 0xFFFFFFFFll) return std::nullopt;
  if (*id < 0 || *id >= static_cast<std::int64_t>(n))
    corrupt(std::string("tokenizer.ggml.") + key + ": " + std::to_string(*id) +
            " is outside the vocabulary of " + std::to_string(n));
  return static_cast<TokenId>(*id);
}

void read_byte_level(const GgufMetadata& metadata, TokenizerSpec& spec) {
  const Splitter& splitter = find_splitter(metadata, spec.tokens.size());
  read_gguf_merges(metadata, spec);
  spec.byte_level = true;
  spec.ignore_merges = splitter.ignore_merges;
  spec.adds_bos = splitter.adds_bos;
  PreTokenizerStep split, bytes;
  split.pattern = splitter.pattern;
  bytes.kind = PreTokenizerStep::Kind::kByteLevel;
  bytes.split = false;
  spec.pre_tokenizer = {split, bytes};
}

void read_sentencepiece(const GgufMetadata& metadata, TokenizerSpec& spec) {
  const auto scores = metadata.numbers("tokenizer.ggml.scores");
  if (!scores || scores->size() != spec.tokens.size())
    corrupt("tokenizer.ggml.scores: expected " + std::to_string(spec.tokens.size()) + " entries");
  spec.scores.assign(scores->begin(), scores->end());
  spec.byte_fallback = std::find(spec.types.begin(), spec.types.end(), TokenType::kByte) != spec.types.end();
  spec.fuse_unknown = true;
  spec.adds_bos = true;
  if (spec.tokens.size() > 2) {  // SentencePiece's defaults
    spec.unknown = 0;
    spec.bos = 1;
    spec.eos = {2};
  }
  const bool prefix = metadata.boolean("tokenizer.ggml.add_space_prefix").value_or(true);
  using Kind = NormalizerStep::Kind;
  if (metadata.boolean("tokenizer.ggml.remove_extra_whitespaces").value_or(false))
    spec.normalizer.push_back({Kind::kCollapseSpaces, "", ""});
  if (prefix) spec.normalizer.push_back({Kind::kPrepend, "", std::string(kVisibleSpace)});
  spec.normalizer.push_back({Kind::kReplace, " ", std::string(kVisibleSpace)});
  spec.strip_leading_space = prefix;
}

const Splitter& splitter_to_write(const TokenizerSpec& spec) {
  const auto& steps = spec.pre_tokenizer;
  const bool byte_level_last = !steps.empty() && steps.back().kind == PreTokenizerStep::Kind::kByteLevel &&
                               steps.back().prepend == PreTokenizerStep::Prepend::kNever;
  std::string_view pattern;
  if (byte_level_last && steps.size() == 1 && steps[0].split) pattern = kGpt2Pattern;
  if (byte_level_last && steps.size() == 2 && !steps[1].split &&
      steps[0].behavior == SplitBehavior::kIsolated)
    pattern = steps[0].pattern;
  for (const Splitter& s : splitters())
    if (s.pattern == pattern && s.ignore_merges == spec.ignore_merges && spec.normalizer.empty()) return s;
  unsupported("the pre-tokenizer of this vocabulary has no name in GGUF (tokenizer.ggml.pre)");
}

// Checks that merging by `scores` is what merging by spec.merges is.
void require_merges_follow(const TokenizerSpec& spec, const std::vector<float>& scores) {
  TokenizerSpec scored = spec;
  scored.scores = scores;
  const auto implied = merges_from_scores(scored);
  using Set = std::set<std::pair<TokenId, TokenId>>;
  bool same = Set(implied.begin(), implied.end()) == Set(spec.merges.begin(), spec.merges.end());
  std::unordered_map<std::string, float> score_of;
  for (std::size_t i = 0; i < spec.tokens.size(); ++i) score_of.emplace(spec.tokens[i], scores[i]);
  float last = 1.0f;
  for (std::size_t i = 0; same && i < spec.merges.size(); ++i) {
    const auto& [left, right] = spec.merges[i];
    const float score = score_of.at(spec.tokens[static_cast<std::size_t>(left)] +
                                    spec.tokens[static_cast<std::size_t>(right)]);
    same = score <= last;
    last = score;
  }
  if (!same)
    unsupported("GGUF stores this kind of vocabulary by scores, and its merges do not follow from any");
}

void write_sentencepiece(const TokenizerSpec& spec, GgufMetadata& metadata) {
  using Kind = NormalizerStep::Kind;
  std::size_t i = 0;
  const auto& steps = spec.normalizer;
  const auto next_is = [&](Kind kind) { return i < steps.size() && steps[i].kind == kind; };
  const bool collapse = next_is(Kind::kCollapseSpaces) && ++i;
  const bool prefix = next_is(Kind::kPrepend) && steps[i].to == kVisibleSpace && ++i;
  const bool replace = next_is(Kind::kReplace) && steps[i].from == " " && steps[i].to == kVisibleSpace && ++i;
  if (!replace || i != steps.size() || !spec.pre_tokenizer.empty() || prefix != spec.strip_leading_space)
    unsupported("the normalizer or pre-tokenizer of this vocabulary cannot be said in GGUF");
  std::vector<float> scores = spec.scores;
  if (!spec.merges.empty()) {
    scores = scores_from_merges(spec);
    require_merges_follow(spec, scores);
  }
  metadata.set_string("tokenizer.ggml.model", "llama");
  metadata.set_string("tokenizer.ggml.pre", "default");
  metadata.set_f32s("tokenizer.ggml.scores", scores);
  metadata.set_bool("tokenizer.ggml.add_space_prefix", prefix);
  metadata.set_bool("tokenizer.ggml.remove_extra_whitespaces", collapse);
}

}  // namespace

TokenizerSpec read_gguf_vocabulary(const GgufMetadata& metadata) {
  const auto model = metadata.string("tokenizer.ggml.model");
  if (!model)
    throw Error(ErrorCode::kNotFound, "tokenizer.ggml.model is missing: the file has no vocabulary");
  TokenizerSpec spec;
  read_tokens(metadata, spec);
  if (*model == "gpt2") {
    read_byte_level(metadata, spec);
  } else if (*model == "llama") {
    read_sentencepiece(metadata, spec);
  } else {
    unsupported("tokenizer.ggml.model '" + *model + "' is not supported (supported: gpt2, llama)");
  }
  const std::size_t n = spec.tokens.size();
  if (const auto id = read_id(metadata, "bos_token_id", n)) spec.bos = id;
  if (const auto id = read_id(metadata, "eos_token_id", n)) spec.eos = {*id};
  if (const auto id = read_id(metadata, "eot_token_id", n);
      id && std::count(spec.eos.begin(), spec.eos.end(), *id) == 0)
    spec.eos.push_back(*id);
  if (const auto id = read_id(metadata, "unknown_token_id", n)) spec.unknown = id;
  spec.adds_eos = metadata.boolean("tokenizer.ggml.add_eos_token").value_or(false);
  spec.chat_template = metadata.string("tokenizer.chat_template").value_or("");
  find_well_known_tokens(spec);
  spec.adds_bos = metadata.boolean("tokenizer.ggml.add_bos_token").value_or(spec.adds_bos && spec.bos);
  return spec;
}

void write_gguf_vocabulary(const TokenizerSpec& spec, GgufMetadata& metadata) {
  for (const AddedToken& t : spec.added)
    if (t.lstrip || t.rstrip)
      unsupported("added token '" + spec.tokens[static_cast<std::size_t>(t.id)] +
                  "': GGUF cannot say lstrip or rstrip");
  if (spec.byte_level) {
    const Splitter& splitter = splitter_to_write(spec);
    metadata.set_string("tokenizer.ggml.model", "gpt2");
    metadata.set_string("tokenizer.ggml.pre", std::string(splitter.name));
    std::vector<std::string> merges;
    for (const auto& [left, right] : spec.merges)
      merges.push_back(spec.tokens[static_cast<std::size_t>(left)] + " " +
                       spec.tokens[static_cast<std::size_t>(right)]);
    metadata.set_strings("tokenizer.ggml.merges", std::move(merges));
  } else {
    write_sentencepiece(spec, metadata);
  }
  std::vector<std::int32_t> types;
  for (const TokenType type : spec.types) types.push_back(static_cast<std::int32_t>(type));
  metadata.set_strings("tokenizer.ggml.tokens", spec.tokens);
  metadata.set_i32s("tokenizer.ggml.token_type", types);
  if (spec.bos) metadata.set_u32("tokenizer.ggml.bos_token_id", static_cast<std::uint32_t>(*spec.bos));
  if (!spec.eos.empty())
    metadata.set_u32("tokenizer.ggml.eos_token_id", static_cast<std::uint32_t>(spec.eos[0]));
  if (spec.unknown)
    metadata.set_u32("tokenizer.ggml.unknown_token_id", static_cast<std::uint32_t>(*spec.unknown));
  metadata.set_bool("tokenizer.ggml.add_bos_token", spec.adds_bos);
  metadata.set_bool("tokenizer.ggml.add_eos_token", spec.adds_eos);
  if (!spec.chat_template.empty()) metadata.set_string("tokenizer.chat_template", spec.chat_template);
}

}  // namespace bitnet::text
