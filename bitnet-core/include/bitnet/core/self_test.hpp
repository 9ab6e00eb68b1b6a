#pragma once
// What the libraries' self-tests of kernels share: kernels of an instruction set are compared with plain
// loops before a process uses them, because on a processor or with a compiler that nobody tried, wrong
// numbers would be text that is nonsense and no error. The tests stand beside the kernels that they test.
#include <atomic>
#include <string_view>

#include "bitnet/core/isa.hpp"

namespace bitnet {

/// Throws Error(kDevice): a self-test of the instruction set called `isa` found `what` ("dot gave … instead
/// of …"). Says how to go on without it, naming the others that this CPU has.
[[noreturn]] void throw_failed_self_test(std::string_view isa, std::string_view what);

/// Which instruction sets' tables of one kind have passed. Thread-safe; for static storage.
class PassedIsas {
 public:
  /// `table` of `isa`, once test(table) has returned; later calls cost a load. Threads that are first at
  /// once each test; a test that throws is made again at the next call.
  template <class Table, class Test>
  const Table& tested(Isa isa, const Table& table, Test&& test) {
    if (!passed_[isa.index].load(std::memory_order_acquire)) {
      test(table);
      passed_[isa.index].store(true, std::memory_order_release);
    }
    return table;
  }

 private:
  std::atomic<bool> passed_[256] = {};  // by Isa::index
};

}  // namespace bitnet
