// See weight_writer.hpp.
#include "weight_writer.hpp"

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

namespace bitnet::gpu {
namespace {

constexpr std::size_t kPieceBytes = std::size_t{8} << 20;  // of a staging buffer: some ms of a bus
constexpr MemoryTag kTag = "weights";
constexpr std::size_t kGrainBytes = std::size_t{64} << 10;  // of a thread's share

std::byte* map(cl_command_queue queue, cl_mem mem, std::size_t bytes) {
  cl_int status = CL_SUCCESS;
  void* const host = clEnqueueMapBuffer(queue, mem, CL_TRUE, CL_MAP_WRITE_INVALIDATE_REGION, 0, bytes, 0,
                                        nullptr, nullptr, &status);
  check(status, "clEnqueueMapBuffer");
  return static_cast<std::byte*>(host);
}

/// Unmapped at the end, whatever happens meanwhile.
class Mapping {
 public:
  Mapping(cl_command_queue queue, cl_mem mem, std::size_t bytes)
      : queue_(queue), mem_(mem), host_(map(queue, mem, bytes)) {}
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() {
    if (host_ != nullptr) clEnqueueUnmapMemObject(queue_, mem_, host_, 0, nullptr, nullptr);
  }
  std::byte* host() const noexcept { return host_; }
  void end() {
    check(clEnqueueUnmapMemObject(queue_, mem_, std::exchange(host_, nullptr), 0, nullptr, nullptr),
          "clEnqueueUnmapMemObject");
  }

 private:
  cl_command_queue queue_;
  cl_mem mem_;
  std::byte* host_;
};

}  // namespace

/// Calls of the driver alone: it may find only now that it has no memory.
template <class Body>
decltype(auto) WeightWriter::driving(std::size_t bytes, Body&& body) const {
  try {
    return body();
  } catch (const Error& e) {
    if (e.code() != ErrorCode::kOutOfMemory) throw;
    memory_->refuse(bytes, kTag, e.what());
  }
}

void WeightWriter::fill_on_threads(std::size_t begin, std::size_t end, std::size_t unit_bytes, std::byte* to,
                                   const Fill& fill) const {
  const std::size_t grain = std::max<std::size_t>(kGrainBytes / unit_bytes, 1);
  context_->parallel_for(end - begin, grain, [&](std::size_t first, std::size_t last) {
    fill(begin + first, begin + last, to + first * unit_bytes);
  });
}

void WeightWriter::write_in_place(cl_mem to, std::size_t units, std::size_t unit_bytes, const Fill& fill) {
  Mapping mapping =
      driving(units * unit_bytes, [&] { return Mapping(queue_.get(), to, units * unit_bytes); });
  fill_on_threads(0, units, unit_bytes, mapping.host(), fill);
  mapping.end();
}

void WeightWriter::write_staged(const PooledMem& to, std::size_t units, std::size_t unit_bytes,
                                const Fill& fill) {
  const std::size_t per_piece = std::clamp<std::size_t>(kPieceBytes / unit_bytes, 1, units);
  std::array<ClMem, 2> mem;
  std::array<std::optional<Mapping>, 2> host;
  std::array<ClEvent, 2> travelled;
  // Waits for a buffer that was used before as long as launches may still read it.
  const bool in_use = to.used_before();
  const auto wait_for = [&](const ClEvent& event) {
    check(queue_.wait(event), "clWaitForEvents of an upload");
  };
  try {
    std::size_t at = 0;
    for (std::size_t begin = 0; begin < units; begin += per_piece, at ^= 1) {
      const std::size_t end = std::min(begin + per_piece, units);
      if (!host[at])
        driving(per_piece * unit_bytes, [&] {
          mem[at] = make_staging(per_piece * unit_bytes);
          host[at].emplace(queue_.transfers(), mem[at].get(), per_piece * unit_bytes);
        });
      wait_for(travelled[at]);  // the other one travels meanwhile
      fill_on_threads(begin, end, unit_bytes, host[at]->host(), fill);
      travelled[at] = driving(units * unit_bytes, [&] {
        return queue_.upload_later(to.get(), begin * unit_bytes,
                                   {host[at]->host(), (end - begin) * unit_bytes}, in_use);
      });
      queue_.flush();
    }
    for (const ClEvent& e : travelled) wait_for(e);
  } catch (...) {
    for (const ClEvent& e : travelled) queue_.wait(e);
    throw;
  }
}

ClMem WeightWriter::make_staging(std::size_t bytes) const {
  cl_int status = CL_SUCCESS;
  ClMem mem(
      clCreateBuffer(memory_->context(), CL_MEM_READ_ONLY | CL_MEM_ALLOC_HOST_PTR, bytes, nullptr, &status));
  check(status, "clCreateBuffer of a staging buffer");
  return mem;
}

PooledMem WeightWriter::write(std::size_t units, std::size_t unit_bytes, const Fill& fill) {
  PooledMem to(memory_, units * unit_bytes, kTag);
  if (in_place_) {
    write_in_place(to.get(), units, unit_bytes, fill);
  } else {
    write_staged(to, units, unit_bytes, fill);
  }
  return to;
}

PooledMem WeightWriter::copy(std::span<const std::byte> from) {
  if (in_place_ && !from.empty())
    return write(from.size(), 1, [from](std::size_t begin, std::size_t end, std::byte* to) {
      std::copy(from.begin() + static_cast<std::ptrdiff_t>(begin),
                from.begin() + static_cast<std::ptrdiff_t>(end), to);
    });
  PooledMem to(memory_, from.size(), kTag);
  if (!from.empty()) driving(from.size(), [&] { queue_.upload(to.get(), 0, from, to.used_before()); });
  return to;
}

}  // namespace bitnet::gpu
