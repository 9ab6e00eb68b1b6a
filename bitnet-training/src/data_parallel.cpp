// Who owns which parameter, sums in their order, and what is sent when. Messages are process_group.hpp.
#include "bitnet/training/data_parallel.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <new>
#include <numeric>
#include <string>
#include <string_view>
#include <unordered_map>

#include "bitnet/core/error.hpp"
#include "bitnet/core/f32_kernels.hpp"
#include "bitnet/core/memory/hybrid_memory_pool.hpp"
#include "optimizer_common.hpp"

namespace bitnet::training {
namespace {

constexpr std::size_t kMostParameters = 16000;  // two tags each, of 32767

/// The largest parameters first, each to the process that has the least so far.
std::vector<int> share_out(std::span<Parameter* const> parameters, int processes) {
  std::vector<std::size_t> order(parameters.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return parameters[a]->value().size() > parameters[b]->value().size();
  });
  std::vector<std::size_t> load(static_cast<std::size_t>(processes), 0);
  std::vector<int> owners(parameters.size());
  for (const std::size_t i : order) {
    const auto least = std::min_element(load.begin(), load.end());
    *least += parameters[i]->value().size();
    owners[i] = static_cast<int>(least - load.begin());
  }
  return owners;
}

/// Numbers in the order of parts, added pairwise as gradients are.
double pairwise_sum(std::span<double> x) {
  for (std::size_t stride = 1; stride < x.size(); stride *= 2)
    for (std::size_t i = 0; i + stride < x.size(); i += 2 * stride) x[i] += x[i + stride];
  return x.empty() ? 0 : x[0];
}

[[noreturn]] void throw_unrepeatable(const char* why) {
  throw Error(ErrorCode::kUnsupported,
              std::string("no memory for a pass whose gradients are on their way already; a smaller "
                          "micro-batch needs less: ") +
                  why);
}

/// The parameter in the name of an optimiser's state: "moment1/NAME".
std::string_view parameter_in(std::string_view state) { return state.substr(state.find('/') + 1); }

}  // namespace

struct DataParallel::Impl {
  struct Item {
    Parameter* parameter;
    int owner;
    std::size_t at;     // of its values among all values
    std::size_t inbox;  // of an owned one: of the first process' gradient in the inbox
    BitLinear* ternary = nullptr;
    std::size_t codes = 0, scales = 0;  // of a ternary one: first byte and first scale
    bool as_codes = false;              // how it travelled last
    bool complete = false;              // its gradient, in the step that runs
    std::size_t size() const { return parameter->value().size(); }
  };

  Impl(const ExecutionContext& context_in, ProcessGroup& group_in, std::span<Parameter* const> parameters,
       std::span<BitLinear* const> ternary);
  int tag(std::size_t i) const { return static_cast<int>(1 + i); }                        // gradients
  int weight_tag(std::size_t i) const { return static_cast<int>(1 + items.size() + i); }  // and states
  bool mine(const Item& item) const { return item.owner == rank; }
  template <class Body>
  void for_others(Body&& body) const {
    for (int other = 0; other < size; ++other)
      if (other != rank) body(other);
  }

  void set_parts(std::int64_t count);
  void keep(std::int64_t part);
  void merge(Item& item, std::int64_t part, bool last);
  void complete(std::size_t i);
  void post_receives();
  void add_up(const Item& item);
  void watch(Tape& tape) {
    tape.watch_gradients([this](Node* node) {
      if (const auto it = index.find(node); it != index.end()) complete(it->second);
    });
  }
  double part_loss(Tape& tape, std::int64_t part, std::int64_t sequences, std::int64_t micro_batch,
                   const Pass& pass);
  void send_weights();
  void send_codes();
  void take_codes();
  void move_state(Optimizer& own, Optimizer* all, bool to_first);
  std::unordered_map<std::string_view, int> owners() const;

