#pragma once
// What the fuzzer and the test with damaged files do with a tokenizer: load it, encode, decode and write it
// back. Only bitnet::Error may escape; it is caught here.
#include <span>
#include <string>
#include <string_view>

#include "bitnet/core/error.hpp"
#include "bitnet/core/io/gguf.hpp"
#include "bitnet/core/text/tokenizer.hpp"

namespace bitnet::fuzzing {

inline void use_tokenizer(const Tokenizer& t) {
  try {
    const auto ids = t.encode("Hello  wörld 123 🙂\n\n don't <s><|eot_id|> the end", {true, true});
    (void)t.decode(ids, true);
  } catch (const Error&) {
  }
  try {
    (void)Tokenizer::from_json(t.to_json(), t.config_json());
  } catch (const Error&) {
  }
  try {
    GgufMetadata metadata;
    t.to_gguf(metadata);
    (void)Tokenizer::from_gguf(metadata);
  } catch (const Error&) {
  }
}

/// True if the bytes were accepted, as a tokenizer.json if they begin with '{', else as a tokenizer.model.
inline bool read_tokenizer(std::string_view bytes) {
  try {
    use_tokenizer(bytes.substr(0, 1) == "{"
                      ? *Tokenizer::from_json(bytes)
                      : *Tokenizer::from_sentencepiece(std::as_bytes(std::span(bytes))));
    return true;
  } catch (const Error&) {
    return false;
  }
}

}  // namespace bitnet::fuzzing
