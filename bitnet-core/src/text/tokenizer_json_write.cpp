// Writes the tokenizer.json that Hugging Face's tokenizers reads to the same ids.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "bitnet/core/error.hpp"
#include "text/spec.hpp"

namespace bitnet::text {
namespace {

using Json = nlohmann::ordered_json;

Json string_pattern(std::string_view text) { return {{"String", std::string(text)}}; }
Json regex_pattern(std::string_view text) { return {{"Regex", std::string(text)}}; }

std::string behavior_name(SplitBehavior behavior) {
  switch (behavior) {
    case SplitBehavior::kRemoved:
      return "Removed";
    case SplitBehavior::kIsolated:
      return "Isolated";
    case SplitBehavior::kMergedWithPrevious:
      return "MergedWithPrevious";
    case SplitBehavior::kMergedWithNext:
      return "MergedWithNext";
    case SplitBehavior::kContiguous:
      return "Contiguous";
  }
  return "Isolated";
}

// null, the part itself, or a Sequence of parts.
Json sequence(const char* list, std::vector<Json> parts) {
  if (parts.empty()) return nullptr;
  if (parts.size() == 1) return parts.front();
  return {{"type", "Sequence"}, {list, std::move(parts)}};
}

Json normalizer(const TokenizerSpec& spec) {
  std::vector<Json> parts;
  for (const NormalizerStep& step : spec.normalizer) {
    switch (step.kind) {
      case NormalizerStep::Kind::kPrepend:
        parts.push_back({{"type", "Prepend"}, {"prepend", step.to}});
        break;
      case NormalizerStep::Kind::kReplace:
        parts.push_back({{"type", "Replace"}, {"pattern", string_pattern(step.from)}, {"content", step.to}});
        break;
      case NormalizerStep::Kind::kCollapseSpaces:  // of each run of spaces all but the last, and those at the
                                                   // ends
        parts.push_back(
            {{"type", "Replace"}, {"pattern", regex_pattern(kCollapseSpacesPattern)}, {"content", ""}});
        break;
    }
  }
  return sequence("normalizers", std::move(parts));
}

Json pre_tokenizer(const TokenizerSpec& spec) {
  using Prepend = PreTokenizerStep::Prepend;
  std::vector<Json> parts;
  for (const PreTokenizerStep& step : spec.pre_tokenizer) {
    switch (step.kind) {
      case PreTokenizerStep::Kind::kSplit:
        if (!step.json.empty()) {
          parts.push_back(Json::parse(step.json));
        } else {
          parts.push_back({{"type", "Split"},
                           {"pattern", regex_pattern(step.pattern)},
                           {"behavior", behavior_name(step.behavior)},
                           {"invert", step.invert}});
        }
        break;
      case PreTokenizerStep::Kind::kMetaspace:
        parts.push_back({{"type", "Metaspace"},
                         {"replacement", std::string(kVisibleSpace)},
                         {"prepend_scheme", step.prepend == Prepend::kAlways  ? "always"
                                            : step.prepend == Prepend::kFirst ? "first"
                                                                              : "never"},
                         {"split", step.split}});
        break;
      case PreTokenizerStep::Kind::kByteLevel:
        parts.push_back({{"type", "ByteLevel"},
                         {"add_prefix_space", step.prepend == Prepend::kAlways},
                         {"trim_offsets", true},
                         {"use_regex", step.split}});
        break;
    }
  }
  return sequence("pretokenizers", std::move(parts));
}

Json decoder(const TokenizerSpec& spec) {
  if (spec.byte_level)
    return {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}};
  std::vector<Json> parts = {
      {{"type", "Replace"}, {"pattern", string_pattern(kVisibleSpace)}, {"content", " "}},
      {{"type", "ByteFallback"}},
      {{"type", "Fuse"}}};
  if (spec.strip_leading_space)
    parts.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  return sequence("decoders", std::move(parts));
}

Json post_processor(const TokenizerSpec& spec) {
  if (!spec.adds_bos) return nullptr;
  const auto name = [&](TokenId id) { return spec.tokens[static_cast<std::size_t>(id)]; };
  const auto special = [&](TokenId id) {
    return Json{
        {"id", name(id)}, {"ids", std::vector<TokenId>{id}}, {"tokens", std::vector<std::string>{name(id)}}};
  };
  const auto bos = [&](int type_id) {
    return Json{{"SpecialToken", {{"id", name(*spec.bos)}, {"type_id", type_id}}}};
  };
  const auto text = [](const char* id, int type_id) {
    return Json{{"Sequence", {{"id", id}, {"type_id", type_id}}}};
  };
  Json tokens = {{name(*spec.bos), special(*spec.bos)}};
  if (!spec.eos.empty()) tokens[name(spec.eos.front())] = special(spec.eos.front());
  return {{"type", "TemplateProcessing"},
          {"single", Json::array({bos(0), text("A", 0)})},
          {"pair", Json::array({bos(0), text("A", 0), bos(1), text("B", 1)})},
          {"special_tokens", std::move(tokens)}};
}

Json added_tokens(const TokenizerSpec& spec) {
  std::vector<AddedToken> added = spec.added;
  std::sort(added.begin(), added.end(), [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });
  Json list = Json::array();
  for (const AddedToken& t : added)
    list.push_back({{"id", t.id},
                    {"content", spec.tokens[static_cast<std::size_t>(t.id)]},
                    {"single_word", false},
                    {"lstrip", t.lstrip},
                    {"rstrip", t.rstrip},
                    {"normalized", false},
                    {"special", t.special}});
  return list;
}

Json merges(const TokenizerSpec& spec) {
  const auto list = spec.merges.empty() && !spec.scores.empty() ? merges_from_scores(spec) : spec.merges;
  const auto name = [&](TokenId id) -> const std::string& {
    return spec.tokens[static_cast<std::size_t>(id)];
  };
  // "a b" is what every version reads; pairs of strings are for tokens with spaces in them.
  const bool spaces = std::any_of(list.begin(), list.end(), [&](const auto& m) {
    return (name(m.first) + name(m.second)).find(' ') != std::string::npos;
  });
  Json out = Json::array();
  for (const auto& [left, right] : list) {
    if (spaces) {
      out.push_back(Json::array({name(left), name(right)}));
    } else {
      out.push_back(name(left) + " " + name(right));
    }
  }
  return out;
}

}  // namespace

