// The tape's arena, its list of steps, and the reuse of gradient buffers. Ops are in ops.cpp and
// attention.cpp.
#include "bitnet/training/tape.hpp"

#include <algorithm>
#include <cstring>

#include "bitnet/core/error.hpp"
#include "bitnet/core/hash64.hpp"
#include "bitnet/core/memory/hybrid_memory_pool.hpp"
#include "bitnet/core/memory/memory_handle.hpp"

namespace bitnet::training {
namespace {

constexpr std::size_t kBlock = std::size_t{1} << 21;  // one huge page

std::size_t round_up(std::size_t n, std::size_t to) { return (n + to - 1) / to * to; }

MemoryBlock allocate_block(HybridMemoryPool& pool, std::size_t size) {
  size = round_up(size, kBlock);
  return with_context("training needs " + std::to_string(size >> 20) + " MiB more for activations",
                      [&] { return MemoryBlock(pool, size, kMaxAlignment, "training tape"); });
}

}  // namespace

std::span<float> Variable::grad() const noexcept {
  const Node* n = node_->grad_owner ? node_->grad_owner : node_;
  if (!n->grad || !n->grad_written) return {};
  return {n->grad, size()};
}

Parameter::Parameter(const ExecutionContext& context, std::string name, std::int64_t rows, std::int64_t cols,
                     bool decay)
    : name_(std::move(name)), decay_(decay), memory_(context.memory()) {
  if (rows <= 0 || cols <= 0 || rows > (std::int64_t{1} << 40) / cols)
    throw Error(ErrorCode::kInvalidArgument, "parameter '" + name_ + "' cannot have " + std::to_string(rows) +
                                                 " x " + std::to_string(cols) + " elements");
  const auto count = static_cast<std::size_t>(rows * cols);
  with_context("parameter '" + name_ + "'", [&] {
    value_ = MemoryArray<float>(*memory_, count, "parameters", 64);
    grad_ = MemoryArray<float>(*memory_, count, "gradients", 64);
  });
  node_.value = value_.data();
  node_.grad = grad_.data();
  node_.rows = rows;
  node_.cols = cols;
  node_.needs_grad = true;
  node_.persistent = true;
}

void Parameter::finish_grad() noexcept {
  if (!node_.grad_written) std::fill_n(node_.grad, size(), 0.0f);
  node_.grad_written = true;
}

struct Tape::Impl {
  struct Step {
    Node* out;
    void* closure;
    void (*call)(void*);
  };
  struct FreeGrad {
    std::size_t count;
    float* data;
  };
  std::vector<MemoryBlock> blocks;
  std::size_t block = 0, used = 0;  // the next byte of blocks[block]
  std::vector<Step> steps;
  std::vector<FreeGrad> free_grads;  // buffers whose node is done, for reuse within the backward pass

  std::unique_ptr<Tape> inner;
  Impl* outer = nullptr;  // of the outermost tape, where this is an inner one

  /// The parameters of the last watched pass, by the last step that wrote their gradients.
  struct Last {
    std::int64_t step;
    Node* node;
  };
  std::function<void(Node*)> done;
  std::vector<Last> plan;
  std::uint64_t planned_pass = 0;  // what pass() was
  std::vector<Node*> touched;      // parameters of the pass that runs
  std::int64_t step = 0;           // of it, counted from its beginning

