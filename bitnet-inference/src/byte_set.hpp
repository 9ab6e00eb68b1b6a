#pragma once
// A set of bytes of a buffer, for backends that keep a buffer in several memories.
#include <algorithm>
#include <cstddef>
#include <vector>

#include "bitnet/core/device/backend_types.hpp"

namespace bitnet::inference {

/// Bytes begin … end of a buffer.
struct ByteRange {
  std::size_t begin = 0, end = 0;
};

/// The bytes of a matrix.
inline ByteRange range_of(const Matrix& m) {
  return {m.offset, m.offset + static_cast<std::size_t>(m.rows * m.cols) * sizeof(float)};
}

/// A set of bytes as disjoint ranges, ascending; a handful at most, because neighbours are joined. Not
/// thread-safe.
class ByteSet {
 public:
  void add(ByteRange r) {
    if (r.begin == r.end || contains(r)) return;
    remove(r);
    ranges_.push_back(r);
    std::sort(ranges_.begin(), ranges_.end(), [](ByteRange a, ByteRange b) { return a.begin < b.begin; });
    std::size_t n = 0;
    for (std::size_t i = 1; i < ranges_.size(); ++i) {
      if (ranges_[i].begin == ranges_[n].end) {
        ranges_[n].end = ranges_[i].end;
      } else {
        ranges_[++n] = ranges_[i];
      }
    }
    ranges_.resize(n + 1);
  }

  void remove(ByteRange r) {
    if (!touches(r)) return;
    std::vector<ByteRange> left;
    for (const ByteRange& a : ranges_) {
      if (a.begin < std::min(a.end, r.begin)) left.push_back({a.begin, std::min(a.end, r.begin)});
      if (std::max(a.begin, r.end) < a.end) left.push_back({std::max(a.begin, r.end), a.end});
    }
    ranges_ = std::move(left);
  }

  bool contains(ByteRange r) const noexcept {
    return r.begin == r.end || std::any_of(ranges_.begin(), ranges_.end(), [&](const ByteRange& a) {
             return a.begin <= r.begin && r.end <= a.end;
           });
  }
  bool touches(ByteRange r) const noexcept {
    return std::any_of(ranges_.begin(), ranges_.end(), [&](const ByteRange& a) {
      return std::max(a.begin, r.begin) < std::min(a.end, r.end);
    });
  }

  std::vector<ByteRange> within(ByteRange r) const {
    std::vector<ByteRange> out;
    for (const ByteRange& a : ranges_) {
      const ByteRange both{std::max(a.begin, r.begin), std::min(a.end, r.end)};
      if (both.begin < both.end) out.push_back(both);
    }
    return out;
  }
  /// What of `r` is not in the set.
  std::vector<ByteRange> missing(ByteRange r) const {
    std::vector<ByteRange> out;
    for (const ByteRange& a : within(r)) {
      if (r.begin < a.begin) out.push_back({r.begin, a.begin});
      r.begin = a.end;
    }
    if (r.begin < r.end) out.push_back(r);
    return out;
  }

 private:
  std::vector<ByteRange> ranges_;
};

}  // namespace bitnet::inference
