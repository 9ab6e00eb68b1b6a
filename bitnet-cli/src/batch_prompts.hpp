#pragma once
// What becomes of an item of `bitnet batch` before it runs: its text or conversation as tokens, cut to the
// context where --truncate says so, with the options that it has of its own. Items in files are
// batch_items.hpp.
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "batch_items.hpp"
#include "bitnet/cli/app.hpp"
#include "bitnet/core/error.hpp"
#include "bitnet/core/text/chat_template.hpp"
#include "bitnet/core/text/sequences.hpp"
#include "bitnet/core/text/tokenizer.hpp"
#include "bitnet/inference/model.hpp"
#include "bitnet/inference/recovering_scheduler.hpp"
#include "options.hpp"

namespace bitnet::cli {

/// After begin() several threads may ask for requests at once.
class BatchPrompts {
 public:
  BatchPrompts(const Values& values, Io& io) : values_(values), io_(io) {}
  /// Takes from the model what prompts need, as it may be away later while its device is opened anew; its
  /// chat template only where an item is a conversation. Throws Error(kNotFound) without a tokenizer.
  void begin(const inference::Model& model, std::int64_t n_ctx, const std::vector<BatchItem>& items);

  /// `seed`: as chosen, of the item, of --seed or by chance, also where it then throws:
  /// Error(kInvalidArgument) for what is wrong with the item, and what is wrong with the model's chat
  /// template.
  inference::Request request_of(const BatchItem& item, std::optional<std::int64_t>& seed) const;

 private:
  std::vector<TokenId> encode(const BatchItem& item, inference::GenerationOptions& options) const;
  void cut_to_context(std::vector<TokenId>& ids, std::int64_t max_tokens, const BatchItem& item) const;
  SequenceSide cut_side() const;
  std::int64_t limit(std::int64_t max_tokens) const;
  void say_cut(const BatchItem& item, std::int64_t tokens) const;

  const Values& values_;
  Io& io_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::int64_t n_ctx_ = 0;
  std::shared_ptr<const ChatTemplate> chat_format_;
  std::optional<Error> chat_problem_;
};

}  // namespace bitnet::cli