  const ExecutionContext& context;
  ProcessGroup& group;
  int rank, size;
  std::shared_ptr<HybridMemoryPool> memory;
  std::vector<Item> items;
  std::unordered_map<const Node*, std::size_t> index;
  std::size_t values = 0;
  std::int64_t parts = 1, local = 1;       // of the batch, of this process
  std::vector<MemoryArray<float>> levels;  // [log2(local)] sums of 2^level parts that wait, each [values]
  MemoryArray<float> inbox;                // gradients of the others, in the order of processes
  MemoryArray<std::uint8_t> codes;
  MemoryArray<float> scales;
  std::vector<double> losses, all_losses;    // [local], [parts]
  std::vector<double> squares, all_squares;  // [items], [processes, items]
  std::vector<double> owned_squares;
  std::vector<float*> addends;  // [processes]
  bool receiving = false, sending = false;
};

DataParallel::Impl::Impl(const ExecutionContext& context_in, ProcessGroup& group_in,
                         std::span<Parameter* const> parameters, std::span<BitLinear* const> ternary)
    : context(context_in), group(group_in), rank(group.rank()), size(group.size()), memory(context.memory()) {
  if (size > 1 && parameters.size() > kMostParameters)
    throw Error(ErrorCode::kUnsupported, std::to_string(parameters.size()) +
                                             " parameters; several processes train at most " +
                                             std::to_string(kMostParameters));
  const std::vector<int> owners = share_out(parameters, size);
  std::size_t received = 0, n_codes = 0, n_scales = 0, n_owned = 0;
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    Item item{parameters[i], owners[i], values, received};
    values += item.size();
    if (mine(item)) {
      received += item.size() * static_cast<std::size_t>(size - 1);
      ++n_owned;
    }
    index[parameters[i]->variable().node()] = i;
    items.push_back(item);
  }
  for (BitLinear* l : ternary) {
    const auto it = index.find(l->weight().variable().node());
    if (it == index.end()) continue;
    Item& item = items[it->second];
    item.ternary = l;
    item.codes = n_codes;
    item.scales = n_scales;
    n_codes += l->ternary()->code_bytes();
    n_scales += l->ternary()->scales().size();
  }
  if (size > 1) {
    inbox = MemoryArray<float>(*memory, received, "gradients", 64);
    codes = MemoryArray<std::uint8_t>(*memory, n_codes, "ternary weights", 64);
    scales = MemoryArray<float>(*memory, n_scales, "ternary weights", 64);
  }
  squares.resize(items.size());
  all_squares.resize(items.size() * static_cast<std::size_t>(size));
  owned_squares.resize(n_owned);
  addends.resize(static_cast<std::size_t>(size));
  set_parts(size);
}

void DataParallel::Impl::set_parts(std::int64_t count) {
  if (!fits(count, size))
    throw Error(ErrorCode::kInvalidArgument, std::to_string(size) + " processes cannot compute " +
                                                 std::to_string(count) +
                                                 " parts of a batch: each takes 1, 2, 4, … of them");
  parts = count;
  local = count / size;
  levels.clear();
  for (int level = 0; level < static_cast<int>(std::bit_width(static_cast<std::uint64_t>(local - 1)));
       ++level)
    levels.emplace_back(*memory, values, "gradients", 64);
  losses.resize(static_cast<std::size_t>(local));
  all_losses.resize(static_cast<std::size_t>(parts));
}

/// Adds what waits to the gradient of part `part`, the one that it is the right neighbour of; the last part
/// gets all that waits.
void DataParallel::Impl::merge(Item& item, std::int64_t part, bool last) {
  const F32Kernels& f = tested_f32_kernels(context.isa());
  float* g = item.parameter->grad().data();
  for (std::size_t level = 0; level < levels.size(); ++level) {
    const bool waits = (part >> level & 1) != 0;
    if (!waits && !last) break;
    if (!waits) continue;
    const float* left = levels[level].data() + item.at;
    for_chunks(context, item.size(),
               [&](std::size_t at, std::size_t count) { f.add(left + at, g + at, count); });
  }
}

