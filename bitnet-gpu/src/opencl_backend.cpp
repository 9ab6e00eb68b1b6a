// The OpenCL backend: buffers, repacking of ternary weights, and the launch of quantise_rows and
// ternary_matmul. Everything else of a transformer step is refused (supports() says so) and is run elsewhere
// by the caller.
#include "opencl_backend.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "bitnet/core/memory/hybrid_memory_pool.hpp"
#include "device_memory_pool.hpp"
#include "kernels.hpp"
#include "program_cache.hpp"
#include "read_bandwidth.hpp"

namespace bitnet::gpu {
namespace {

constexpr std::int64_t kTritsPerWord = 16;       // 2-bit codes in a u32
constexpr std::int64_t kMaxIn = 524'287 * 16;    // ternary_matmul.cl: the int32 bound
constexpr std::int64_t kMaxOut = (1 << 30);      // column numbers are u32 in the kernel
constexpr std::int64_t kChunkRows = 256;         // rows quantised at once: bounds the scratch memory
constexpr std::int64_t kBatchRows = 8;           // BN_ROWS of the program for batches
constexpr std::size_t kPreferredWorkGroup = 64;  // the kernels' default

class OpenClBuffer final : public Buffer {
 public:
  OpenClBuffer(PooledMem mem, std::size_t bytes) : Buffer(bytes), mem_(std::move(mem)) {}
  cl_mem mem() const { return mem_.get(); }

 private:
  PooledMem mem_;
};

// codes u32 [words, out_stride] and scales f32, as ternary_matmul.cl says.
class OpenClTernary final : public PreparedWeights {
 public:
  OpenClTernary(const LinearWeights& w, PooledMem codes_mem, PooledMem scales_mem, cl_uint n_words,
                cl_uint stride)
      : PreparedWeights(w.out, w.in, true, codes_mem.bytes() + scales_mem.bytes()),
        codes(std::move(codes_mem)),
        scales(std::move(scales_mem)),
        words(n_words),
        out_stride(stride),
        rows_per_scale(static_cast<cl_uint>(w.rows_per_scale)) {}
  const PooledMem codes;
  const PooledMem scales;
  const cl_uint words;
  const cl_uint out_stride;
  const cl_uint rows_per_scale;
};

std::int64_t round_up(std::int64_t n, std::int64_t to) { return (n + to - 1) / to * to; }

template <class... Args>
void launch(cl_command_queue queue, cl_kernel kernel, std::string_view name,
            std::array<std::size_t, 2> global, std::size_t local, const Args&... args) {
  cl_uint index = 0;
  (check_op(clSetKernelArg(kernel, index++, sizeof args, &args), "clSetKernelArg"), ...);
  const std::size_t local_size[2] = {local, 1};
  check_op(clEnqueueNDRangeKernel(queue, kernel, 2, nullptr, global.data(), local_size, 0, nullptr, nullptr),
           fmt::format("launch of {}", name));
}

class OpenClBackend final : public Backend {
 public:
  OpenClBackend(const ClDevice& device, const std::string& build_options,
                std::shared_ptr<HybridMemoryPool> staging)
      : device_(device), build_options_(build_options), staging_(std::move(staging)) {
    const cl_context_properties properties[] = {CL_CONTEXT_PLATFORM,
                                                reinterpret_cast<cl_context_properties>(device.platform), 0};
    cl_int status = CL_SUCCESS;
    context_ = ClContext(clCreateContext(properties, 1, &device.id, nullptr, nullptr, &status));
    check(status, "clCreateContext");
    memory_ = std::make_shared<DeviceMemoryPool>(device.device.name, context_.get(),
                                                 device.device.memory_bytes, device.max_allocation);
    queue_ = ClQueue(clCreateCommandQueue(context_.get(), device.id, 0, &status));
    check(status, "clCreateCommandQueue");

    ProgramCache programs(context_.get(), device.id, build_options);
    std::string sizes;
    if (device.max_work_group < kPreferredWorkGroup) {
      const std::size_t n = std::bit_floor(std::max<std::size_t>(device.max_work_group, 1));
      sizes = fmt::format("-DBN_QUANT_WG={0} -DBN_OUT_WG={0}", n);
    }
    quantize_ = programs.kernel(kernels::quantize_rows, sizes, "quantize_rows");
    matmul_one_ = programs.kernel(kernels::ternary_matmul, sizes + " -DBN_ROWS=1", "ternary_matmul");
    matmul_many_ = programs.kernel(kernels::ternary_matmul, fmt::format("{} -DBN_ROWS={}", sizes, kBatchRows),
                                   "ternary_matmul");
    quantize_group_ = group_size(quantize_.get());
    matmul_group_ = group_size(matmul_one_.get());
  }

