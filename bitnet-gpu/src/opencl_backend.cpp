// The OpenCL backend: which kernels an op of a transformer step is made of, and with which arguments. Kernels
// are built by kernel_set.cpp, weights packed by prepared.cpp; products of quantised rows are
// linear_op.cpp's, attention is attention_op.cpp's. These two hold some launches back, so that the next op
// may be part of them.
#include "opencl_backend.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "attention_op.hpp"
#include "command_queue.hpp"
#include "device_memory_pool.hpp"
#include "device_traits.hpp"
#include "kernel_set.hpp"
#include "linear_op.hpp"
#include "prepared.hpp"
#include "program_cache.hpp"
#include "read_bandwidth.hpp"
#include "step_inputs.hpp"
#include "top_op.hpp"
#include "weight_writer.hpp"

namespace bitnet::gpu {
namespace {

class OpenClBuffer final : public Buffer {
 public:
  OpenClBuffer(PooledMem mem, std::size_t bytes) : Buffer(bytes), mem_(std::move(mem)) {}
  cl_mem mem() const { return mem_.get(); }

 private:
  PooledMem mem_;
};

ClContext make_context(const ClDevice& device) {
  const cl_context_properties properties[] = {CL_CONTEXT_PLATFORM,
                                              reinterpret_cast<cl_context_properties>(device.platform), 0};
  cl_int status = CL_SUCCESS;
  ClContext context(clCreateContext(properties, 1, &device.id, nullptr, nullptr, &status));
  check(status, "clCreateContext");
  return context;
}

// An element offset for the kernels, which know floats, not bytes; the seam checks that it is whole.
cl_ulong float_offset(const Matrix& m) { return m.offset / sizeof(float); }

/// Rows first … first + n − 1 of m.
Matrix part(Matrix m, std::int64_t first, std::int64_t n) {
  m.offset += static_cast<std::size_t>(first * m.cols) * sizeof(float);
  m.rows = n;
  return m;
}

int gate_of(Activation f) { return f == Activation::kRelu2 ? 1 : 2; }  // BN_GATE

/// `row`, or where that is null what the tables say.
Tuning sizes_for(const ClDevice& device, const Options& options, const DeviceTraits& traits,
                 const TuningRow* row) {
  const KernelForm form = traits.wide ? KernelForm::kWide : KernelForm::kGroups;
  return row != nullptr ? tuning_with(*row, device.max_work_group, form, options)
                        : tuning_of(device.own_name, device.max_work_group, form, options);
}

class OpenClBackend final : public Backend {
 public:
  OpenClBackend(const ClDevice& device, const Options& options,
                std::shared_ptr<const ExecutionContext> context, const TuningRow* tuning)
      : device_(device),
        context_(make_context(device)),
        traits_(traits_of(device, options.kernels)),
        builds_ahead_(tuning == nullptr),
        memory_(std::make_shared<DeviceMemoryPool>(device.device.name, context_.get(),
                                                   device.memory_within(options.memory_limit),
                                                   device.max_allocation, traits_.zero_copy)),
        queue_(context_.get(), device.id, traits_.own_transfers),
        programs_(context_.get(), device.id, traits_.build_flags(options.build_options),
                  options.program_folder.value_or(default_program_folder())),
        kernels_(programs_, traits_, sizes_for(device, options, traits_, tuning), device.id),
        inputs_(queue_, memory_),
        writer_(std::move(context), queue_, memory_, traits_.zero_copy),
        linear_(queue_, kernels_, memory_),
        attention_(queue_, kernels_, inputs_, memory_, traits_),
        top_(queue_, kernels_, memory_) {
    if (!options.kernels.record.value_or(kernels_.tuning().records()) || !queue_.record(device.platform))
      return;
    memory_->on_release([this](std::span<const cl_mem> buffers) { queue_.forget(buffers); });
  }
  ~OpenClBackend() override {
    memory_->on_release(nullptr);
    queue_.stop_recording();  // while the kernels are there
  }

