#pragma once
// The curves of a run as a page, out of its log.jsonl: while it lives, or afterwards. Who writes the log is
// the trainer; charts are bitnet-core's report/chart.hpp. Not thread-safe.
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace bitnet::training {

/// What a log says, read as it grows. Where a run was resumed, what it had done beyond that step counts as
/// never done.
class Curves {
 public:
  /// Of a log that need not be there yet.
  explicit Curves(std::filesystem::path log) : log_(std::move(log)) {}

  /// Reads the lines that were added since the last call; lines that are no records of a run, as a killed one
  /// leaves half of one, are passed over. Throws Error(kIo).
  void update();
  /// The page: figures, charts of loss, learning rate, gradient norm, zero fraction, flip rate and scales by
  /// layer, samples. Charts have at most 400 points a curve, each the mean of its neighbours. A browser loads
  /// it again after `refresh_seconds`; 0: never, the run is over.
  std::string html(int refresh_seconds) const;

 private:
  struct Step {
    std::int64_t step;
    double loss, learning_rate, gradient_norm, zero_fraction, flip_rate, tokens_per_second, seconds;
    std::vector<double> scales;  // [layers]
  };
  struct Scored {
    std::int64_t step, tokens;
    double nll, perplexity, bits_per_byte;
  };
  struct Sample {
    std::int64_t step;
    std::string text;
  };
  void read_line(std::string_view line);
  void forget_after(std::int64_t step);
  std::vector<Scored> comparable() const;
  std::vector<std::vector<std::string>> figures() const;

  std::filesystem::path log_;
  std::uint64_t read_ = 0;  // bytes of the log
  std::int64_t steps_ = 0, parameters_ = 0;
  std::string quantization_;
  std::vector<Step> train_;
  std::vector<Scored> evaluations_;  // by step; of one step that of the whole text is the second
  std::optional<Scored> held_out_;
  std::vector<Sample> samples_;
  std::vector<std::int64_t> skipped_;
};

}  // namespace bitnet::training
