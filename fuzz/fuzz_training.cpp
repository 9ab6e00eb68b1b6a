// libFuzzer target: the first byte chooses the reader, the others are a configuration of training (yaml),
// records of text (JSONL) or a token shard; what is done with them is training_reader.hpp.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "bitnet/core/text/bpe_trainer.hpp"
#include "memory_file.hpp"
#include "training_reader.hpp"

namespace {

/// With the control tokens of chats, so that each of the forms can be encoded.
const bitnet::Tokenizer& tokenizer() {
  static const auto all = [] {
    bitnet::BpeTrainerOptions options;
    options.vocab_size = 300;
    options.special_tokens.emplace_back("<|eot_id|>");
    bitnet::BpeTrainer trainer(options);
    trainer.feed("It was a fine morning, and the king said unto the people that they should go.");
    return bitnet::Tokenizer::from_json(trainer.train());
  }();
  return *all;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0] % 3) {
    case 0:
      bitnet::fuzzing::read_train_config(std::string(rest));
      break;
    case 1:
      bitnet::fuzzing::read_records(rest, tokenizer());
      break;
    default:
      bitnet::fuzzing::read_token_shard(bitnet::fuzzing::MemoryFile(data + 1, size - 1).path(), tokenizer());
  }
  return 0;
}
