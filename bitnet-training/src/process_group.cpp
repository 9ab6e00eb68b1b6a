// Collective calls made of messages, the group of one, and the group of threads. MPI is mpi_group.cpp.
#include "bitnet/training/process_group.hpp"

#include <algorithm>
#include <array>
#include <condition_variable>
#include <cstring>
#include <limits>
#include <mutex>

#include "bitnet/core/error.hpp"

namespace bitnet::training {
namespace {

/// Of collective calls; all other messages have tags above it.
constexpr int kCollective = 0;

class SingleProcess final : public ProcessGroup {
 public:
  int rank() const noexcept override { return 0; }
  int size() const noexcept override { return 1; }
  void send(std::span<const std::byte>, int, int) override { refuse(); }
  void receive(std::span<std::byte>, int, int) override { refuse(); }
  void progress() override {}
  void wait() override {}
  void withdraw() noexcept override {}
  void leave(std::string_view) noexcept override {}

 private:
  [[noreturn]] static void refuse() {
    throw Error(ErrorCode::kInvalidArgument, "a group of one process has nobody to send to");
  }
};

/// What the members of a group of threads share. All under the mutex, copying included: a member that has
/// withdrawn may free its buffers.
struct Exchange {
  struct Message {
    int from, to, tag;
    const std::byte* source;  ///< null: a receiver that waits
    std::byte* target;        ///< null: a sender that waits
    std::size_t size;
    int begun_by() const noexcept { return source ? from : to; }
  };
  explicit Exchange(int size) : begun(static_cast<std::size_t>(size), 0) {}
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<Message> waiting;  // in the order in which they were begun
  std::vector<int> begun;        // by each member and not done
  bool broken = false;
  std::string reason;
};

class ThreadMember final : public ProcessGroup {
 public:
  ThreadMember(std::shared_ptr<Exchange> exchange, int rank, int size)
      : exchange_(std::move(exchange)), rank_(rank), size_(size) {}
  int rank() const noexcept override { return rank_; }
  int size() const noexcept override { return size_; }
  void send(std::span<const std::byte> bytes, int to, int tag) override {
    begin({rank_, to, tag, bytes.data(), nullptr, bytes.size()}, to);
  }
  void receive(std::span<std::byte> bytes, int from, int tag) override {
    begin({from, rank_, tag, nullptr, bytes.data(), bytes.size()}, from);
  }
  void progress() override {}
  void wait() override {
    std::unique_lock lock(exchange_->mutex);
    int& mine = exchange_->begun[static_cast<std::size_t>(rank_)];
    exchange_->changed.wait(lock, [&] { return mine == 0 || exchange_->broken; });
    check();
  }
  void withdraw() noexcept override {
    const std::lock_guard lock(exchange_->mutex);
    std::erase_if(exchange_->waiting, [this](const Exchange::Message& m) { return m.begun_by() == rank_; });
    exchange_->begun[static_cast<std::size_t>(rank_)] = 0;
  }
  void leave(std::string_view why) noexcept override {
    const std::lock_guard lock(exchange_->mutex);
    exchange_->waiting.clear();
    if (!exchange_->broken) try {
        exchange_->reason = "process " + std::to_string(rank_) + " has left: " + std::string(why);
      } catch (const std::bad_alloc&) {  // the others hear of it without the reason
      }
    exchange_->broken = true;
    exchange_->changed.notify_all();
  }

 private:
  void check() const {
    if (exchange_->broken) throw Error(ErrorCode::kIo, exchange_->reason);
  }
  void begin(const Exchange::Message& m, int other) {
    if (other < 0 || other >= size_ || other == rank_)
      throw Error(ErrorCode::kInvalidArgument, "process " + std::to_string(rank_) + " of " +
                                                   std::to_string(size_) + " cannot exchange messages with " +
                                                   std::to_string(other));
    if (m.size == 0) return;
    Exchange& e = *exchange_;
    const std::lock_guard lock(e.mutex);
    check();
    const bool sends = m.source != nullptr;
    const auto partner = std::find_if(e.waiting.begin(), e.waiting.end(), [&](const Exchange::Message& w) {
      return w.from == m.from && w.to == m.to && w.tag == m.tag && (w.target != nullptr) == sends;
    });
    if (partner == e.waiting.end()) {
      e.waiting.push_back(m);
      ++e.begun[static_cast<std::size_t>(rank_)];
      return;
    }
    if (partner->size != m.size)
      throw Error(ErrorCode::kInternal, "a message of " + std::to_string(m.size) + " bytes where " +
                                            std::to_string(partner->size) + " are expected");
    if (sends)
      std::memcpy(partner->target, m.source, m.size);
    else
      std::memcpy(m.target, partner->source, m.size);
    e.waiting.erase(partner);
    --e.begun[static_cast<std::size_t>(other)];
    e.changed.notify_all();
  }

  std::shared_ptr<Exchange> exchange_;
  int rank_, size_;
};

}  // namespace

void ProcessGroup::broadcast(std::span<std::byte> bytes) {
  if (bytes.empty()) return;
  exchange([&] {
    if (rank() == 0)
      for (int to = 1; to < size(); ++to) send(bytes, to, kCollective);
    else
      receive(bytes, 0, kCollective);
  });
}

void ProcessGroup::broadcast(std::string& text) {
  const auto length = of_first(static_cast<std::uint64_t>(text.size()));
  text.resize(static_cast<std::size_t>(length));
  broadcast(std::as_writable_bytes(std::span(text.data(), text.size())));
}

void ProcessGroup::gather(std::span<const std::byte> mine, std::span<std::byte> all) {
  if (all.size() != mine.size() * static_cast<std::size_t>(size()))
    throw Error(ErrorCode::kInvalidArgument, "gathering " + std::to_string(mine.size()) +
                                                 " bytes of each of " + std::to_string(size()) +
                                                 " processes into " + std::to_string(all.size()));
  if (mine.empty()) return;
  exchange([&] {
    for (int other = 0; other < size(); ++other) {
      const auto part = all.subspan(static_cast<std::size_t>(other) * mine.size(), mine.size());
      if (other == rank()) {
        std::memcpy(part.data(), mine.data(), mine.size());
      } else {
        receive(part, other, kCollective);
        send(mine, other, kCollective);
      }
    }
  });
}

bool ProcessGroup::any(bool mine) {
  if (size() == 1) return mine;
  const auto byte = static_cast<std::byte>(mine ? 1 : 0);
  std::vector<std::byte> all(static_cast<std::size_t>(size()));
  gather(std::span(&byte, 1), all);
  return std::any_of(all.begin(), all.end(), [](std::byte b) { return b != std::byte{0}; });
}

std::unique_ptr<ProcessGroup> single_process() { return std::make_unique<SingleProcess>(); }

std::vector<std::unique_ptr<ProcessGroup>> thread_group(int size) {
  if (size < 1) throw Error(ErrorCode::kInvalidArgument, "a group of " + std::to_string(size) + " processes");
  std::vector<std::unique_ptr<ProcessGroup>> members;
  const auto exchange = std::make_shared<Exchange>(size);
  for (int rank = 0; rank < size; ++rank)
    members.push_back(std::make_unique<ThreadMember>(exchange, rank, size));
  return members;
}

}  // namespace bitnet::training