/// Merges a part that is not the last one, and lets the sum wait for its neighbour.
void DataParallel::Impl::keep(std::int64_t part) {
  const auto level = static_cast<std::size_t>(std::countr_one(static_cast<std::uint64_t>(part)));
  for (Item& item : items) {
    item.parameter->finish_grad();
    merge(item, part, false);
    std::copy_n(item.parameter->grad().data(), item.size(), levels[level].data() + item.at);
  }
}

/// The gradient of parameter i will not change any more in this step.
void DataParallel::Impl::complete(std::size_t i) {
  Item& item = items[i];
  if (item.complete) return;
  item.complete = true;
  item.parameter->finish_grad();
  merge(item, local - 1, true);
  if (size == 1) return;
  if (!mine(item)) {
    sending = true;
    group.send(std::as_bytes(item.parameter->grad()), item.owner, tag(i));
  }
  group.progress();
}

void DataParallel::Impl::post_receives() {
  if (receiving) return;
  receiving = true;
  for (std::size_t i = 0; i < items.size(); ++i) {
    if (!mine(items[i])) continue;
    std::size_t at = items[i].inbox;
    for_others([&](int other) {
      group.receive(std::as_writable_bytes(inbox.span().subspan(at, items[i].size())), other, tag(i));
      at += items[i].size();
    });
  }
}

/// The sum of all processes' gradients of an owned parameter, pairwise in their order.
void DataParallel::Impl::add_up(const Item& item) {
  const F32Kernels& f = tested_f32_kernels(context.isa());
  float* const g = item.parameter->grad().data();
  std::size_t at = item.inbox;
  for (int p = 0; p < size; ++p) {
    addends[static_cast<std::size_t>(p)] = p == rank ? g : inbox.data() + at;
    if (p != rank) at += item.size();
  }
  for_chunks(context, item.size(), [&](std::size_t begin, std::size_t count) {
    for (std::size_t stride = 1; stride < addends.size(); stride *= 2)
      for (std::size_t p = 0; p + stride < addends.size(); p += 2 * stride)
        f.add(addends[p + stride] + begin, addends[p] + begin, count);
    if (rank != 0) std::copy_n(addends[0] + begin, count, g + begin);
  });
}

/// Loss and gradient of this process' part number `part`.
double DataParallel::Impl::part_loss(Tape& tape, std::int64_t part, std::int64_t sequences,
                                     std::int64_t micro_batch, const Pass& pass) {
  for (Item& item : items) item.parameter->zero_grad();
  const std::int64_t first = (rank * local + part) * sequences;
  double loss = 0;
  for (std::int64_t done = 0; done < sequences; done += micro_batch) {
    const bool last = part + 1 == local && done + micro_batch >= sequences;
    if (last && size > 1) watch(tape);
    loss += pass(first + done, std::min(micro_batch, sequences - done));
  }
  return loss;
}

DataParallel::DataParallel(const ExecutionContext& context, ProcessGroup& group,
                           std::span<Parameter* const> parameters, std::span<BitLinear* const> ternary)
    : impl_(std::make_unique<Impl>(context, group, parameters, ternary)) {}
DataParallel::~DataParallel() {
  if (impl_->receiving || impl_->sending) impl_->group.withdraw();
}

bool DataParallel::fits(std::int64_t parts, int processes) noexcept {
  if (parts < 1 || parts % processes != 0) return false;
  return processes == 1 || std::has_single_bit(static_cast<std::uint64_t>(parts / processes));
}
std::span<const double> DataParallel::squares() const noexcept { return impl_->squares; }
void DataParallel::set_parts(std::int64_t parts) { impl_->set_parts(parts); }
std::int64_t DataParallel::parts() const noexcept { return impl_->parts; }
int DataParallel::owner(std::size_t parameter) const noexcept { return impl_->items[parameter].owner; }

std::vector<Parameter*> DataParallel::owned() const {
  std::vector<Parameter*> all;
  for (const Impl::Item& item : impl_->items)
    if (impl_->mine(item)) all.push_back(item.parameter);
  return all;
}

