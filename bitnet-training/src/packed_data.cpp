// Documents of a text file, packed into rows. Windows that are cut from one stream are data.cpp.
#include <algorithm>
#include <string>

#include "bitnet/core/error.hpp"
#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/training/data.hpp"

namespace bitnet::training {

Documents documents_of_text(const ExecutionContext& context, const Tokenizer& tokenizer,
                            std::string_view text, std::string_view separator) {
  if (separator.empty())
    throw Error(ErrorCode::kInvalidArgument, "documents need a separator that is not empty");
  std::vector<std::string_view> texts;
  for (std::size_t at = 0; at <= text.size();) {
    const std::size_t end = std::min(text.find(separator, at), text.size());
    if (end > at) texts.push_back(text.substr(at, end - at));
    at = end + separator.size();
  }
  std::vector<std::vector<TokenId>> ids(texts.size());
  context.parallel_for(texts.size(), 8, [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i)
      with_context("document " + std::to_string(i), [&] {
        ids[i] = tokenizer.encode(texts[i], {.add_bos = false});
        if (!tokenizer.eos().empty()) ids[i].push_back(tokenizer.eos().front());
      });
  });
  Documents all;
  for (const auto& document : ids) {
    all.tokens.insert(all.tokens.end(), document.begin(), document.end());
    all.ends.push_back(static_cast<std::int64_t>(all.tokens.size()));
  }
  return all;
}

Documents tokenize_documents(const ExecutionContext& context, const Tokenizer& tokenizer,
                             const std::filesystem::path& path, std::string_view separator) {
  const std::string text = read_file(path);
  return with_context("tokenising '" + path.string() + "'",
                      [&] { return documents_of_text(context, tokenizer, text, separator); });
}

PackedRows::PackedRows(DocumentsView documents, std::int64_t length, std::int32_t bos, Rng* shuffle)
    : documents_(documents), length_(length), bos_(bos) {
  if (length <= 0)
    throw Error(ErrorCode::kInvalidArgument, "packed rows of " + std::to_string(length) + " tokens");
  std::int64_t begin = 0;
  for (const std::int64_t end : documents.ends) {
    add_pieces(begin, end, shuffle);
    begin = end;
  }
  if (shuffle)
    for (std::size_t i = pieces_.size(); i > 1; --i) std::swap(pieces_[i - 1], pieces_[shuffle->below(i)]);
  std::vector<std::int64_t> lengths(pieces_.size());
  std::transform(pieces_.begin(), pieces_.end(), lengths.begin(), [](const Piece& p) { return p.positions; });
  rows_ = pack_lengths(lengths, length);
}

/// Of the document of tokens [begin, end). Without BOS a piece's last target is the next one's first input.
void PackedRows::add_pieces(std::int64_t begin, std::int64_t end, Rng* shuffle) {
  std::int64_t left = end - begin - (bos_ >= 0 ? 0 : 1);
  if (left > length_ && shuffle) {
    const auto first = 1 + static_cast<std::int64_t>(shuffle->below(static_cast<std::uint64_t>(length_)));
    add_piece(begin, first);
    begin += first;
    left -= first;
  }
  for (; left > 0; left -= length_, begin += length_) add_piece(begin, std::min(left, length_));
}

void PackedRows::add_piece(std::int64_t begin, std::int64_t positions) {
  bool any = documents_.learned.empty();
  for (std::int64_t p = 0; p < positions && !any; ++p) any = documents_.learned[target_of(begin, p)] != 0;
  if (any) pieces_.push_back({begin, positions});
}

void PackedRows::append(std::int64_t row, Batch& batch) const {
  std::int64_t empty = length_;
  for (const std::size_t i : rows_[static_cast<std::size_t>(row)]) {
    const Piece& piece = pieces_[i];
    const std::size_t first = batch.targets.size();
    append_window(documents_.tokens, piece.begin, piece.positions, bos_, batch);
    for (std::int64_t p = 0; p < piece.positions; ++p) {
      batch.positions.push_back(static_cast<std::int32_t>(p));
      if (!documents_.learned.empty() && documents_.learned[target_of(piece.begin, p)] == 0)
        batch.targets[first + static_cast<std::size_t>(p)] = -1;
    }
    empty -= piece.positions;
  }
  const auto padding = static_cast<std::size_t>(empty);
  batch.inputs.insert(batch.inputs.end(), padding, std::max(bos_, 0));
  batch.targets.insert(batch.targets.end(), padding, -1);
  batch.positions.insert(batch.positions.end(), padding, -1);
}

PackedSampler::PackedSampler(DocumentsView documents, std::int64_t length, std::int32_t bos,
                             std::uint64_t seed)
    : Sampler(seed), documents_(documents), length_(length), bos_(bos) {
  begin_epoch();
  if (rows_->size() == 0)
    throw Error(ErrorCode::kInvalidArgument, "the training text has no document of two tokens");
}

std::int64_t PackedSampler::cut(Rng& rng) {
  rows_.emplace(documents_, length_, bos_, &rng);
  return rows_->size();
}

void PackedSampler::append(std::int64_t sequence, Batch& batch) const { rows_->append(sequence, batch); }

}  // namespace bitnet::training
