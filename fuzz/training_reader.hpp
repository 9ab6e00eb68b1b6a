#pragma once
// What the fuzzer and the test with damaged files do with the files that training reads: yaml, JSONL, token
// shards, checkpoints, adapters' configurations. Only bitnet::Error may escape; it is caught here.
#include <filesystem>
#include <string>
#include <string_view>

#include "bitnet/core/error.hpp"
#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/core/text/chat_template.hpp"
#include "bitnet/core/text/tokenizer.hpp"
#include "bitnet/quant/adapter.hpp"
#include "bitnet/training/checkpoint.hpp"
#include "bitnet/training/config.hpp"
#include "bitnet/training/token_shard.hpp"
#include "bitnet/training/training_text.hpp"

namespace bitnet::fuzzing {

/// True if the yaml was accepted.
inline bool read_train_config(const std::string& yaml) {
  try {
    (void)training::TrainConfig::from_yaml(yaml, "fuzz.yaml");
    return true;
  } catch (const Error&) {
    return false;
  }
}

/// True if all lines were records that `tokenizer` can encode.
inline bool read_records(std::string_view jsonl, const Tokenizer& tokenizer) {
  try {
    const auto chat = ChatTemplate::by_name("bitnet");
    for (const training::TextRecord& record : training::parse_records(jsonl)) {
      const auto encoded = training::encode_record(record, tokenizer, chat.get());
      if (encoded.tokens.size() != encoded.learned.size()) __builtin_trap();
    }
    return true;
  } catch (const Error&) {
    return false;
  }
}

/// True if the shard was accepted; then every document lies within the tokens, and every token in the
/// vocabulary.
inline bool read_token_shard(const std::filesystem::path& path, const Tokenizer& tokenizer) {
  try {
    const auto shard = training::TokenShard::open(path, tokenizer);
    for (const TokenId token : shard->documents().tokens)
      if (token < 0 || token >= tokenizer.vocab_size()) __builtin_trap();
    for (const auto end : shard->documents().ends)
      if (static_cast<std::size_t>(end) > shard->documents().tokens.size()) __builtin_trap();
    return true;
  } catch (const Error&) {
    return false;
  }
}

/// True if the checkpoint was accepted for this model and optimiser.
inline bool read_checkpoint(const std::filesystem::path& path, training::TextModel& model,
                            training::Optimizer& optimizer) {
  try {
    (void)training::load_checkpoint(path, model, optimizer);
    return true;
  } catch (const Error&) {
    return false;
  }
}

/// True if the adapter was accepted for a model of this shape.
inline bool read_adapter(const std::filesystem::path& directory, const ModelConfig& config) {
  try {
    (void)quant::read_adapter(directory, config);
    return true;
  } catch (const Error&) {
    return false;
  }
}

}  // namespace bitnet::fuzzing
