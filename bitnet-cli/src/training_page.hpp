#pragma once
// The page of curves beside a run's log, written anew while the run lives. What is on it is bitnet-training's
// curves.hpp.
#include <filesystem>
#include <functional>
#include <string>

#include "bitnet/training/curves.hpp"
#include "common.hpp"

namespace bitnet::cli {

/// curves.html in the output of a run. What goes wrong with it is a message and never ends the run.
class TrainingPage {
 public:
  /// Says where the page will be.
  TrainingPage(const std::filesystem::path& output, std::function<void(const std::string&)> message);
  /// The last page, which no browser loads again.
  ~TrainingPage();
  TrainingPage(const TrainingPage&) = delete;
  TrainingPage& operator=(const TrainingPage&) = delete;
  /// Writes it, unless that was a moment ago.
  void refresh();

 private:
  void write(int refresh_seconds) noexcept;
  std::filesystem::path path_;
  std::function<void(const std::string&)> message_;
  training::Curves curves_;
  Stopwatch watch_;
  double next_ = 0;  // seconds of watch_
  bool failed_ = false;
};

}  // namespace bitnet::cli