  std::string_view name() const noexcept override { return device_.device.name; }
  std::string description() const override { return device_.device.description; }
  bool supports(BackendOp op) const noexcept override { return op == BackendOp::kLinear; }
  std::size_t available_memory() const override { return memory_->free_bytes(); }
  MemoryResource* memory() const noexcept override { return memory_.get(); }

 private:
  // The kernel's own reqd_work_group_size, so that a tunable is written down once.
  std::size_t group_size(cl_kernel kernel) const {
    std::size_t size[3] = {};
    check(clGetKernelWorkGroupInfo(kernel, device_.id, CL_KERNEL_COMPILE_WORK_GROUP_SIZE, sizeof size, size,
                                   nullptr),
          "clGetKernelWorkGroupInfo");
    return size[0];
  }

  PooledMem create(std::size_t bytes, MemoryTag tag) { return {memory_, bytes, tag}; }

  /// A buffer with a copy of host memory.
  PooledMem copy(const void* from, std::size_t bytes, MemoryTag tag) {
    PooledMem mem = create(bytes, tag);
    if (bytes > 0)
      check(clEnqueueWriteBuffer(queue_.get(), mem.get(), CL_TRUE, 0, bytes, from, 0, nullptr, nullptr),
            "clEnqueueWriteBuffer");
    return mem;
  }

  cl_mem mem_of(const Buffer& buffer) const {
    const auto* own = dynamic_cast<const OpenClBuffer*>(&buffer);
    if (own == nullptr)
      throw Error(ErrorCode::kInvalidArgument, fmt::format("{}: a buffer of another backend", name()));
    return own->mem();
  }

  const OpenClTernary& own(const PreparedWeights& weights) const {
    const auto* w = dynamic_cast<const OpenClTernary*>(&weights);
    if (w == nullptr)
      throw Error(ErrorCode::kInvalidArgument,
                  fmt::format("{}: weights prepared by another backend", name()));
    return *w;
  }

  // An element offset for the kernels, which know floats, not bytes; the seam checks that it is whole.
  static cl_ulong float_offset(const Matrix& m) { return m.offset / sizeof(float); }

  [[noreturn]] void refuse(BackendOp op) const {
    throw Error(ErrorCode::kUnsupported, fmt::format("{} does not run {}", name(), to_string(op)));
  }

  std::optional<double> do_measure_bandwidth() override {
    ProgramCache programs(context_.get(), device_.id, build_options_);
    return read_bandwidth(device_, queue_.get(), memory_, programs);
  }

  BufferPtr do_allocate(std::size_t bytes, MemoryTag tag) override {
    PooledMem mem = create(bytes, tag);
    const cl_uchar zero = 0;
    check(
        clEnqueueFillBuffer(queue_.get(), mem.get(), &zero, sizeof zero, 0, mem.bytes(), 0, nullptr, nullptr),
        "clEnqueueFillBuffer");
    check(clFinish(queue_.get()), "clFinish");  // drivers allocate lazily: let it fail here, not in an op
    return std::make_shared<OpenClBuffer>(std::move(mem), bytes);
  }

  void do_upload(Buffer& to, std::size_t offset, std::span<const std::byte> from) override {
    if (from.empty()) return;
    check_op(clEnqueueWriteBuffer(queue_.get(), mem_of(to), CL_TRUE, offset, from.size(), from.data(), 0,
                                  nullptr, nullptr),
             "clEnqueueWriteBuffer");
  }

