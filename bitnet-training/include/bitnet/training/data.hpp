#pragma once
// Text files as tokens, and the order in which a run sees them.
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "bitnet/core/execution.hpp"
#include "bitnet/core/rng.hpp"
#include "bitnet/core/text/sequences.hpp"
#include "bitnet/core/text/tokenizer.hpp"

namespace bitnet::training {

/// The tokens of a whole text file, no BOS. Encoded in parallel in pieces cut after line ends, where no
/// pre-token crosses. Throws Error(kNotFound | kIo) and Error(kInvalidArgument) on invalid UTF-8, the file
/// named.
std::vector<TokenId> tokenize_file(const ExecutionContext& context, const Tokenizer& tokenizer,
                                   const std::filesystem::path& path);

/// One micro-batch: inputs and what should follow each.
struct Batch {
  std::vector<std::int32_t> inputs, targets;  // [sequences, length]
};

/// Cuts tokens into windows of `length` and deals them in a new random order each epoch (with a new random
/// phase, so that cuts fall elsewhere). A window's first input is BOS where there is one, as at the start of
/// every prompt; its first target is the window's first token. Not thread-safe.
class BatchSampler {
 public:
  /// Throws Error(kInvalidArgument) when there is not one window. `bos` −1: inputs are the window, targets
  /// its successors.
  BatchSampler(std::span<const TokenId> tokens, std::int64_t length, std::int32_t bos, std::uint64_t seed);
  /// Fills `batch` with the next `sequences` windows, reusing its memory.
  void next(std::int64_t sequences, Batch& batch);

  /// Where the order stands, for checkpoints.
  struct State {
    Rng::State epoch_rng{};  ///< generator before this epoch's shuffle
    std::uint64_t position = 0, epoch = 0;
  };
  State state() const noexcept { return {epoch_rng_, position_, epoch_}; }
  /// Throws Error(kInvalidArgument) for a position outside the epoch.
  void set_state(const State& state);

 private:
  void begin_epoch();
  std::span<const TokenId> tokens_;
  std::int64_t length_;
  std::int32_t bos_;
  Rng rng_;
  Rng::State epoch_rng_{};
  std::optional<TokenWindows> windows_;  // of this epoch
  std::vector<std::uint32_t> order_;
  std::uint64_t position_ = 0, epoch_ = 0;
};

/// Copies one window that begins at `at` to the end of `batch`, by the rule above.
void append_window(std::span<const TokenId> tokens, std::int64_t at, std::int64_t length, std::int32_t bos,
                   Batch& batch);

}  // namespace bitnet::training