  std::string_view name() const noexcept override { return device_.device.name; }
  std::string description() const override {
    return fmt::format("{}; sizes of work-groups: {}", device_.device.description,
                       kernels_.tuning().origin());
  }
  bool supports(BackendOp) const noexcept override { return true; }
  bool supports_extended_linears() const noexcept override { return traits_.doubles; }
  std::size_t available_memory() const override { return memory_->free_bytes(); }
  MemoryResource* memory() const noexcept override { return memory_.get(); }
  bool top_saves(std::int64_t k) const noexcept override { return !traits_.zero_copy && k <= TopOp::kMost; }
  DeviceStatistics statistics() const override {
    DeviceStatistics s = queue_.statistics();
    s.buffers = memory_->stats().allocations;
    s.reused_buffers = memory_->reused();
    s.waits += s.buffers - s.reused_buffers;  // the pool's, for the memory of each
    s.programs = programs_.programs();
    s.compiled_programs = programs_.compiled();
    return s;
  }

 private:
  PooledMem create(std::size_t bytes, MemoryTag tag) { return {memory_, bytes, tag}; }

  cl_mem mem_of(const Buffer& buffer) const {
    const auto* own = dynamic_cast<const OpenClBuffer*>(&buffer);
    if (own == nullptr)
      throw Error(ErrorCode::kInvalidArgument, fmt::format("{}: a buffer of another backend", name()));
    return own->mem();
  }
  cl_mem mem_of(const Matrix& m) const { return mem_of(*m.buffer); }
  DeviceMatrix on_device(const Matrix& m) const { return {mem_of(m), float_offset(m), m.rows, m.cols}; }

  /// Issues what ops have held back, for the next one that has no use for it.
  void issue_held() {
    linear_.issue();
    attention_.issue();
  }

  template <class T>
  const T& own(const PreparedWeights& weights) const {
    const auto* w = dynamic_cast<const T*>(&weights);
    if (w == nullptr)
      throw Error(ErrorCode::kInvalidArgument,
                  fmt::format("{}: weights prepared by another backend", name()));
    return *w;
  }

  std::optional<double> do_measure_bandwidth() override {
    issue_held();
    return read_bandwidth(device_, traits_, queue_.get(), memory_, programs_);
  }

  BufferPtr do_allocate(std::size_t bytes, MemoryTag tag) override;

  void do_upload(Buffer& to, std::size_t offset, std::span<const std::byte> from) override {
    issue_held();
    in_op([&] { queue_.upload(mem_of(to), offset, from); });
  }
  void do_download(const Buffer& from, std::size_t offset, std::span<std::byte> to) override {
    issue_held();
    queue_.download(mem_of(from), offset, to);
  }

  PreparedPtr do_prepare(const LinearWeights& w) override {
    if (!w.ternary() && w.dense_form == DenseForm::kInt8) return prepared_int8(w, 1);
    if (!w.ternary()) return prepared_dense(w);
    if (w.cols_per_scale == 0 && w.second == nullptr)
      return prepared(w, 0, [&] {
        if (builds_ahead_) kernels_.need_ternary(w.activations);
        return prepare_ternary(w, writer_);
      });
    std::int64_t groups = 1;
    for (const LinearWeights* plane = &w; plane != nullptr; plane = plane->second.get())
      if (plane->cols_per_scale != 0) groups = std::max(groups, plane->in / plane->cols_per_scale);
    return prepared(w, groups, [&] {
      if (builds_ahead_) kernels_.need_groups(w.activations);
      return prepare_extended(w, writer_);
    });
  }

  PreparedPtr do_prepare_embedding(const LinearWeights& w) override {
    return w.dense_form == DenseForm::kInt8 ? prepared_int8(w, 0) : prepared_dense(w);
  }
  void do_prepare_steps(const ModelConfig& c, DType kv_type, std::int64_t page_size) override {
    if (!builds_ahead_) return;
    const AttentionShape shape{kv_type, c.head_dim, page_size, c.n_heads / c.n_kv_heads};
    kernels_.need_steps(shape, attention_.may_divide(c.n_heads, shape), gate_of(c.activation), c.sub_norms);
    if (!traits_.zero_copy) kernels_.top(false);
  }

