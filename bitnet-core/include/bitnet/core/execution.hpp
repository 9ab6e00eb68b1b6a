#pragma once
// The machine as the caller wants it used: how many threads, which instruction set, from which memory.
// Passed, never global.
#include <cstddef>
#include <memory>
#include <optional>
#include <type_traits>

#include "bitnet/core/isa.hpp"

namespace bitnet {

class HybridMemoryPool;

/// The whole cores that the affinity mask and the cgroup's CPU quota leave to this process, 1 to 1024.
std::size_t usable_cores();

/// A set of worker threads and an ISA. Shared by reference between objects that run on it; all members are
/// thread-safe. Results of the project's algorithms never depend on `threads()`. The workers are made by the
/// first parallel_for() that needs them; after one they spin for 2 ms, waiting for the next, and then sleep.
/// A process has at most as many such threads, callers included, as cores: contexts beyond that share those
/// of another one. A oneTBB arena does what is nested, what comes while the threads are at work for another
/// caller or context, and all work of a context for whose threads there are not cores enough. After fork()
/// the child must make contexts of its own: its parent's have no threads there, and parallel_for() would wait
/// for ever.
class ExecutionContext {
 public:
  struct Options {
    /// 0: BITNET_THREADS; where that is 0 or unset, usable_cores().
    std::size_t threads = 0;
    /// Empty: default_isa().
    std::optional<Isa> isa;
    /// Null: default_memory_pool(), which has no limit and whose blocks of 8 MiB and more go back to the
    /// system as they are freed.
    std::shared_ptr<HybridMemoryPool> memory = nullptr;
  };

  ExecutionContext();
  /// Throws Error(kInvalidArgument | kUnsupported) on a bad BITNET_THREADS or BITNET_ISA, more than 1024
  /// threads, or an `isa` that isa_from_name() would refuse, with its words.
  explicit ExecutionContext(const Options& options);
  ~ExecutionContext();
  ExecutionContext(const ExecutionContext&) = delete;
  ExecutionContext& operator=(const ExecutionContext&) = delete;

  std::size_t threads() const noexcept;
  Isa isa() const noexcept;
  /// Where what runs here takes its buffers and temporaries. Who keeps a block keeps the pool. May throw what
  /// making a pool throws, at the first call.
  const std::shared_ptr<HybridMemoryPool>& memory() const;

  /// Calls body(begin, end) on disjoint ranges that cover [0, n), each at least `grain` long except the last,
  /// and returns when all are done. The cut into ranges depends on n, grain and threads() only. An exception
  /// of `body` is rethrown here, after the others have ended. May be nested.
  template <class Body>
  void parallel_for(std::size_t n, std::size_t grain, Body&& body) const {
    using B = std::remove_reference_t<Body>;
    run(
        n, grain, [](void* b, std::size_t begin, std::size_t end) { (*static_cast<B*>(b))(begin, end); },
        const_cast<void*>(static_cast<const void*>(std::addressof(body))));
  }

 private:
  void run(std::size_t n, std::size_t grain, void (*call)(void*, std::size_t, std::size_t), void* body) const;
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace bitnet
