// See top_op.hpp.
#include "top_op.hpp"

#include <bit>
#include <utility>

#include "bitnet/core/error.hpp"

namespace bitnet::gpu {
namespace {

constexpr std::size_t kChunk = 1024;  // BN_TOP_CHUNK

std::size_t chunks_of(std::size_t n) { return (n + kChunk - 1) / kChunk; }

/// The reverse of bn_key() in top.cl.
TopValue value_of(cl_ulong key) {
  const auto monotonic = static_cast<cl_uint>(key >> 32);
  const cl_uint bits = (monotonic & 0x80000000u) != 0 ? monotonic & 0x7fffffffu : ~monotonic;
  return {static_cast<std::int32_t>(0xffffffffu - static_cast<cl_uint>(key)), std::bit_cast<float>(bits)};
}

}  // namespace

bool TopOp::reserve(std::size_t which, std::size_t keys) {
  PooledMem& mem = scratch_[which];
  const std::size_t bytes = keys * sizeof(cl_ulong);
  if (mem.bytes() >= bytes) return true;
  mem = PooledMem();
  mem = PooledMem::try_make(memory_, bytes, "activations");
  return mem.get() != nullptr;
}

bool TopOp::run(const Matrix& x, cl_mem mem, std::int64_t k, std::span<TopValue> out) {
  const auto rows = static_cast<std::size_t>(x.rows), most = static_cast<std::size_t>(k);
  const auto number = static_cast<cl_uint>(k);
  std::size_t chunks = chunks_of(static_cast<std::size_t>(x.cols));
  const std::size_t merged = chunks_of(chunks * most);  // fewer, since k is at most half a chunk
  if (!reserve(0, rows * chunks * most) || (chunks > 1 && !reserve(1, rows * merged * most))) return false;
  cl_mem to = scratch_[0].get(), other = scratch_[1].get();
  queue_.launch(kernels_.top(false), {chunks, rows}, mem, static_cast<cl_ulong>(x.offset / sizeof(float)),
                static_cast<cl_uint>(x.cols), number, to);
  while (chunks > 1) {
    const std::size_t n = chunks * most;
    chunks = chunks_of(n);
    std::swap(to, other);
    queue_.launch(kernels_.top(true), {chunks, rows}, other, static_cast<cl_uint>(n), number, to);
  }
  keys_.resize(rows * most);
  queue_.download(to, 0, std::as_writable_bytes(std::span(keys_)));
  for (std::size_t i = 0; i < keys_.size(); ++i) out[i] = value_of(keys_[i]);
  return true;
}

}  // namespace bitnet::gpu
