#pragma once
// Handles that own a block of a MemoryResource: bytes (MemoryBlock) or values of a type in a row
// (MemoryArray<T>). They move, do not copy, and give their block back when they end. Who gives blocks is in
// memory_resource.hpp.
#include <cstddef>
#include <limits>
#include <memory>
#include <new>
#include <span>
#include <type_traits>
#include <utility>

#include "bitnet/core/memory/memory_resource.hpp"

namespace bitnet {

namespace detail {
[[noreturn]] void throw_array_too_long(std::size_t count, std::size_t element_bytes);
}  // namespace detail

/// Bytes of a resource, which must outlive the handle. Not thread-safe itself; may end on another thread than
/// it was made on.
class MemoryBlock {
 public:
  MemoryBlock() = default;
  /// Throws what MemoryResource::allocate throws.
  MemoryBlock(MemoryResource& resource, std::size_t bytes, std::size_t alignment = kDefaultAlignment,
              MemoryTag tag = kUntagged)
      : MemoryBlock(resource, resource.allocate(bytes, alignment, tag), bytes) {}
  /// Empty where the resource has no memory left.
  static MemoryBlock try_make(MemoryResource& resource, std::size_t bytes,
                              std::size_t alignment = kDefaultAlignment, MemoryTag tag = kUntagged) {
    void* block = resource.try_allocate(bytes, alignment, tag);
    return block == nullptr ? MemoryBlock() : MemoryBlock(resource, block, bytes);
  }
  ~MemoryBlock() {
    if (is_live()) detail::deallocate_or_log(*resource_, data_);
  }
  MemoryBlock(MemoryBlock&& other) noexcept { swap(other); }
  MemoryBlock& operator=(MemoryBlock&& other) noexcept {
    MemoryBlock(std::move(other)).swap(*this);
    return *this;
  }

  /// Holds a block that its resource has not taken back by a reset().
  bool is_live() const noexcept { return data_ != nullptr && resource_->generation() == generation_; }
  explicit operator bool() const noexcept { return is_live(); }

  /// Throws Error(kInvalidArgument) where !is_live(): the handle is empty, moved from, or older than its
  /// resource's last reset().
  void* data() const {
    if (!is_live()) detail::throw_stale_handle(resource_, generation_);
    return data_;
  }
  std::span<std::byte> bytes() const { return {static_cast<std::byte*>(data()), size_}; }
  std::size_t size() const noexcept { return size_; }  ///< bytes asked for

  /// Gives the block back now and leaves the handle empty. Throws what MemoryResource::deallocate throws; of
  /// a block that its resource took back: nothing.
  void reset() {
    MemoryBlock ending;
    ending.swap(*this);
    void* block = ending.is_live() ? std::exchange(ending.data_, nullptr) : nullptr;
    if (block != nullptr) ending.resource_->deallocate(block);
  }
  void swap(MemoryBlock& other) noexcept {
    std::swap(resource_, other.resource_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(generation_, other.generation_);
  }

 private:
  MemoryBlock(MemoryResource& resource, void* data, std::size_t size)
      : resource_(&resource), data_(data), size_(size), generation_(resource.generation()) {}

  MemoryResource* resource_ = nullptr;
  void* data_ = nullptr;
  std::size_t size_ = 0;
  std::uint64_t generation_ = 0;
};

/// `count` values of T, value-initialised; an array of none holds no block.
template <class T>
class MemoryArray {
  static_assert(alignof(T) <= kMaxAlignment);

 public:
  MemoryArray() = default;
  /// Throws Error(kInvalidArgument) where count · sizeof(T) overflows, and what allocate() and T throw.
  MemoryArray(MemoryResource& resource, std::size_t count, MemoryTag tag = kUntagged,
              std::size_t alignment = alignof(T)) {
    if (count > std::numeric_limits<std::size_t>::max() / sizeof(T))
      detail::throw_array_too_long(count, sizeof(T));
    if (count == 0) return;
    block_ = MemoryBlock(resource, count * sizeof(T), alignment < alignof(T) ? alignof(T) : alignment, tag);
    std::uninitialized_value_construct_n(static_cast<T*>(block_.data()), count);
    count_ = count;
  }
  ~MemoryArray() { destroy(); }
  MemoryArray(MemoryArray&& other) noexcept
      : block_(std::move(other.block_)), count_(std::exchange(other.count_, 0)) {}
  MemoryArray& operator=(MemoryArray&& other) noexcept {
    MemoryArray taken(std::move(other));
    block_.swap(taken.block_);
    std::swap(count_, taken.count_);
    return *this;
  }

  /// Throws like MemoryBlock::data().
  T* data() const { return count_ == 0 ? nullptr : static_cast<T*>(block_.data()); }
  std::size_t size() const noexcept { return count_; }
  std::span<T> span() const { return {data(), count_}; }
  /// Checks the handle each time: loops take a span().
  T& operator[](std::size_t i) const { return data()[i]; }
  /// Destroys the values and gives the block back; throws like MemoryBlock::reset().
  void reset() {
    destroy();
    count_ = 0;
    block_.reset();
  }

 private:
  void destroy() noexcept {
    if constexpr (!std::is_trivially_destructible_v<T>) {
      if (block_.is_live()) std::destroy_n(static_cast<T*>(block_.data()), count_);
    }
  }
  MemoryBlock block_;
  std::size_t count_ = 0;
};

}  // namespace bitnet
