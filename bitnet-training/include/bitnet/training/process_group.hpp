#pragma once
// Processes that train one model together, as far as training sees them: messages between numbered members.
// What is sent is src/data_parallel.cpp. MPI is one implementation, behind launched_group(); threads of one
// process, for tests and for trying things out, another. A group's member belongs to one thread at a time.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace bitnet::training {

/// One member's view of its group. Where another member has left, or the network fails, every function throws
/// Error(kIo) with the reason, and the group is of no more use.
class ProcessGroup {
 public:
  virtual ~ProcessGroup() = default;
  ProcessGroup(const ProcessGroup&) = delete;
  ProcessGroup& operator=(const ProcessGroup&) = delete;

  virtual int rank() const noexcept = 0;  ///< 0 … size() − 1; 0 reads and writes the run's files
  virtual int size() const noexcept = 0;

  /// Begins to send `bytes`, which must stay as they are until wait() or withdraw(). Messages from one member
  /// to another with the same tag (0 … 32767) arrive in the order in which they were begun.
  virtual void send(std::span<const std::byte> bytes, int to, int tag) = 0;
  /// Begins to receive a message of exactly that many bytes, which must stay until wait() or withdraw() and
  /// are valid after wait().
  virtual void receive(std::span<std::byte> bytes, int from, int tag) = 0;
  /// Lets what was begun go on; does not wait.
  virtual void progress() = 0;
  /// Returns when all that this member has begun is done.
  virtual void wait() = 0;
  /// Gives up what this member has begun and not waited for, so that its bytes may go: for ways out that do
  /// not come to wait(). The others wait in vain; leave() is to follow. MPI takes no message back that was
  /// begun to be sent: the processes end here and now, as by leave(), where one is not done.
  virtual void withdraw() noexcept = 0;
  /// Ends the run of all others, telling them why. Under MPI the processes end here and now, this one too.
  virtual void leave(std::string_view why) noexcept = 0;

  /// wait() after `begin`; where either throws, what was begun is withdrawn.
  template <class Begin>
  void exchange(Begin&& begin) {
    try {
      begin();
      wait();
    } catch (...) {
      withdraw();
      throw;
    }
  }

  // Each of these is called by all members in the same order, when nothing is begun.
  /// `bytes` of member 0 to all.
  void broadcast(std::span<std::byte> bytes);
  void broadcast(std::string& text);
  /// `mine` of every member, one after the other, to all: `all` is size() times as long.
  void gather(std::span<const std::byte> mine, std::span<std::byte> all);
  /// Whether it is true of one member at least.
  bool any(bool mine);
  /// Returns when all have called it.
  void barrier() { static_cast<void>(any(false)); }
  /// Member 0's value.
  template <class T>
  T of_first(T value) {
    static_assert(std::is_trivially_copyable_v<T>);
    broadcast(std::as_writable_bytes(std::span(&value, 1)));
    return value;
  }

 protected:
  ProcessGroup() = default;
};

/// A group of one.
std::unique_ptr<ProcessGroup> single_process();

/// The members of a group within this process, each for a thread of its own. Members outlive each other.
std::vector<std::unique_ptr<ProcessGroup>> thread_group(int size);

/// What this process was started as: by OpenMPI's mpirun one of its processes, otherwise a group of one. To
/// be called once in a process, and the group must end before main() does. A group that ends by an exception
/// ends the others as leave() does. Throws Error(kUnsupported) where mpirun started several processes of a
/// build without MPI (BITNET_WITH_MPI), and where another launcher did (its PMI_SIZE or SLURM_STEP_NUM_TASKS
/// says so); Error(kIo) where MPI fails.
std::unique_ptr<ProcessGroup> launched_group();

}  // namespace bitnet::training
