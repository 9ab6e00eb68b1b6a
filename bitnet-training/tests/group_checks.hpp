#pragma once
// What holds of every group of processes; called by all members.
#include <cstdint>
#include <string>
#include <vector>

#include "bitnet/core/error.hpp"
#include "bitnet/training/process_group.hpp"

namespace bitnet::training {

/// Throws Error(kInternal) naming what does not hold, so that the other members end, too.
inline void require(bool holds, const char* what) {
  if (!holds) throw Error(ErrorCode::kInternal, what);
}

inline void check_collectives(ProcessGroup& group) {
  const int rank = group.rank(), size = group.size();
  for (int round = 0; round < 3; ++round) {
    require(group.of_first(rank + 10 * round) == 10 * round, "of_first");
    std::string text = rank == 0 ? "text of round " + std::to_string(round) : std::string(100, 'x');
    group.broadcast(text);
    require(text == "text of round " + std::to_string(round), "broadcast of a text");
    std::string none = rank == 0 ? "" : "x";
    group.broadcast(none);
    require(none.empty(), "broadcast of an empty text");

    const std::vector<std::int32_t> mine = {rank, round, rank * rank};
    std::vector<std::int32_t> all(mine.size() * static_cast<std::size_t>(size));
    group.gather(std::as_bytes(std::span(mine)), std::as_writable_bytes(std::span(all)));
    for (int r = 0; r < size; ++r) {
      const std::size_t at = 3 * static_cast<std::size_t>(r);
      require(all[at] == r && all[at + 1] == round && all[at + 2] == r * r, "gather");
    }
    require(!group.any(false), "any of none");
    require(group.any(rank == round % size), "any of one");
    require(group.any(true), "any of all");
    group.barrier();
  }
}

/// Between the first two members.
inline void check_order(ProcessGroup& group) {
  constexpr int kMessages = 20;
  if (group.rank() > 1) return;
  const int other = 1 - group.rank();
  std::vector<std::vector<std::int32_t>> out(kMessages), in(kMessages);
  for (int i = 0; i < kMessages; ++i) {
    out[static_cast<std::size_t>(i)].assign(static_cast<std::size_t>(1 + i * i * 500),
                                            100 * group.rank() + i);
    in[static_cast<std::size_t>(i)].resize(out[static_cast<std::size_t>(i)].size());
  }
  for (int i = 0; i < kMessages; ++i) {
    const auto at = static_cast<std::size_t>(i);
    if (group.rank() == 0) group.send(std::as_bytes(std::span(out[at])), other, 1 + i % 3);
    group.receive(std::as_writable_bytes(std::span(in[at])), other, 1 + i % 3);
    if (group.rank() == 1) group.send(std::as_bytes(std::span(out[at])), other, 1 + i % 3);
    group.progress();
  }
  group.wait();
  for (int i = 0; i < kMessages; ++i)
    for (const std::int32_t v : in[static_cast<std::size_t>(i)])
      require(v == 100 * other + i, "a message with another one's contents");
}

}  // namespace bitnet::training
