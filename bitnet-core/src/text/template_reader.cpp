// A scanner for the lexical part of Jinja: literal text, tags, names, strings. Nothing is evaluated.
#include "text/template_reader.hpp"

#include <algorithm>

namespace bitnet::text {
namespace {

constexpr std::string_view kWhite = " \t\r\n";

bool is_name(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

// The text between two tags, less what the tags take: '-' all white space on its side; statements and
// comments the newline after them (trim_blocks) and the spaces before them on their line (lstrip_blocks).
std::string_view literal(std::string_view text, std::string_view before, std::string_view after) {
  if (before.size() > 2 && before[before.size() - 3] == '-') {
    text.remove_prefix(std::min(text.find_first_not_of(kWhite), text.size()));
  } else if (!before.empty() && before[1] != '{' && text.substr(0, 1) == "\n") {
    text.remove_prefix(1);
  }
  if (after.size() > 2 && after[2] == '-') {
    const std::size_t last = text.find_last_not_of(kWhite);
    return text.substr(0, last == std::string_view::npos ? 0 : last + 1);
  }
  if (after.empty() || after[1] == '{') return text;
  const std::size_t last = text.find_last_not_of(" \t");
  if (last == std::string_view::npos) return {};
  return text[last] == '\n' ? text.substr(0, last + 1) : text;
}

// The string that begins at `at`, unescaped; `at` moves behind it.
std::string string_at(std::string_view tag, std::size_t& at) {
  const char quote = tag[at++];
  std::string out;
  for (; at < tag.size() && tag[at] != quote; ++at) {
    if (tag[at] == '\\' && at + 1 < tag.size()) {
      const char c = tag[++at];
      out += c == 'n' ? '\n' : c == 't' ? '\t' : c;
    } else {
      out += tag[at];
    }
  }
  at = std::min(at + 1, tag.size());
  return out;
}

// The end of the tag that begins at `at`: behind its "}}", "%}" or "#}" outside of strings.
std::size_t end_of_tag(std::string_view source, std::size_t at) {
  const char kind = source[at + 1];
  const char close = kind == '{' ? '}' : kind;
  for (std::size_t i = at + 2; i < source.size();) {
    if (kind != '#' && (source[i] == '\'' || source[i] == '"')) {
      string_at(source, i);
    } else if (source[i] == close && source.substr(i + 1, 1) == "}") {
      return i + 2;
    } else {
      ++i;
    }
  }
  return source.size();
}

// A string in brackets after a value is a key, not a text: message['role'].
bool is_key(std::string_view tag, std::size_t begin, std::size_t end) {
  return begin > 1 && tag[begin - 1] == '[' && is_name(tag[begin - 2]) && tag.substr(end, 1) == "]";
}

void read_tag(std::string_view tag, TemplateContent& content) {
  for (std::size_t at = 0; at < tag.size();) {
    const char c = tag[at];
    const std::size_t begin = at;
    if (c == '\'' || c == '"') {
      std::string value = string_at(tag, at);
      if (is_key(tag, begin, at)) {
        content.names.push_back(std::move(value));
      } else {
        content.text += value;
      }
    } else if (is_name(c)) {
      while (at < tag.size() && is_name(tag[at])) ++at;
      content.names.emplace_back(tag.substr(begin, at - begin));
    } else {
      const bool first_minus = c == '-' && (at == 0 || at + 1 == tag.size());  // of {%- and -%}
      const bool known = kWhite.find(c) != std::string_view::npos ||
                         std::string_view("+|.[]()=").find(c) != std::string_view::npos;
      if (!first_minus && !known) content.plain = false;
      ++at;
    }
  }
}

}  // namespace

bool TemplateContent::has(std::string_view name) const {
  return std::find(names.begin(), names.end(), name) != names.end();
}

TemplateContent read_template(std::string_view source) {
  TemplateContent content;
  std::string_view before;  // the tag in front of the text
  for (std::size_t at = 0; at < source.size();) {
    std::size_t open = at;
    while (open < source.size() &&
           !(source[open] == '{' && open + 1 < source.size() &&
             std::string_view("{%#").find(source[open + 1]) != std::string_view::npos))
      ++open;
    const std::size_t end = open < source.size() ? end_of_tag(source, open) : open;
    const std::string_view tag = source.substr(open, end - open);
    content.text += literal(source.substr(at, open - at), before, tag);
    if (tag.size() >= 4 && tag[1] != '#') read_tag(tag.substr(2, tag.size() - 4), content);
    before = tag.size() >= 4 ? tag : std::string_view();
    at = end;
  }
  return content;
}

}  // namespace bitnet::text