  void do_download(const Buffer& from, std::size_t offset, std::span<std::byte> to) override {
    if (to.empty()) return;
    check_op(clEnqueueReadBuffer(queue_.get(), mem_of(from), CL_TRUE, offset, to.size(), to.data(), 0,
                                 nullptr, nullptr),
             "clEnqueueReadBuffer");
  }

  PreparedPtr do_prepare(const LinearWeights& w) override;

  PreparedPtr do_prepare_embedding(const LinearWeights&) override {
    throw Error(ErrorCode::kUnsupported,
                fmt::format("{} does not run {} or {}", name(), to_string(BackendOp::kEmbed),
                            to_string(BackendOp::kLogits)));
  }

  // Scratch for kChunkRows quantised rows of `stride` bytes; grows in prepare, so that linear() allocates
  // nothing.
  void reserve_rows(std::int64_t stride) {
    if (inv_scales_.get() == nullptr) {
      inv_scales_ = create(kChunkRows * sizeof(float), "activations");
      sums_ = create(kChunkRows * sizeof(cl_int), "activations");
    }
    const auto bytes = static_cast<std::size_t>(kChunkRows * stride);
    if (rows_.bytes() < bytes) rows_ = create(bytes, "activations");
  }

  void do_linear(std::span<const PreparedWeights* const> weights, Matrix x,
                 std::span<const Matrix> outs) override;
  void quantize_chunk(cl_mem x, cl_ulong offset, cl_uint rows, cl_uint cols);
  void multiply_chunk(const OpenClTernary& w, cl_uint rows, cl_mem y, cl_ulong offset);

  void do_embed(const PreparedWeights&, std::span<const std::int32_t>, Matrix) override {
    refuse(BackendOp::kEmbed);
  }
  void do_rms_norm(Matrix, const Buffer&, float, Matrix) override { refuse(BackendOp::kRmsNorm); }
  void do_rope(Matrix, std::span<const std::int32_t>, const Buffer&, std::int64_t) override {
    refuse(BackendOp::kRope);
  }
  void do_attention(const AttentionArgs&) override { refuse(BackendOp::kAttention); }
  void do_gated_activation(Activation, Matrix, Matrix, Matrix) override {
    refuse(BackendOp::kGatedActivation);
  }
  void do_add(Matrix, Matrix) override { refuse(BackendOp::kAdd); }
  void do_logits(const PreparedWeights&, Matrix, std::span<const std::int32_t>, Matrix) override {
    refuse(BackendOp::kLogits);
  }
  void do_sync() override { check_op(clFinish(queue_.get()), "clFinish"); }