  std::size_t bytes() const {
    std::size_t total = 0;
    for (const MemoryBlock& b : blocks) total += b.size();
    return total;
  }
  /// Ops and shapes of the recorded pass.
  std::uint64_t pass() const {
    Hash64 hash;
    for (const Step& s : steps)
      hash.add(reinterpret_cast<std::uintptr_t>(s.call))
          .add(static_cast<std::uint64_t>(s.out->rows))
          .add(static_cast<std::uint64_t>(s.out->cols));
    return hash.value();
  }
  void touch(Node* n) {
    if (n->last_step < 0) touched.push_back(n);
    n->last_step = step;
  }
  void forget_touched() {
    for (Node* n : touched) n->last_step = -1;
    touched.clear();
  }
  void begin_watched() {
    forget_touched();
    if (const std::uint64_t now = pass(); now != planned_pass) {
      plan.clear();
      planned_pass = now;
    }
  }
  void end_watched() {
    for (const Last& last : plan)
      if (last.node->last_step != last.step)
        throw Error(ErrorCode::kInternal, "a gradient was written after it was said to be complete");
    if (plan.empty()) {
      for (Node* n : touched) plan.push_back({n->last_step, n});
      std::sort(plan.begin(), plan.end(), [](const Last& a, const Last& b) { return a.step < b.step; });
    }
    forget_touched();
  }
};

Tape::Tape(const ExecutionContext& context, bool record, const PrecisionPolicy& precision)
    : context_(context), record_(record), precision_(precision), impl_(std::make_unique<Impl>()) {
  precision_.validate(Workload::kTraining);
}
Tape::~Tape() = default;

void* Tape::bytes(std::size_t size) {
  size = round_up(std::max<std::size_t>(size, 1), 64);
  Impl& m = *impl_;
  while (m.block < m.blocks.size() && m.used + size > m.blocks[m.block].size()) {
    ++m.block;
    m.used = 0;
  }
  if (m.block == m.blocks.size())
    m.blocks.push_back(allocate_block(*context_.memory(), std::max(size, m.bytes() / 4)));
  void* p = m.blocks[m.block].bytes().data() + m.used;
  m.used += size;
  return p;
}

float* Tape::floats(std::size_t count) { return static_cast<float*>(bytes(count * sizeof(float))); }

Variable Tape::make(std::int64_t rows, std::int64_t cols, bool needs_grad) {
  const Variable out = make_without_values(rows, cols, needs_grad);
  out.node()->value = floats(static_cast<std::size_t>(rows * cols));
  return out;
}

Variable Tape::make_without_values(std::int64_t rows, std::int64_t cols, bool needs_grad) {
  Node* n = ::new (bytes(sizeof(Node))) Node();
  n->rows = rows;
  n->cols = cols;
  n->needs_grad = needs_grad && record_;
  return Variable(n);
}

Variable Tape::make_straight_through(Variable x) {
  Variable out = make(x.rows(), x.cols(), x.needs_grad());
  out.node()->grad_owner = x.node()->grad_owner ? x.node()->grad_owner : x.node();
  return out;
}

Variable Tape::make_view(Variable x, std::int64_t rows, std::int64_t cols) {
  if (rows <= 0 || cols <= 0 || x.rows() * x.cols() != rows * cols)
    throw Error(ErrorCode::kInvalidArgument, "a view of " + std::to_string(rows) + " x " +
                                                 std::to_string(cols) + " values of a variable of " +
                                                 std::to_string(x.rows()) + " x " + std::to_string(x.cols()));
  Node* n = ::new (bytes(sizeof(Node))) Node();
  n->value = x.node()->value;
  n->rows = rows;
  n->cols = cols;
  n->needs_grad = x.needs_grad();
  n->grad_owner = x.node()->grad_owner ? x.node()->grad_owner : x.node();
  return Variable(n);
}

Variable Tape::make_leaf(Variable x) {
  Node* n = ::new (bytes(sizeof(Node))) Node();
  n->value = x.node()->value;
  n->rows = x.rows();
  n->cols = x.cols();
  n->needs_grad = x.needs_grad() && record_;
  return Variable(n);
}

Tape& Tape::inner() {
  if (!impl_->inner) {
    impl_->inner = std::make_unique<Tape>(context_, record_, precision_);
    impl_->inner->impl_->outer = impl_->outer ? impl_->outer : impl_.get();
  }
  return *impl_->inner;
}

void Tape::push(Node* out, void* closure, void (*call)(void*)) {
  impl_->steps.push_back({out, closure, call});
}

float* Tape::borrow(std::size_t count) {
  auto& pool = impl_->free_grads;
  const auto it = std::find_if(pool.begin(), pool.end(), [&](const auto& f) { return f.count == count; });
  if (it == pool.end()) return floats(count);
  float* const data = it->data;
  pool.erase(it);
  return data;
}

void Tape::give_back(float* floats, std::size_t count) { impl_->free_grads.push_back({count, floats}); }

Tape::GradTarget Tape::grad_target(Variable x) {
  Node* n = x.node()->grad_owner ? x.node()->grad_owner : x.node();
  if (!n->grad) n->grad = borrow(static_cast<std::size_t>(n->rows * n->cols));
  Impl& watched = impl_->outer ? *impl_->outer : *impl_;
  if (n->persistent && watched.done) watched.touch(n);
  const bool accumulate = n->grad_written;
  n->grad_written = true;
  return {n->grad, accumulate};
}

void Tape::watch_gradients(std::function<void(Node*)> done) {
  impl_->forget_touched();
  impl_->done = std::move(done);
}

void Tape::backward(Variable loss) {
  if (!record_ || loss.rows() != 1 || loss.cols() != 1 || !loss.needs_grad())
    throw Error(ErrorCode::kInvalidArgument,
                "backward() starts from a recorded scalar that depends on a parameter");
  if (impl_->done) impl_->begin_watched();
  grad_target(loss).data[0] = 1.0f;
  run_backward();
}

void Tape::backward(Variable out, std::span<const float> grad) {
  if (!record_ || !out.needs_grad() || grad.size() != out.value().size())
    throw Error(
        ErrorCode::kInvalidArgument,
        "backward() starts from a recorded variable that depends on a parameter, and as many gradients");
  if (impl_->done) impl_->begin_watched();
  std::copy(grad.begin(), grad.end(), grad_target(out).data);
  run_backward();
}

void Tape::run_backward() {
  Impl& m = *impl_;
  std::size_t told = 0;
  m.step = 0;
  for (auto it = m.steps.rbegin(); it != m.steps.rend(); ++it, ++m.step) {
    Node* out = it->out;
    if (!out->grad_written) continue;  // nothing downstream depends on it
    it->call(it->closure);
    // All consumers of `out` came later on the tape, so its gradient is no longer needed.
    if (out->grad != out->value) give_back(out->grad, static_cast<std::size_t>(out->rows * out->cols));
    out->grad = nullptr;
    out->grad_written = false;
    if (m.done)
      while (told < m.plan.size() && m.plan[told].step <= m.step) m.done(m.plan[told++].node);
  }
  m.steps.clear();
  if (m.done) m.end_watched();
}

void Tape::reset() {
  Impl& m = *impl_;
  std::size_t total = m.used;
  for (std::size_t b = 0; b < m.block; ++b) total += m.blocks[b].size();
  m.block = m.used = 0;
  m.steps.clear();
  m.free_grads.clear();
  if (m.blocks.size() > 1) {  // one block of what this step took from now on
    m.blocks.clear();         // before the new one, which may not fit beside them
    m.blocks.push_back(allocate_block(*context_.memory(), total));
  }
}

void Tape::release() noexcept {
  Impl& m = *impl_;
  m.steps.clear();
  m.free_grads.clear();
  m.blocks.clear();
  m.block = m.used = 0;
  if (m.inner) m.inner->release();
}

std::size_t Tape::bytes_held() const noexcept {
  return impl_->bytes() + (impl_->inner ? impl_->inner->bytes_held() : 0);
}

}  // namespace bitnet::training