std::string write_tokenizer_json(const TokenizerSpec& spec) {
  nlohmann::json vocab = nlohmann::json::object();
  for (std::size_t i = 0; i < spec.tokens.size(); ++i) {
    if (spec.tokens[i].empty()) continue;
    const auto [slot, added] = vocab.emplace(spec.tokens[i], i);
    if (!added)
      throw Error(ErrorCode::kUnsupported, "tokenizer.json cannot hold the token '" + spec.tokens[i] +
                                               "' twice (ids " + slot->dump() + " and " + std::to_string(i) +
                                               ")");
  }
  // Sorted by id, which ordered_json keeps and spares its quadratic search for duplicates.
  std::string listed = "{";
  for (std::size_t i = 0; i < spec.tokens.size(); ++i) {
    if (spec.tokens[i].empty()) continue;
    if (listed.size() > 1) listed += ',';
    listed += Json(spec.tokens[i]).dump() + ":" + std::to_string(i);
  }
  listed += '}';
  const auto unknown =
      spec.unknown ? Json(spec.tokens[static_cast<std::size_t>(*spec.unknown)]) : Json(nullptr);
  std::string out = "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null";
  const auto add = [&](const char* key, const Json& value) {
    out += std::string(",\"") + key + "\":" + value.dump();
  };
  add("added_tokens", added_tokens(spec));
  add("normalizer", normalizer(spec));
  add("pre_tokenizer", pre_tokenizer(spec));
  add("post_processor", post_processor(spec));
  add("decoder", decoder(spec));
  out += ",\"model\":{\"type\":\"BPE\",\"dropout\":null";
  add("unk_token", unknown);
  add("continuing_subword_prefix", nullptr);
  add("end_of_word_suffix", nullptr);
  add("fuse_unk", spec.fuse_unknown);
  add("byte_fallback", spec.byte_fallback);
  add("ignore_merges", spec.ignore_merges);
  out += ",\"vocab\":" + listed;
  add("merges", merges(spec));
  return out + "}}\n";
}

}  // namespace bitnet::text
