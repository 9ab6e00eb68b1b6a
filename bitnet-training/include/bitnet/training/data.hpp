#pragma once
// The order in which a run sees its tokens: windows of one stream or packed documents, dealt epoch by epoch.
// Where tokens come from is documents.hpp, training_text.hpp and token_shard.hpp.
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "bitnet/core/rng.hpp"
#include "bitnet/core/text/sequences.hpp"
#include "bitnet/training/documents.hpp"

namespace bitnet::training {

/// Sequences of a step: inputs and what should follow each.
struct Batch {
  std::vector<std::int32_t> inputs, targets;  // [sequences, length]; a target of −1 counts nowhere
  std::vector<std::int32_t> positions;        // the same, as in RowLayout; empty: one document a sequence
  void clear() noexcept;
};

/// Where the order of a run's sequences stands, for checkpoints.
struct SamplerState {
  Rng::State epoch_rng{};  ///< generator before this epoch's shuffle
  std::uint64_t position = 0, epoch = 0;
};

/// Deals sequences of a fixed length, each once an epoch in a new random order. Not thread-safe.
class Sampler {
 public:
  virtual ~Sampler() = default;
  /// Fills `batch` with the next `sequences`, reusing its memory.
  void next(std::int64_t sequences, Batch& batch);
  SamplerState state() const noexcept { return {epoch_rng_, position_, epoch_}; }
  /// Sequences of this epoch; the next may have some more or fewer.
  std::int64_t sequences() const noexcept { return static_cast<std::int64_t>(order_.size()); }
  /// Throws Error(kInvalidArgument) for a position outside the epoch.
  void set_state(const SamplerState& state);

 protected:
  explicit Sampler(std::uint64_t seed) : rng_(seed) {}
  /// Cuts anew; returns the number of sequences.
  virtual std::int64_t cut(Rng& rng) = 0;
  virtual void append(std::int64_t sequence, Batch& batch) const = 0;
  /// Constructors end with it.
  void begin_epoch();

 private:
  Rng rng_;
  Rng::State epoch_rng_{};
  std::vector<std::uint32_t> order_;
  std::uint64_t position_ = 0, epoch_ = 0;
};

/// Cuts tokens into windows of `length` and deals them in a new random order each epoch (with a new random
/// phase, so that cuts fall elsewhere). A window's first input is BOS where there is one, as at the start of
/// every prompt; its first target is the window's first token. Not thread-safe.
class WindowSampler final : public Sampler {
 public:
  /// Throws Error(kInvalidArgument) when there is not one window. `bos` −1: inputs are the window, targets
  /// its successors.
  WindowSampler(std::span<const TokenId> tokens, std::int64_t length, std::int32_t bos, std::uint64_t seed);

 private:
  std::int64_t cut(Rng& rng) override;
  void append(std::int64_t sequence, Batch& batch) const override;
  std::span<const TokenId> tokens_;
  std::int64_t length_;
  std::int32_t bos_;
  std::optional<TokenWindows> windows_;  // of this epoch
};

/// Documents packed into rows of `length` by pack_lengths(), padding at the end of a row. One that is longer
/// than a row is cut, and each piece is a document to the model. A piece's first input is BOS as a window's
/// is; without BOS a document gives one position less than it has tokens. A token that is not to be learned
/// is target −1; pieces without a target are left out.
class PackedRows {
 public:
  /// What `documents` points to must outlive it. With `shuffle` documents of one length change places and
  /// long ones are cut at a random phase.
  PackedRows(DocumentsView documents, std::int64_t length, std::int32_t bos, Rng* shuffle = nullptr);
  std::int64_t size() const noexcept { return static_cast<std::int64_t>(rows_.size()); }
  void append(std::int64_t row, Batch& batch) const;

 private:
  struct Piece {
    std::int64_t begin, positions;
  };
  void add_piece(std::int64_t begin, std::int64_t positions);
  void add_pieces(std::int64_t begin, std::int64_t end, Rng* shuffle);
  /// The token that is the target of a position whose window begins at `begin`.
  std::size_t target_of(std::int64_t begin, std::int64_t position) const noexcept {
    return static_cast<std::size_t>(begin + position + (bos_ >= 0 ? 0 : 1));
  }
  DocumentsView documents_;
  std::int64_t length_;
  std::int32_t bos_;
  std::vector<Piece> pieces_;
  std::vector<std::vector<std::size_t>> rows_;  // of pieces
};

/// Deals packed rows, packed anew each epoch.
class PackedSampler final : public Sampler {
 public:
  /// What `documents` points to must outlive it. Throws Error(kInvalidArgument) when there is not one
  /// position to train on.
  PackedSampler(DocumentsView documents, std::int64_t length, std::int32_t bos, std::uint64_t seed);

 private:
  std::int64_t cut(Rng& rng) override;
  void append(std::int64_t sequence, Batch& batch) const override;
  DocumentsView documents_;
  std::int64_t length_;
  std::int32_t bos_;
  std::optional<PackedRows> rows_;  // of this epoch
};

/// Copies one window that begins at `at` to the end of `batch`, by the rule above.
void append_window(std::span<const TokenId> tokens, std::int64_t at, std::int64_t length, std::int32_t bos,
                   Batch& batch);

}  // namespace bitnet::training