double DataParallel::gradients(Tape& tape, std::int64_t batch, std::int64_t micro_batch, const Pass& pass) {
  Impl& m = *impl_;
  if (batch % m.parts != 0)
    throw Error(ErrorCode::kInvalidArgument, "a batch of " + std::to_string(batch) +
                                                 " sequences cannot be cut into " + std::to_string(m.parts) +
                                                 " parts");
  struct Unwatched {
    Tape& tape;
    ~Unwatched() { tape.watch_gradients({}); }
  } unwatched{tape};
  if (m.size > 1) m.post_receives();
  for (Impl::Item& item : m.items) item.complete = false;
  try {
    for (std::int64_t part = 0; part < m.local; ++part) {
      m.losses[static_cast<std::size_t>(part)] = m.part_loss(tape, part, batch / m.parts, micro_batch, pass);
      if (part + 1 < m.local) m.keep(part);
    }
  } catch (const Error& e) {
    if (!m.sending || e.code() != ErrorCode::kOutOfMemory) throw;
    throw_unrepeatable(e.what());
  } catch (const std::bad_alloc& e) {
    if (!m.sending) throw;
    throw_unrepeatable(e.what());
  }
  for (std::size_t i = 0; i < m.items.size(); ++i) m.complete(i);
  if (m.size == 1) return pairwise_sum(m.losses);
  m.group.wait();
  m.receiving = m.sending = false;
  for (const Impl::Item& item : m.items)
    if (m.mine(item)) m.add_up(item);
  m.group.gather(std::as_bytes(std::span(m.losses)), std::as_writable_bytes(std::span(m.all_losses)));
  return pairwise_sum(m.all_losses);
}

double DataParallel::step(Optimizer& optimizer, float lr, float decay, float clip) {
  Impl& m = *impl_;
  const std::size_t n = m.items.size();
  optimizer.sum_squares(m.context, m.owned_squares);
  for (std::size_t i = 0, next = 0; i < n; ++i)
    m.squares[i] = m.mine(m.items[i]) ? m.owned_squares[next++] : 0.0;
  m.group.gather(std::as_bytes(std::span(m.squares)), std::as_writable_bytes(std::span(m.all_squares)));
  for (std::size_t i = 0; i < n; ++i)
    m.squares[i] = m.all_squares[static_cast<std::size_t>(m.items[i].owner) * n + i];
  const double norm = global_norm(m.squares);
  if (std::isfinite(norm)) optimizer.apply(m.context, norm, lr, decay, clip);
  return norm;
}

/// Begins to send and to receive weights as f32, those that do not come as codes.
void DataParallel::Impl::send_weights() {
  for (std::size_t i = 0; i < items.size(); ++i) {
    Item& item = items[i];
    item.as_codes = item.ternary && item.ternary->lambda() == 1 &&
                    item.ternary->ternary()->options().gradient == StraightThrough::kIdentity;
    if (item.ternary) item.ternary->set_ternarised_elsewhere(item.as_codes && !mine(item));
    if (item.as_codes) continue;
    const std::span<float> values_of = item.parameter->value();
    if (mine(item))
      for_others([&](int other) { group.send(std::as_bytes(values_of), other, weight_tag(i)); });
    else
      group.receive(std::as_writable_bytes(values_of), item.owner, weight_tag(i));
  }
}

/// Begins to exchange the others as codes and scales.
void DataParallel::Impl::send_codes() {
  for (std::size_t i = 0; i < items.size(); ++i) {
    const Item& item = items[i];
    if (!item.as_codes) continue;
    const TernaryCache& cache = *item.ternary->ternary();
    const auto c = codes.span().subspan(item.codes, cache.code_bytes());
    const auto s = scales.span().subspan(item.scales, cache.scales().size());
    if (mine(item)) {
      cache.pack(context, c);
      std::copy(cache.scales().begin(), cache.scales().end(), s.begin());
      for_others([&](int other) {
        group.send(std::as_bytes(c), other, weight_tag(i));
        group.send(std::as_bytes(s), other, weight_tag(i));
      });
      group.progress();
    } else {
      group.receive(std::as_writable_bytes(c), item.owner, weight_tag(i));
      group.receive(std::as_writable_bytes(s), item.owner, weight_tag(i));
    }
  }
}

