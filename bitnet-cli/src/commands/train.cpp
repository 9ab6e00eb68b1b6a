// `bitnet train`: a training run as a yaml file says. The run itself is bitnet-training; here are its figures
// on the terminal and Ctrl-C.
#include <ostream>

#include "commands/commands_list.hpp"
#include "common.hpp"
#ifdef BITNET_WITH_TRAINING
#include <optional>

#include "bitnet/training/trainer.hpp"
#include "training_page.hpp"
#include "training_sample.hpp"
#endif

namespace bitnet::cli {
namespace {

#ifdef BITNET_WITH_TRAINING

/// The progress line: drawn over itself on a terminal, one after the other in a file.
class TrainingLines {
 public:
  explicit TrainingLines(Io& io) : io_(io) {}
  ~TrainingLines() {
    if (open_) io_.err << '\n';
  }
  TrainingLines(const TrainingLines&) = delete;
  TrainingLines& operator=(const TrainingLines&) = delete;

  void progress(const std::string& line) {
    if (!io_.err_is_terminal) {
      message(line);
      return;
    }
    const auto limit = static_cast<std::size_t>(std::max(io_.columns - 1, 1));
    io_.err << '\r' << line.substr(0, limit) << "\x1b[K" << std::flush;
    open_ = true;
  }
  void message(const std::string& line) {
    if (open_) io_.err << '\n';
    io_.err << line << std::endl;
    open_ = false;
  }

 private:
  Io& io_;
  bool open_ = false;
};

std::string evaluation_text(const char* text, const training::Evaluation& e) {
  return std::string(text) + " perplexity " + fixed(e.perplexity, 3) + ", bits per byte " +
         fixed(e.bits_per_byte, 4) + " (" + grouped(e.tokens) + " tokens)";
}

int train(const Values& values, Io& io) {
  const auto config = training::TrainConfig::from_yaml_file(values.positionals.at(0));
  const auto context = make_context(values);
  const auto group = training::launched_group();  // the processes that mpirun started, or this one
  training::TrainResult result;
  {
    TrainingLines lines(io);
    training::TrainCallbacks callbacks;
    std::optional<TrainingPage> page;
    callbacks.progress = [&](const training::Progress& p) {
      lines.progress(training::format_progress(p));
      if (page) page->refresh();
    };
    callbacks.evaluation = [&](std::int64_t step, const training::Evaluation& e) {
      lines.message("step " + std::to_string(step) + ": " + evaluation_text("validation", e));
      if (page) page->refresh();
    };
    callbacks.sample = [&](std::int64_t step, const training::WriteSnapshot& write) {
      std::string text = sample_text(config, context, write);
      lines.message("step " + std::to_string(step) + " writes: " + cli::quoted(config.sample_prompt + text));
      return text;
    };
    callbacks.message = [&](const std::string& text) { lines.message(text); };
    callbacks.cancelled = [&io] { return io.is_cancelled(); };
    if (values.flag(opt::kDryRun)) {
      const training::DryRun d =
          training::dry_run(config, callbacks, values.flag(opt::kTrainResume), *context, group.get());
      if (group->rank() != 0) return kOk;
      io.out << training::format_dry_run(d) << "process\t" << human_bytes(peak_memory_bytes())
             << " at the most\n";
      return kOk;
    }
    if (values.flag(opt::kPlot) && group->rank() == 0)
      page.emplace(config.output, [&](const std::string& text) { lines.message(text); });
    result = training::train(config, callbacks, values.flag(opt::kTrainResume), *context, group.get());
  }
  if (group->rank() != 0) return result.cancelled ? kInterrupted : kOk;
  io.err << grouped(result.steps) << " steps, " << grouped(result.tokens) << " tokens in "
         << human_time(result.seconds) << ", peak memory " << human_bytes(peak_memory_bytes()) << '\n';
  if (result.cancelled) {
    io.err << "stopped; --resume continues from the checkpoint in '" << config.output.string() << "'\n";
    return kInterrupted;
  }
  io.out << evaluation_text("validation", result.final_evaluation) << '\n';
  if (result.held_out) io.out << evaluation_text("held-out", *result.held_out) << '\n';
  return kOk;
}

#else

int train(const Values&, Io&) {
  throw Error(ErrorCode::kUnsupported,
              "this build has no training (it was configured with BITNET_BUILD_TRAINING=OFF)");
}

#endif

}  // namespace

const Command kTrainCommand{
    .name = "train",
    .summary = "train a model as a yaml file says",
    .usage = "CONFIG [--resume] [--dry-run] [--plot]",
    .description =
        "CONFIG names the data, the model's shape (or a base and an adapter's) and the schedule; "
        "configs/train/ has examples. A line on "
        "standard "
        "error shows loss, learning rate, tokens/s, time to go, zero fraction and flip rate; the same goes "
        "to a JSONL "
        "log. Ctrl-C writes a checkpoint; --resume continues from the newest. --plot keeps a page of curves, "
        "curves.html, in the output. --dry-run "
        "checks the configuration, the data and the output, and prints parameters, memory and time per "
        "epoch. Started by mpirun, all processes train one model.",
    .example =
        "bitnet train configs/train/demo.yaml\nbitnet train configs/train/demo.yaml --resume\nbitnet train "
        "configs/train/demo.yaml --dry-run",
    .arguments = {"CONFIG"},
    .options = {&opt::kTrainResume, &opt::kDryRun, &opt::kPlot, &opt::kThreads, &opt::kIsa,
                &opt::kMemoryLimit},
    .body = train,
};

}  // namespace bitnet::cli
