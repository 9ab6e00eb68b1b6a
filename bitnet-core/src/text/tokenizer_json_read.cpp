// Reads Hugging Face's tokenizer.json: model BPE, the normalizers, pre-tokenizers, post-processors and
// decoders that byte-level and Llama-2 vocabularies use. Whatever else a file asks for is refused by name.
// Writing is tokenizer_json_write.cpp.
#include <algorithm>
#include <unordered_map>

#include "io/json.hpp"
#include "text/regex.hpp"
#include "text/spec.hpp"
#include "text/tokenizer_json.hpp"

namespace bitnet::text {
namespace {

using Ids = std::unordered_map<std::string_view, TokenId>;

Json parse(std::string_view text, const char* file) {
  return with_context(file, [&] { return io::parse_json(text); });
}

// "type" of a component.
const std::string& type_of(const JsonPlace& part) { return part.object().at("type").string(); }

// The parts of `part` if it is a Sequence (of `list`), else itself; nothing if it is null.
std::vector<JsonPlace> flatten(const JsonPlace& part, const char* list) {
  if (part.null()) return {};
  if (type_of(part) != "Sequence") return {part};
  std::vector<JsonPlace> parts;
  const JsonPlace items = part.at(list);
  items.array();
  for (std::size_t i = 0; i < items.value().size(); ++i) {
    parts.push_back(items.at(i));
    if (type_of(parts.back()) == "Sequence") parts.back().unsupported("a Sequence within a Sequence");
  }
  return parts;
}

void read_vocabulary(const JsonPlace& root, TokenizerSpec& spec) {
  const JsonPlace vocab = root.at("model").at("vocab"), added = root.at("added_tokens");
  vocab.object();
  if (!added.null()) added.array();
  // Ids may have gaps, but a file cannot claim many more tokens than it lists.
  const std::size_t listed = vocab.value().size() + (added.null() ? 0 : added.value().size());
  const auto place_token = [&](std::size_t id, const std::string& token, const JsonPlace& where) {
    if (id > 2 * listed + 1024)
      where.corrupt("id " + std::to_string(id) + " is far beyond the tokens listed");
    if (token.empty()) where.corrupt("empty token");
    if (id >= spec.tokens.size()) spec.tokens.resize(id + 1);
    if (!spec.tokens[id].empty() && spec.tokens[id] != token)
      where.corrupt("id " + std::to_string(id) + " is taken by '" + spec.tokens[id] + "' and '" + token +
                    "'");
    spec.tokens[id] = token;
  };
  for (auto it = vocab.value().begin(); it != vocab.value().end(); ++it)
    place_token(static_cast<std::size_t>(JsonPlace(*it, vocab.place()).id()), it.key(), vocab);
  for (std::size_t i = 0; !added.null() && i < added.value().size(); ++i) {
    const JsonPlace item = added.at(i);
    item.object();
    AddedToken token;
    token.id = item.at("id").id();
    const std::string& content = item.at("content").string();
    const auto in_vocab = vocab.value().find(content);
    if (in_vocab != vocab.value().end() && *in_vocab != token.id)
      item.corrupt("'" + content + "' has another id in the vocabulary");
    place_token(static_cast<std::size_t>(token.id), content, item);
    token.special = item.at("special").boolean(false);
    token.lstrip = item.at("lstrip").boolean(false);
    token.rstrip = item.at("rstrip").boolean(false);
    if (item.at("single_word").boolean(false)) item.unsupported("single_word");
    spec.added.push_back(token);
  }
  spec.types.assign(spec.tokens.size(), TokenType::kNormal);
  for (std::size_t i = 0; i < spec.tokens.size(); ++i)
    if (spec.tokens[i].empty()) spec.types[i] = TokenType::kUnused;
  for (const AddedToken& t : spec.added)
    spec.types[static_cast<std::size_t>(t.id)] = t.special ? TokenType::kControl : TokenType::kUserDefined;
}

void read_merges(const JsonPlace& merges, const Ids& ids, TokenizerSpec& spec) {
  merges.array();
  const auto find = [&](std::string_view token, std::size_t i) {
    const auto found = ids.find(token);
    if (found == ids.end()) merges.at(i).corrupt("'" + std::string(token) + "' is not in the vocabulary");
    return found->second;
  };
  spec.merges.reserve(merges.value().size());
  for (std::size_t i = 0; i < merges.value().size(); ++i) {
    const Json& merge = merges.value()[i];
    if (merge.is_array()) {
      if (merge.size() != 2 || !merge[0].is_string() || !merge[1].is_string())
        merges.at(i).corrupt("expected two strings");
      const auto left = find(merge[0].get_ref<const std::string&>(), i);
      spec.merges.emplace_back(left, find(merge[1].get_ref<const std::string&>(), i));
      continue;
    }
    const std::string_view text = merges.at(i).string();
    const std::size_t space = text.find(' ');
    if (space == std::string_view::npos || text.find(' ', space + 1) != std::string_view::npos)
      merges.at(i).corrupt("expected two tokens with a space between, found '" + std::string(text) + "'");
    const auto left = find(text.substr(0, space), i);
    spec.merges.emplace_back(left, find(text.substr(space + 1), i));
  }
}

void read_model(const JsonPlace& root, TokenizerSpec& spec) {
  const JsonPlace model = root.at("model");
  model.object();
  if (model.at("type").null() ? model.at("merges").null() : model.at("type").string() != "BPE")
    model.unsupported(model.at("type").null() ? "a model without merges" : "'" + type_of(model) + "'");
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
    if (!model.at(key).null() && !model.at(key).string().empty()) model.at(key).unsupported("a value");
  const JsonPlace dropout = model.at("dropout");
  if (!dropout.null() && !(dropout.value().is_number() && dropout.value() == 0))
    dropout.unsupported("dropout");
  spec.ignore_merges = model.at("ignore_merges").boolean(false);
  spec.byte_fallback = model.at("byte_fallback").boolean(false);
  spec.fuse_unknown = model.at("fuse_unk").boolean(false);
  read_vocabulary(root, spec);
  Ids ids;
  ids.reserve(spec.tokens.size());
  for (std::size_t i = 0; i < spec.tokens.size(); ++i)
    if (!spec.tokens[i].empty()) ids.emplace(spec.tokens[i], static_cast<TokenId>(i));
  read_merges(model.at("merges"), ids, spec);
  if (spec.byte_fallback) {
    for (unsigned b = 0; b < 256; ++b) {
      const auto found = ids.find(byte_token(static_cast<unsigned char>(b)));
      if (found != ids.end()) spec.types[static_cast<std::size_t>(found->second)] = TokenType::kByte;
    }
  }
  if (model.at("unk_token").null()) return;
  const auto unknown = ids.find(model.at("unk_token").string());
  if (unknown == ids.end()) model.at("unk_token").corrupt("not in the vocabulary");
  spec.unknown = unknown->second;
  spec.types[static_cast<std::size_t>(unknown->second)] = TokenType::kUnknown;
}

// {"String": …} or {"Regex": …} as a regular expression.
std::string read_pattern(const JsonPlace& pattern) {
  pattern.object();
  if (!pattern.at("Regex").null()) return pattern.at("Regex").string();
  return quote_regex(pattern.at("String").string());
}

void read_normalizer(const JsonPlace& root, TokenizerSpec& spec) {
  for (const JsonPlace& part : flatten(root.at("normalizer"), "normalizers")) {
    NormalizerStep step;
    if (type_of(part) == "Prepend") {
      step.kind = NormalizerStep::Kind::kPrepend;
      step.to = part.at("prepend").string();
    } else if (type_of(part) == "Replace") {
      const JsonPlace pattern = part.at("pattern");
      step.to = part.at("content").string();
      if (!pattern.object().at("Regex").null()) {
        // Our own writing of SentencePiece's remove_extra_whitespaces.
        if (pattern.at("Regex").string() != kCollapseSpacesPattern || !step.to.empty())
          pattern.unsupported("replacing a regular expression");
        step.kind = NormalizerStep::Kind::kCollapseSpaces;
      } else {
        step.from = pattern.at("String").string();
        if (step.from.empty()) pattern.corrupt("empty string");
      }
    } else {
      part.unsupported("normalizer '" + type_of(part) + "'");
    }
    spec.normalizer.push_back(std::move(step));
  }
}

// Whether a text holds `content` in the same places before and after the step: they have no byte in common.
bool leaves_alone(const NormalizerStep& step, std::string_view content) {
  const bool spaces = step.kind == NormalizerStep::Kind::kCollapseSpaces;
  return content.find_first_of(spaces ? " " : step.from + step.to) == std::string_view::npos;
}

// Added tokens that are to be looked for in the normalised text. We look in the text as it was, and refuse
// where that could differ; docs/formats/tokenizers.md has the one case that is left.
void check_normalized(const JsonPlace& root, const TokenizerSpec& spec) {
  const JsonPlace added = root.at("added_tokens");
  for (std::size_t i = 0; !added.null() && i < added.value().size(); ++i) {
    const JsonPlace item = added.at(i);
    if (!item.at("normalized").boolean(false)) continue;
    const std::string& content = item.at("content").string();
    for (const NormalizerStep& step : spec.normalizer)
      if (!item.at("special").boolean(false) || !leaves_alone(step, content))
        item.unsupported("an added token that is found in the normalized text");
  }
}

SplitBehavior read_behavior(const JsonPlace& behavior) {
  const std::string& name = behavior.string();
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  behavior.unsupported("'" + name + "'");
}

PreTokenizerStep read_metaspace(const JsonPlace& part) {
  using Prepend = PreTokenizerStep::Prepend;
  PreTokenizerStep step;
  step.kind = PreTokenizerStep::Kind::kMetaspace;
  if (!part.at("replacement").null() && part.at("replacement").string() != kVisibleSpace)
    part.at("replacement").unsupported("a replacement other than U+2581");
  step.split = part.at("split").boolean(true);
  const JsonPlace scheme = part.at("prepend_scheme");
  step.prepend = part.at("add_prefix_space").boolean(true) ? Prepend::kAlways : Prepend::kNever;
  if (scheme.null()) return step;
  const std::string& name = scheme.string();
  if (name != "always" && name != "first" && name != "never") scheme.unsupported("'" + name + "'");
  step.prepend = name == "always" ? Prepend::kAlways : name == "first" ? Prepend::kFirst : Prepend::kNever;
  return step;
}

PreTokenizerStep read_pre_tokenizer_step(const JsonPlace& part) {
  using Kind = PreTokenizerStep::Kind;
  const std::string& type = type_of(part);
  PreTokenizerStep step;
  if (type == "Metaspace") return read_metaspace(part);
  if (type == "ByteLevel") {
    step.kind = Kind::kByteLevel;
    step.split = part.at("use_regex").boolean(true);
    if (part.at("add_prefix_space").boolean(true)) step.prepend = PreTokenizerStep::Prepend::kAlways;
  } else if (type == "Split") {
    step.pattern = read_pattern(part.at("pattern"));
    step.behavior = read_behavior(part.at("behavior"));
    step.invert = part.at("invert").boolean(false);
  } else if (type == "Digits") {
    step.pattern = "\\p{N}";
    step.behavior =
        part.at("individual_digits").boolean(false) ? SplitBehavior::kIsolated : SplitBehavior::kContiguous;
    step.json = part.value().dump();
  } else if (type == "Punctuation") {
    step.pattern = R"([\p{P}!-/:-@\[-`{-~])";
    step.behavior =
        part.at("behavior").null() ? SplitBehavior::kIsolated : read_behavior(part.at("behavior"));
    step.json = part.value().dump();
  } else {
    part.unsupported("pre-tokenizer '" + type + "'");
  }
  return step;
}

void read_pre_tokenizer(const JsonPlace& root, TokenizerSpec& spec) {
  const auto parts = flatten(root.at("pre_tokenizer"), "pretokenizers");
  for (const JsonPlace& part : parts) {
    spec.pre_tokenizer.push_back(read_pre_tokenizer_step(part));
    if (spec.pre_tokenizer.back().kind != PreTokenizerStep::Kind::kByteLevel) continue;
    if (part.place() != parts.back().place()) part.unsupported("ByteLevel before another pre-tokenizer");
    spec.byte_level = true;
  }
}

// What the decoder does has to be what the rest of the file implies; anything else is refused.
void read_decoder(const JsonPlace& root, TokenizerSpec& spec) {
  const JsonPlace decoder = root.at("decoder");
  const auto parts = flatten(decoder, "decoders");
  const auto is_space_to = [](const JsonPlace& part, std::string_view from, std::string_view to) {
    const JsonPlace pattern = part.at("pattern");
    return pattern.object().at("String").null() == false && pattern.at("String").string() == from &&
           part.at("content").string() == to;
  };
  bool byte_level = false;
  for (const JsonPlace& part : parts) {
    const std::string& type = type_of(part);
    if (type == "ByteLevel") {
      byte_level = true;
    } else if (type == "Replace" && is_space_to(part, kVisibleSpace, " ")) {
    } else if (type == "ByteFallback" || type == "Fuse") {
    } else if (type == "Strip" && part.at("content").string() == " " && part.at("start").id() <= 1 &&
               part.at("stop").id() == 0) {
      if (part.at("start").id() == 1) spec.strip_leading_space = true;
    } else if (type == "Metaspace") {
      spec.strip_leading_space = read_metaspace(part).prepend != PreTokenizerStep::Prepend::kNever;
    } else {
      part.unsupported("decoder '" + type + "' of this form");
    }
  }
  if (parts.empty() || byte_level != spec.byte_level || (byte_level && parts.size() > 1))
    decoder.unsupported(parts.empty()
                            ? "a file without a decoder"
                            : "a decoder that does not fit the pre-tokenizer ('" + type_of(decoder) + "')");
}

// The template "<bos> A" (adds BOS) or "A".
void read_post_processor(const JsonPlace& root, TokenizerSpec& spec) {
  for (const JsonPlace& part : flatten(root.at("post_processor"), "processors")) {
    const std::string& type = type_of(part);
    if (type == "ByteLevel") continue;
    if (type != "TemplateProcessing") part.unsupported("post-processor '" + type + "'");
    const JsonPlace single = part.at("single"), special = part.at("special_tokens");
    single.array();
    const std::size_t n = single.value().size();
    if (n < 1 || n > 2 || single.at(n - 1).object().at("Sequence").null())
      single.unsupported("a template other than a BOS token and the text");
    if (!special.null()) special.object();
    const auto id_of = [&](const std::string& name) {
      const JsonPlace ids = special.at(name.c_str()).object().at("ids");
      if (ids.array().value().size() != 1) ids.unsupported("more or less than one id");
      return ids.at(std::size_t{0}).id();
    };
    if (n == 2) {
      const std::string& name =
          single.at(std::size_t{0}).object().at("SpecialToken").object().at("id").string();
      spec.bos = id_of(name);
      spec.adds_bos = true;
      // A special token that is listed and not used in front: what our own vocabularies list as EOS.
      for (auto it = special.value().begin(); it != special.value().end(); ++it)
        if (it.key() != name) spec.eos.push_back(id_of(it.key()));
    }
  }
}

// A token of tokenizer_config.json: a string or an object with "content".
std::optional<TokenId> read_config_token(const JsonPlace& token, const TokenizerSpec& spec) {
  if (token.null()) return std::nullopt;
  const std::string& content = token.value().is_object() ? token.at("content").string() : token.string();
  const auto found = std::find(spec.tokens.begin(), spec.tokens.end(), content);
  if (content.empty() || found == spec.tokens.end())
    token.corrupt("'" + content + "' is not in the vocabulary");
  return static_cast<TokenId>(found - spec.tokens.begin());
}

}  // namespace

void apply_tokenizer_config(std::string_view text, TokenizerSpec& spec) {
  const Json json = parse(text, "tokenizer_config.json");
  const JsonPlace config(json, "tokenizer_config.json");
  config.object();
  if (const auto bos = read_config_token(config.at("bos_token"), spec)) spec.bos = bos;
  if (const auto eos = read_config_token(config.at("eos_token"), spec)) spec.eos = {*eos};
  spec.adds_bos = config.at("add_bos_token").boolean(spec.adds_bos);
  spec.adds_eos = config.at("add_eos_token").boolean(spec.adds_eos);
  const JsonPlace chat = config.at("chat_template");
  if (chat.value().is_string()) spec.chat_template = chat.string();
  // Several templates, each with a name: the one named "default".
  for (std::size_t i = 0; chat.value().is_array() && i < chat.value().size(); ++i) {
    const JsonPlace item = chat.at(i);
    if (item.object().at("name").string() == "default") spec.chat_template = item.at("template").string();
  }
}

TokenizerSpec read_tokenizer_json(std::string_view text, std::string_view config) {
  const Json json = parse(text, "tokenizer.json");
  const JsonPlace root(json, "tokenizer.json");
  root.object();
  TokenizerSpec spec;
  read_model(root, spec);
  read_normalizer(root, spec);
  check_normalized(root, spec);
  read_pre_tokenizer(root, spec);
  read_decoder(root, spec);
  read_post_processor(root, spec);
  if (!config.empty()) apply_tokenizer_config(config, spec);
  find_well_known_tokens(spec);
  return spec;
}

}  // namespace bitnet::text