  PreparedPtr prepared_int8(const LinearWeights& w, std::int64_t groups) {
    return prepared(w, groups, [&] {
      if (builds_ahead_) kernels_.need_int8(w.activations);
      return prepare_int8(w, writer_);
    });
  }
  PreparedPtr prepared_dense(const LinearWeights& w) {
    const DType kept = w.dense_form == DenseForm::kF16 ? DType::kF16 : w.dense_type;
    return prepared(w, 0, [&] {
      if (builds_ahead_) kernels_.need_dense(kept);
      return prepare_dense(w, kept, writer_);
    });
  }

  /// What body() makes of weights whose products take scratch for `groups` groups of columns.
  template <class Body>
  PreparedPtr prepared(const LinearWeights& w, std::int64_t groups, Body&& body) {
    issue_held();
    return with_context(name(), [&]() -> PreparedPtr {
      linear_.reserve(w.in, groups);
      return body();
    });
  }

  /// Ternary products, whatever becomes the rows of integers.
  void multiply(const RowsToQuantize& rows, std::span<const PreparedWeights* const> weights,
                std::span<const Matrix> outs);
  void multiply(const OpenClDense& w, Matrix x, Matrix out);

  void do_linear(std::span<const PreparedWeights* const> weights, Matrix x,
                 std::span<const Matrix> outs) override;
  void do_norm_linear(std::span<const PreparedWeights* const> weights, Matrix x, const Buffer& norm,
                      float eps, Matrix normed, std::span<const Matrix> outs) override;
  void do_gated_linear(Activation f, Matrix gate, Matrix up, const Buffer* norm, float eps,
                       const PreparedWeights& weights, Matrix out) override;
  void do_embed(const PreparedWeights& table, std::span<const std::int32_t> ids, Matrix out) override;
  void do_rms_norm(Matrix x, const Buffer& weight, float eps, Matrix out) override;
  void do_rope(Matrix x, std::span<const std::int32_t> positions, const Buffer& table,
               std::int64_t head_dim) override;
  void do_attention(const AttentionArgs& args) override;
  void do_gated_activation(Activation f, Matrix gate, Matrix up, Matrix out) override;
  void do_add(Matrix x, Matrix y) override;
  void do_logits(const PreparedWeights& head, Matrix hidden, std::span<const std::int32_t> rows,
                 Matrix out) override;
  void do_top(Matrix x, std::int64_t k, std::span<TopValue> out) override {
    issue_held();
    if (k > TopOp::kMost || !top_.run(x, mem_of(x), k, out)) top_of_download(x, k, out);
  }
  void do_sync() override {
    issue_held();
    queue_.finish();
  }
  void profiler_changed() noexcept override { queue_.set_profiler(profiler(), takes_device_times()); }

  /// A kernel of rows.cl, for `items` of each row.
  template <class... Args>
  void launch_rows(const char* kernel, std::int64_t items, std::int64_t rows, const Args&... args) {
    const Kernel& k = kernels_.rows_op(kernel);
    queue_.launch(k, {n_groups(items, k.local[0]), static_cast<std::size_t>(rows)}, args...);
  }

