#pragma once
// The JSONL log of a run: one object a line, appended and flushed as it happens.
#include <cstdint>
#include <filesystem>
#include <fstream>

#include "bitnet/training/checkpoint.hpp"
#include "bitnet/training/config.hpp"
#include "bitnet/training/trainer.hpp"
#include "run_data.hpp"

namespace bitnet::training {

class RunLog {
 public:
  /// Writes nothing: of a process that is not the first.
  RunLog() = default;
  /// Starts a new file, or goes on at the end of an old one, after half a line on a new one. Throws
  /// Error(kIo).
  RunLog(std::filesystem::path path, bool append);
  void start(const TrainConfig& config, std::int64_t step, std::int64_t parameters, const TextFigures& text);
  void write(const Progress& p);
  /// A step that was passed over for its loss.
  void skipped(std::int64_t step, double loss, const LossLevel& level);
  /// `type`: "evaluation" for the validation text, "held_out".
  void write(const char* type, std::int64_t step, const Evaluation& e);
  void write_sample(std::int64_t step, const std::string& prompt, const std::string& text);

 private:
  void line(const std::string& json);
  std::filesystem::path path_;
  std::ofstream out_;
};

}  // namespace bitnet::training
