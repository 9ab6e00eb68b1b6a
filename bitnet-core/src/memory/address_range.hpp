#pragma once
// A reserved range of addresses: memory that costs nothing until it is committed and written. What lies in it
// is decided in large_block_pool.hpp.
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace bitnet::memory {

inline constexpr std::size_t kHugePageBytes = std::size_t{2} << 20;

/// Zeroed memory for tables that are far larger than what of them is used: pages come with their first write.
class LazyTable {
 public:
  /// Throws Error(kOutOfMemory).
  explicit LazyTable(std::size_t bytes);
  ~LazyTable();
  LazyTable(const LazyTable&) = delete;
  LazyTable& operator=(const LazyTable&) = delete;
  /// Whether the system would give as much now.
  static bool fits(std::size_t bytes) noexcept;
  void* data() const noexcept { return data_; }
  /// Makes all of it zero again.
  void clear() noexcept;

 private:
  void* data_;
  std::size_t bytes_;
};

/// Thread-safe, but for leak().
class AddressRange {
 public:
  /// Reserves `bytes`, a power of two of at least kHugePageBytes, aligned to kHugePageBytes. Where the
  /// process may not have so many addresses (RLIMIT_AS), at most a quarter of those it may have, and half of
  /// what it could still get, so that there are addresses left for threads and libraries; never less than
  /// `least`. Throws Error(kOutOfMemory).
  AddressRange(std::size_t bytes, std::size_t least);
  ~AddressRange();
  AddressRange(const AddressRange&) = delete;
  AddressRange& operator=(const AddressRange&) = delete;

  std::byte* base() const noexcept { return base_; }
  std::size_t bytes() const noexcept { return bytes_; }

  /// Makes [offset, offset + bytes) readable and writable, in steps of kHugePageBytes; false where the system
  /// refuses. Fresh memory is zero. Costs a look at a bit for each step that is so already. `huge` asks for
  /// huge pages there, which is no more than a wish.
  bool commit(std::size_t offset, std::size_t bytes, bool huge) noexcept;
  /// Whether a step of [offset, offset + bytes) is committed; bytes ≥ 1. Looks at 128 MiB at once.
  bool any_committed(std::size_t offset, std::size_t bytes) const noexcept;
  /// Bytes of [offset, offset + bytes) that are committed.
  std::size_t committed(std::size_t offset, std::size_t bytes) const noexcept;
  /// Gives the pages back; what is read there next is zero. False, and nothing happens, where the system
  /// refuses, as it does for locked memory (mlockall).
  bool release(std::size_t offset, std::size_t bytes) const noexcept;
  /// Bytes of the range that are in memory: Rss in /proc/self/smaps, 0 where that is not readable.
  std::size_t resident() const;
  /// Keeps the mapping when this object ends.
  void leak() noexcept { leaked_ = true; }

 private:
  void* mapping_ = nullptr;
  std::size_t mapping_bytes_ = 0;
  std::byte* base_ = nullptr;
  std::size_t bytes_ = 0;
  bool leaked_ = false;
  using Word = std::atomic<std::uint64_t>;
  Word* committed_words() const noexcept { return static_cast<Word*>(bits_->data()); }
  Word* huge_words() const noexcept { return committed_words() + (bytes_ / kHugePageBytes + 63) / 64; }
  // Bit per kHugePageBytes: committed words, then those of huge pages asked for. Made with the range.
  std::unique_ptr<LazyTable> bits_;
};

}  // namespace bitnet::memory