  ClDevice device_;
  std::string build_options_;
  std::shared_ptr<HybridMemoryPool> staging_;  // of the host
  ClContext context_;
  std::shared_ptr<DeviceMemoryPool> memory_;  // its users issue to queue_ alone
  ClQueue queue_;                             // in order
  ClKernel quantize_, matmul_one_, matmul_many_;
  std::size_t quantize_group_ = 0;
  std::size_t matmul_group_ = 0;
  PooledMem rows_;        // i8 [kChunkRows, stride]
  PooledMem inv_scales_;  // f32 [kChunkRows]
  PooledMem sums_;        // i32 [kChunkRows]
};

PreparedPtr OpenClBackend::do_prepare(const LinearWeights& w) {
  if (!w.ternary())
    throw Error(ErrorCode::kUnsupported, fmt::format("{} runs linears with ternary weights only, not {} ones",
                                                     name(), to_string(w.dense_type)));
  if (w.in > kMaxIn || w.out > kMaxOut)
    throw Error(ErrorCode::kUnsupported,
                fmt::format("{}: a linear of {} x {} exceeds {} x {}", name(), w.out, w.in, kMaxOut, kMaxIn));
  const std::int64_t words = round_up(w.in, kTritsPerWord) / kTritsPerWord;
  const std::int64_t stride = round_up(w.out, static_cast<std::int64_t>(matmul_group_));
  constexpr std::uint32_t kAllZeroTrits = 0x55555555u;
  PmrResource staging(*staging_, "staging");
  std::pmr::vector<std::uint32_t> codes(static_cast<std::size_t>(words * stride), kAllZeroTrits, &staging);
  std::vector<std::int8_t> scratch;
  for (std::int64_t o = 0; o < w.out; ++o) {
    const std::int8_t* const row = w.trits_of(o, o + 1, scratch);
    for (std::int64_t k = 0; k < w.in; ++k) {
      if (row[k] < -1 || row[k] > 1)
        throw Error(ErrorCode::kInvalidArgument,
                    fmt::format("trit [{}, {}] is {}, not -1, 0 or 1", o, k, row[k]));
      // Code 1 is there already: adding the trit makes it trit + 1 without touching its neighbours.
      const auto shift = static_cast<unsigned>(2 * (k % kTritsPerWord));
      codes[static_cast<std::size_t>(k / kTritsPerWord * stride + o)] += static_cast<std::uint32_t>(row[k])
                                                                         << shift;
    }
  }
  reserve_rows(words * kTritsPerWord);
  return std::make_shared<OpenClTernary>(w, copy(codes.data(), codes.size() * sizeof codes[0], "weights"),
                                         copy(w.scales.data(), w.scales.size_bytes(), "weights"),
                                         static_cast<cl_uint>(words), static_cast<cl_uint>(stride));
}

void OpenClBackend::quantize_chunk(cl_mem x, cl_ulong offset, cl_uint rows, cl_uint cols) {
  const auto stride = static_cast<cl_uint>(round_up(cols, kTritsPerWord));
  launch(queue_.get(), quantize_.get(), "quantize_rows", {rows * quantize_group_, 1}, quantize_group_, x,
         offset, cols, stride, rows_.get(), inv_scales_.get(), sums_.get());
}

void OpenClBackend::multiply_chunk(const OpenClTernary& w, cl_uint rows, cl_mem y, cl_ulong offset) {
  const bool one = rows == 1;
  const std::size_t row_groups = one ? 1 : static_cast<std::size_t>(round_up(rows, kBatchRows) / kBatchRows);
  launch(queue_.get(), one ? matmul_one_.get() : matmul_many_.get(), "ternary_matmul",
         {w.out_stride, row_groups}, matmul_group_, w.codes.get(), rows_.get(), sums_.get(),
         inv_scales_.get(), w.scales.get(), w.rows_per_scale, w.words, static_cast<cl_uint>(w.out()),
         w.out_stride, rows, y, offset);
}

void OpenClBackend::do_linear(std::span<const PreparedWeights* const> weights, Matrix x,
                              std::span<const Matrix> outs) {
  const cl_mem x_mem = mem_of(*x.buffer);
  const cl_ulong x_offset = float_offset(x);
  for (std::int64_t first = 0; first < x.rows; first += kChunkRows) {
    const auto rows = static_cast<cl_uint>(std::min(kChunkRows, x.rows - first));
    quantize_chunk(x_mem, x_offset + static_cast<cl_ulong>(first * x.cols), rows,
                   static_cast<cl_uint>(x.cols));
    for (std::size_t i = 0; i < weights.size(); ++i)
      multiply_chunk(own(*weights[i]), rows, mem_of(*outs[i].buffer),
                     float_offset(outs[i]) + static_cast<cl_ulong>(first * outs[i].cols));
  }
  check_op(clFlush(queue_.get()), "clFlush");
}

}  // namespace

std::unique_ptr<Backend> make_opencl_backend(const ClDevice& device, const std::string& build_options,
                                             std::shared_ptr<HybridMemoryPool> staging) {
  return with_context(device.device.name, [&]() -> std::unique_ptr<Backend> {
    return std::make_unique<OpenClBackend>(device, build_options, std::move(staging));
  });
}

}  // namespace bitnet::gpu