  const ClDevice device_;
  ClContext context_;
  const DeviceTraits traits_;
  const bool builds_ahead_;  // not where candidates are measured, of whose programs some are run
  std::shared_ptr<DeviceMemoryPool> memory_;  // its users issue to queue_ alone
  CommandQueue queue_;
  ProgramCache programs_;
  KernelSet kernels_;
  StepInputs inputs_;
  WeightWriter writer_;
  LinearOp linear_;
  AttentionOp attention_;
  TopOp top_;
};

BufferPtr OpenClBackend::do_allocate(std::size_t bytes, MemoryTag tag) {
  issue_held();
  queue_.finish();  // what fails of earlier work is no want of memory
  PooledMem mem = create(bytes, tag);
  const cl_uchar zero = 0;
  const cl_int status =
      clEnqueueFillBuffer(queue_.get(), mem.get(), &zero, sizeof zero, 0, mem.bytes(), 0, nullptr, nullptr);
  if (means_memory(status)) memory_->refuse(bytes, tag, error_name(status));
  check_op(status, "clEnqueueFillBuffer");
  queue_.finish();
  return std::make_shared<OpenClBuffer>(std::move(mem), bytes);
}

void OpenClBackend::multiply(const RowsToQuantize& rows, std::span<const PreparedWeights* const> weights,
                             std::span<const Matrix> outs) {
  issue_held();
  // A few of them, so that nothing is allocated.
  std::array<DeviceMatrix, 4> some;
  for (std::size_t first = 0; first < weights.size(); first += some.size()) {
    const std::size_t n = std::min(some.size(), weights.size() - first);
    for (std::size_t i = 0; i < n; ++i) some[i] = on_device(outs[first + i]);
    linear_.run(rows, weights.subspan(first, n), std::span(some).first(n));
  }
}

void OpenClBackend::multiply(const OpenClDense& w, Matrix x, Matrix out) {
  const RowsKernel& k = kernels_.dense(w.type, out.rows);
  queue_.launch(
      k.kernel, {n_groups(w.out(), k.kernel.local[0]), n_groups(out.rows, static_cast<std::size_t>(k.rows))},
      w.values.get(), mem_of(x), float_offset(x), static_cast<cl_uint>(w.in()), static_cast<cl_uint>(w.out()),
      static_cast<cl_uint>(out.rows), mem_of(out), float_offset(out));
}

void OpenClBackend::do_linear(std::span<const PreparedWeights* const> weights, Matrix x,
                              std::span<const Matrix> outs) {
  if (weights[0]->ternary()) return multiply({.x = on_device(x)}, weights, outs);
  issue_held();
  for (std::size_t i = 0; i < weights.size(); ++i) {
    if (const auto* const int8 = dynamic_cast<const OpenClInt8*>(weights[i])) {
      linear_.run({.x = on_device(x)}, *int8, on_device(outs[i]));
    } else {
      multiply(own<OpenClDense>(*weights[i]), x, outs[i]);
    }
  }
}

void OpenClBackend::do_norm_linear(std::span<const PreparedWeights* const> weights, Matrix x,
                                   const Buffer& norm, float eps, Matrix normed,
                                   std::span<const Matrix> outs) {
  if (!weights[0]->ternary()) return norm_then_linear(weights, x, norm, eps, normed, outs);
  multiply({.x = on_device(x), .norm = mem_of(norm), .eps = eps}, weights, outs);
}

void OpenClBackend::do_gated_linear(Activation f, Matrix gate, Matrix up, const Buffer* norm, float eps,
                                    const PreparedWeights& weights, Matrix out) {
  if (!weights.ternary()) return gate_then_linear(f, gate, up, norm, eps, weights, out);
  const PreparedWeights* const one = &weights;
  multiply({.x = on_device(gate),
            .gate = gate_of(f),
            .up = on_device(up),
            .norm = norm != nullptr ? mem_of(*norm) : nullptr,
            .eps = eps},
           {&one, 1}, {&out, 1});
}

void OpenClBackend::do_embed(const PreparedWeights& table, std::span<const std::int32_t> ids, Matrix out) {
  issue_held();
  const cl_mem numbers = inputs_.get(ids), to = mem_of(out);
  const cl_ulong offset = float_offset(out);
  const auto cols = static_cast<cl_uint>(out.cols);
  if (const auto* const int8 = dynamic_cast<const OpenClInt8*>(&table)) {
    const auto words = static_cast<cl_uint>(round_up(out.cols, kActivationBlock) / 4);
    launch_rows("embed_i8", out.cols, out.rows, int8->table.get(), int8->scales.get(), numbers, words, cols,
                to, offset);
    return;
  }
  const auto& dense = own<OpenClDense>(table);
  const char* const kernel = dense.type == DType::kF32   ? "embed_f32"
                             : dense.type == DType::kF16 ? "embed_f16"
                                                         : "embed_bf16";
  launch_rows(kernel, out.cols, out.rows, dense.values.get(), numbers, cols, to, offset);
}

void OpenClBackend::do_rms_norm(Matrix x, const Buffer& weight, float eps, Matrix out) {
  issue_held();
  const cl_mem x_mem = mem_of(x), out_mem = mem_of(out);
  const auto cols = static_cast<cl_uint>(x.cols);
  queue_.launch(kernels_.normalize(0, true, false), {static_cast<std::size_t>(x.rows), 1}, x_mem,
                float_offset(x), x_mem, cl_ulong{0}, out_mem, float_offset(out), mem_of(weight), eps, cols,
                cols, x_mem, x_mem, x_mem);
}

void OpenClBackend::do_rope(Matrix x, std::span<const std::int32_t> positions, const Buffer& table,
                            std::int64_t head_dim) {
  linear_.issue();
  attention_.rope(on_device(x), inputs_.get(positions), mem_of(table), head_dim);
}

void OpenClBackend::do_attention(const AttentionArgs& args) {
  linear_.issue();
  attention_.run(args, {on_device(args.q), on_device(args.k), on_device(args.v), on_device(args.out),
                        mem_of(*args.cache.keys), mem_of(*args.cache.values)});
}

void OpenClBackend::do_gated_activation(Activation f, Matrix gate, Matrix up, Matrix out) {
  issue_held();
  launch_rows(f == Activation::kRelu2 ? "relu2_gate" : "silu_gate", gate.cols, gate.rows, mem_of(gate),
              float_offset(gate), mem_of(up), float_offset(up), mem_of(out), float_offset(out),
              static_cast<cl_uint>(gate.cols));
}

void OpenClBackend::do_add(Matrix x, Matrix y) {
  attention_.issue();
  if (linear_.add(on_device(x), on_device(y))) return;
  linear_.issue();
  launch_rows("add_rows", x.cols, x.rows, mem_of(x), float_offset(x), mem_of(y), float_offset(y),
              static_cast<cl_uint>(x.cols));
}

void OpenClBackend::do_logits(const PreparedWeights& head, Matrix hidden, std::span<const std::int32_t> rows,
                              Matrix out) {
  issue_held();
  const auto* const int8 = dynamic_cast<const OpenClInt8*>(&head);
  // Runs of neighbouring rows: nearly always one.
  for (std::size_t first = 0; first < rows.size();) {
    std::size_t n = 1;
    while (n < static_cast<std::size_t>(LinearOp::kChunkRows) && first + n < rows.size() &&
           rows[first + n] == rows[first] + static_cast<std::int32_t>(n))
      ++n;
    const Matrix from = part(hidden, rows[first], static_cast<std::int64_t>(n));
    const Matrix to = part(out, static_cast<std::int64_t>(first), static_cast<std::int64_t>(n));
    if (int8 != nullptr) {
      linear_.run({.x = on_device(from)}, *int8, on_device(to));
    } else {
      multiply(own<OpenClDense>(head), from, to);
    }
    first += n;
  }
  queue_.flush();
}

}  // namespace

std::unique_ptr<Backend> make_opencl_backend(const ClDevice& device, const Options& options,
                                             std::shared_ptr<const ExecutionContext> context,
                                             const TuningRow* tuning) {
  if (context == nullptr) context = std::make_shared<const ExecutionContext>();
  return with_context(device.device.name, [&]() -> std::unique_ptr<Backend> {
    return std::make_unique<OpenClBackend>(device, options, std::move(context), tuning);
  });
}

}  // namespace bitnet::gpu
