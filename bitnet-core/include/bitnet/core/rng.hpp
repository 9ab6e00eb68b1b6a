#pragma once
// Random numbers that are the same on every platform: xoshiro256** with splitmix64 seeding
// (Blackman & Vigna 2018, "Scrambled linear pseudorandom number generators").
#include <array>
#include <cstdint>

namespace bitnet {

/// A random stream. Same seed → same numbers everywhere. Not thread-safe; copy it to branch a stream.
class Rng {
 public:
  using State = std::array<std::uint64_t, 4>;

  explicit Rng(std::uint64_t seed = 0) noexcept;
  std::uint64_t next() noexcept;
  /// Uniform in [0, 1), 53 bits.
  double uniform() noexcept;
  /// Uniform integer in [0, n), unbiased; n > 0.
  std::uint64_t below(std::uint64_t n) noexcept;
  /// Standard normal (Box–Muller; two uniforms a number, nothing cached, so State is the whole state).
  double normal() noexcept;

  /// For checkpoints.
  const State& state() const noexcept { return s_; }
  void set_state(const State& state) noexcept { s_ = state; }

 private:
  State s_;
};

}  // namespace bitnet
