#pragma once
// What a chat template says, without running it: enough to tell whether it can render anything else than a
// format that we know. The formats are chat_template.cpp.
#include <string>
#include <string_view>
#include <vector>

namespace bitnet::text {

/// The names and the texts of a template, in order.
struct TemplateContent {
  std::vector<std::string>
      names;          ///< variables, filters, statements and keys: "for", "message", "role", "trim"
  std::string text;   ///< what it writes by itself, all literals joined
  bool plain = true;  ///< false: it has operators that a plain loop does not need (<, !, *, :, …)

  bool has(std::string_view name) const;
};

/// Reads a template as Hugging Face renders it (trim_blocks and lstrip_blocks). Any text gives a result.
TemplateContent read_template(std::string_view source);

}  // namespace bitnet::text
