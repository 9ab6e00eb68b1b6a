#pragma once
// A text that is easy to learn, for tests of whole runs and of their data.
#include <string>

#include "bitnet/core/rng.hpp"

namespace bitnet::training {

inline std::string sample_text(std::uint64_t seed, int sentences) {
  const char* const subjects[] = {"The cat", "A dog", "My sister", "The old king", "Nobody"};
  const char* const verbs[] = {"saw", "loved", "followed", "forgot"};
  const char* const objects[] = {"the river", "a small house", "the garden", "seven stars",
                                 "the \xC3\xA9toile"};
  Rng rng(seed);
  std::string text;
  for (int i = 0; i < sentences; ++i) {
    text +=
        std::string(subjects[rng.below(5)]) + " " + verbs[rng.below(4)] + " " + objects[rng.below(5)] + ". ";
    if (i % 4 == 3) text += "\n";
    if (i % 40 == 39) text += "\n";
  }
  return text;
}

}  // namespace bitnet::training
