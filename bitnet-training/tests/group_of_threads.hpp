#pragma once
// Tests of several processes within one: each member of a group on a thread of its own.
#include <string>
#include <thread>
#include <vector>

#include "bitnet/core/error.hpp"
#include "bitnet/training/process_group.hpp"

namespace bitnet::training {

/// Calls body(group) on a thread for each of `size` members. What a member throws ends the others, as it does
/// between processes. Returns each one's Error, empty where there was none.
template <class Body>
std::vector<std::string> on_members(int size, Body&& body) {
  auto members = thread_group(size);
  std::vector<std::string> errors(members.size());
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < members.size(); ++i)
    threads.emplace_back([&, i] {
      try {
        body(*members[i]);
      } catch (const Error& e) {
        errors[i] = e.what();
        members[i]->leave(e.what());
      }
    });
  for (std::thread& t : threads) t.join();
  return errors;
}

}  // namespace bitnet::training
