#pragma once
// A hash table from pairs of ids to a merge, built once and looked up very often: open addressing, linear
// probing.
#include <cstdint>
#include <vector>

namespace bitnet::text {

class PairTable {
 public:
  struct Merge {
    std::int32_t rank;    ///< smaller merges first
    std::int32_t result;  ///< id of the merged token
  };

  /// Adds or replaces. Ids are not negative.
  void set(std::int32_t left, std::int32_t right, Merge merge) {
    if (slots_.size() < (count_ + 1) * 2) grow();
    Slot& slot = slots_[locate(key(left, right))];
    if (slot.key == kEmpty) ++count_;
    slot = {key(left, right), merge};
  }
  const Merge* find(std::int32_t left, std::int32_t right) const noexcept {
    if (slots_.empty()) return nullptr;
    const Slot& slot = slots_[locate(key(left, right))];
    return slot.key == kEmpty ? nullptr : &slot.merge;
  }

 private:
  static constexpr std::uint64_t kEmpty = ~std::uint64_t{0};  // no pair of ids that are not negative
  struct Slot {
    std::uint64_t key = kEmpty;
    Merge merge{};
  };

  static std::uint64_t key(std::int32_t left, std::int32_t right) noexcept {
    return std::uint64_t{static_cast<std::uint32_t>(left)} << 32 | static_cast<std::uint32_t>(right);
  }
  std::size_t locate(std::uint64_t k) const noexcept {
    std::uint64_t h = k * 0x9E3779B97F4A7C15u;
    h ^= h >> 32;
    const std::size_t mask = slots_.size() - 1;  // at most half full, so a probe ends
    for (std::size_t i = h & mask;; i = (i + 1) & mask)
      if (slots_[i].key == k || slots_[i].key == kEmpty) return i;
  }
  void grow() {
    std::vector<Slot> old(slots_.empty() ? 1024 : slots_.size() * 2);
    old.swap(slots_);
    for (const Slot& s : old)
      if (s.key != kEmpty) slots_[locate(s.key)] = s;
  }

  std::vector<Slot> slots_;  // a power of two
  std::size_t count_ = 0;
};

}  // namespace bitnet::text