void DataParallel::Impl::take_codes() {
  for (const Item& item : items)
    if (item.as_codes && !mine(item))
      item.ternary->assign(context, codes.span().subspan(item.codes, item.ternary->ternary()->code_bytes()),
                           scales.span().subspan(item.scales, item.ternary->ternary()->scales().size()));
}

void DataParallel::refresh(const std::function<void()>& refresh) {
  Impl& m = *impl_;
  if (m.size == 1) return refresh();
  m.group.exchange([&] {
    m.send_weights();
    // Latent weights that came as f32, and learned scales, are ternarised here.
    const bool needs = std::any_of(m.items.begin(), m.items.end(),
                                   [](const Impl::Item& item) { return item.ternary && !item.as_codes; });
    if (needs) m.group.wait();
    refresh();
    m.send_codes();
  });
  m.take_codes();
}

void DataParallel::gather_weights() {
  Impl& m = *impl_;
  m.group.exchange([&] {
    for (std::size_t i = 0; i < m.items.size(); ++i) {
      const Impl::Item& item = m.items[i];
      if (!item.as_codes || item.owner == 0) continue;  // process 0 has the others
      const std::span<float> values = item.parameter->value();
      if (m.rank == 0)
        m.group.receive(std::as_writable_bytes(values), item.owner, m.weight_tag(i));
      else if (m.mine(item))
        m.group.send(std::as_bytes(values), 0, m.weight_tag(i));
    }
  });
}

void DataParallel::spread_weights() {
  for (Impl::Item& item : impl_->items) {
    impl_->group.broadcast(std::as_writable_bytes(item.parameter->value()));
    item.as_codes = false;
    if (item.ternary) item.ternary->set_ternarised_elsewhere(false);
  }
}

/// The owners of parameters by name.
std::unordered_map<std::string_view, int> DataParallel::Impl::owners() const {
  std::unordered_map<std::string_view, int> all;
  for (const Item& item : items) all[item.parameter->name()] = item.owner;
  return all;
}

/// The state of all parameters in process 0's `all` from the optimisers of their owners, or to them.
void DataParallel::Impl::move_state(Optimizer& own, Optimizer* all, bool to_first) {
  const auto pass = [&](std::span<std::byte> bytes, int other, bool sends) {
    sends ? group.send(bytes, other, 1) : group.receive(bytes, other, 1);
  };
  group.exchange([&] {
    std::unordered_map<std::string, std::span<std::byte>> here;
    for (const OptimizerState& state : own.state()) {
      if (rank == 0)
        here[state.name] = state.bytes;
      else
        pass(state.bytes, 0, to_first);
    }
    if (!all) return;
    const auto owner_of = owners();
    for (const OptimizerState& state : all->state()) {
      // Each process has its own in the order in which they stand here.
      if (const int owner = owner_of.at(parameter_in(state.name)); owner != 0) {
        pass(state.bytes, owner, !to_first);
        continue;
      }
      const std::span<std::byte> ours = here.at(state.name);
      if (to_first)
        std::memcpy(state.bytes.data(), ours.data(), ours.size());
      else
        std::memcpy(ours.data(), state.bytes.data(), ours.size());
    }
  });
}

void DataParallel::gather_state(Optimizer& mine, Optimizer* all) {
  impl_->move_state(mine, all, true);
  if (all) all->set_steps(mine.steps());
}

void DataParallel::spread_state(Optimizer& mine, Optimizer* all) {
  impl_->move_state(mine, all, false);
  mine.set_steps(impl_->group.of_first(all ? all->steps() : std::int64_t{0}));
}

}  // namespace bitnet::training
