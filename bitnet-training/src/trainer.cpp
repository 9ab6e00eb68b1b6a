// The training loop. What is trained is made in run_model.cpp, a step's gradients in run_gradients.cpp; files
// are checkpoint.cpp, run_files.cpp and run_export.cpp, several processes run_processes.cpp.
#include "bitnet/training/trainer.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <map>
#include <optional>

#include "bitnet/core/error.hpp"
#include "bitnet/core/memory/hybrid_memory_pool.hpp"
#include "bitnet/core/recovery.hpp"
#include "bitnet/training/checkpoint.hpp"
#include "run_data.hpp"
#include "run_evaluation.hpp"
#include "run_export.hpp"
#include "run_files.hpp"
#include "run_gradients.hpp"
#include "run_guard.hpp"
#include "run_identity.hpp"
#include "run_log.hpp"
#include "run_model.hpp"
#include "run_processes.hpp"

namespace bitnet::training {
namespace {

using Clock = std::chrono::steady_clock;

/// Tokens to score where all of a text is meant: packed rows have more positions than tokens.
constexpr std::int64_t kWhole = std::numeric_limits<std::int64_t>::max();

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void say(const TrainCallbacks& callbacks, const std::string& text) {
  if (callbacks.message) callbacks.message(text);
}

/// Everything of one run between its start and its end.
class Run {
 public:
  Run(const TrainConfig& config, const TrainCallbacks& callbacks, const ExecutionContext& context,
      ProcessGroup& group, bool resumed, bool dry = false)
      : c_(config),
        callbacks_(callbacks),
        context_(context),
        tokenizer_(shared_tokenizer(group, config, callbacks, resumed)),
        bos_(bos_of(*tokenizer_)),
        texts_(shared_texts(group, config, context, *tokenizer_, callbacks, dry)),
        model_(model_of(config, context, *tokenizer_)),
        processes_(config, context, group, model_),
        gradients_(config, callbacks, context, *tokenizer_, model_, processes_),
        sampler_(sampler_of(config, texts_.train, bos_)),
        evaluator_(config, callbacks, context, *tokenizer_, model_),
        saves_({retry({.applies = [](const Error& e) { return e.code() == ErrorCode::kIo; }})}, nullptr,
               callbacks.message) {
    check_sample_prompt(config, *tokenizer_);
    state_.identity = identity_of(config, *tokenizer_, texts_.train);
    state_.settings = settings_of(config, texts_.validation);
    set_parts(processes_.parallel().parts());
    check_same(group, state_.identity);
    check_same(group, state_.settings);
    check_same(group, model_->identity());
    check_same(group, course_of(config));
    processes_.begin(gradients_.distillation());
    state_.data = sampler_->state();
    say(callbacks, std::to_string(texts_.train.documents.tokens.size()) + " training tokens, " +
                       std::to_string(texts_.validation.documents.tokens.size()) + " of validation, " +
                       std::to_string(texts_.held_out.documents.tokens.size()) + " held out, " +
                       std::to_string(model_->parameter_count()) + " parameters, " +
                       std::to_string(c_.batch * c_.length) + " tokens a step");
    say(callbacks, "the result will be " + describe_export(config));
    if (!model_.base.empty()) say(callbacks, model_.base);
    if (const QuantizerSchedule& q = c_.quantizer_schedule; q.kind != QuantizerScheduleKind::kAbrupt)
      say(callbacks, model_.grows
                         ? "quantisation grows from none to whole within " + std::to_string(q.steps) +
                               " steps (training.quantizer_schedule: " + std::string(to_string(q.kind)) + ")"
                         : "training.quantizer_schedule changes nothing: every linear is ternary already");
  }

  /// From the newest checkpoint of the output that is whole, as process 0 finds it. Throws what is wrong with
  /// the first one when none is.
  void resume() {
    TrainState state = processes_.load([&](Optimizer& all) { return newest_whole(all); });
    set_parts(processes_.group().of_first(parts_));
    sampler_->set_state(state.data);
    if (state.micro_batch > 0) gradients_.limit(state.micro_batch);
    if (!processes_.first()) state.identity = state_.identity;
    state.settings = std::move(state_.settings);
    state_ = std::move(state);
    resumable_ = state_.step;
    say(callbacks_, "resumed at step " + std::to_string(state_.step));
  }

  /// Into the output, where process 0 calls it. Only after resume(): a run that is refused changes no file.
  void keep_vocabulary() const { keep_tokenizer(c_, *tokenizer_); }

  TrainResult loop(RunLog& log);
  /// What the run would take. Its weights are worth nothing afterwards.
  DryRun measure();

 private:
  /// read() of the first checkpoint that is not damaged.
  TrainState newest_whole(Optimizer& all) {
    std::optional<Error> wrong;
    for (const std::filesystem::path& path : checkpoints_in(c_.output)) {
      try {
        TrainState state = read(path, all);
        if (path == newest_checkpoint(c_.output)) saved_step_ = state.step;
        return state;
      } catch (Error& e) {
        if (e.code() != ErrorCode::kCorruptFile) throw;
        say(callbacks_, "skipped '" + path.string() + "': " + e.what());
        if (!wrong) wrong = std::move(e);
      }
    }
    throw wrong ? std::move(*wrong)
                : Error(ErrorCode::kNotFound, "no checkpoint in '" + c_.output.string() + "'");
  }
  /// Fills model and optimiser, and says what is another setting from here on.
  TrainState read(const std::filesystem::path& checkpoint, Optimizer& all) {
    TrainState state = load_checkpoint(checkpoint, *model_, all);
    add_older_identity(state.identity, state_.identity);
    state.settings.try_emplace(kPartsSetting, "1");  // older ones had no others
    parts_ = parts_of(c_, processes_.group(), parts_in(state.settings));
    state_.settings[kPartsSetting] = std::to_string(parts_);
    const auto stored = [](const std::map<std::string, std::string>& of, const std::string& key) {
      const auto it = of.find(key);
      return it == of.end() ? std::string("not given") : it->second;
    };
    for (const auto& [key, ours] : state_.identity)
      if (const std::string theirs = stored(state.identity, key); theirs != ours)
        throw Error(ErrorCode::kInvalidArgument, "checkpoint '" + checkpoint.string() +
                                                     "' is of another run: " + key + " is " + theirs +
                                                     " there and " + ours + " now");
    for (const char* const key : {kValidation, kValidationTokens})  // nor did they say these
      state.settings.try_emplace(key, state_.settings.at(key));
    for (const auto& [key, ours] : state_.settings)
      if (const std::string theirs = stored(state.settings, key); theirs != ours) {
        say(callbacks_, key + " was " + theirs + ", and is " + ours + " from here on");
        if ((key == kValidation || key == kValidationTokens) && state.best.step > 0) {
          say(callbacks_, "the best validation so far, of step " + std::to_string(state.best.step) +
                              ", was of another text and does not count");
          state.best = {};
        }
      }
    return state;
  }
  void set_parts(std::int64_t parts) {
    parts_ = parts;
    processes_.parallel().set_parts(parts);
    state_.settings[kPartsSetting] = std::to_string(parts);
  }

  struct Step {
    double loss = 0, norm = std::numeric_limits<double>::quiet_NaN();
    bool skipped = false;
  };
  /// `together`: whether all processes call it.
  [[noreturn]] void end_diverged(std::int64_t step, const std::string& what, bool together = true);
  Step one_step();
  void report(RunLog& log);
  Evaluation evaluate(const TrainingText& text, std::int64_t max_tokens);
  void save(const std::filesystem::path& path);
  void save_newest();
  void confirm_newest();
  void sample(RunLog& log);
  void note_validation(const Evaluation& e);
  void take_best(TrainResult& result);
  bool gets_no_better() const noexcept { return c_.patience > 0 && state_.best.since >= c_.patience; }
  std::filesystem::path best_path() const { return best_checkpoint(c_.output); }

  const TrainConfig& c_;
  const TrainCallbacks& callbacks_;
  const ExecutionContext& context_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::int32_t bos_;
  RunTexts texts_;
  RunModel model_;
  RunProcesses processes_;
  RunGradients gradients_;
  std::unique_ptr<Sampler> sampler_;
  Evaluator evaluator_;
  Recovery saves_;
  TrainState state_;
  Batch batch_;
  double seconds_before_ = 0;  ///< of earlier starts
  Clock::time_point start_ = Clock::now(), last_report_ = start_, last_save_ = start_;
  double loss_sum_ = 0, flips_sum_ = 0, norm_ = 0;
  std::int64_t since_report_ = 0;
  std::int64_t parts_ = 1;                  ///< of a batch, DataParallel::set_parts()
  std::optional<std::int64_t> saved_step_;  ///< of process 0's newest checkpoint, where that is whole
  bool confirmed_ = false;                  ///< whether a step from that had a finite loss
  std::optional<std::int64_t> resumable_;   ///< of the checkpoint that this start read or wrote last
  bool wrote_ = false;                      ///< whether it wrote that
};

/// Where this start wrote a checkpoint of the weights of now, no rate helps who goes on from it: the one
/// before it takes its place. One that was there already stays, since what changed may be to blame and not
/// its weights.
void Run::end_diverged(std::int64_t step, const std::string& what, bool together) {
  const std::string diverged = "training diverged at step " + std::to_string(step) + ": " + what;
  if (!together && !processes_.first()) throw Error(ErrorCode::kInvalidArgument, diverged);
  const bool of_now = resumable_ == state_.step;
  if (of_now && wrote_) {
    std::int64_t older = processes_.first() ? take_back_older(c_.output).value_or(-1) : -1;
    if (together) older = processes_.group().of_first(older);  // the others wait until it is done
    resumable_ = older < 0 ? std::nullopt : std::optional(older);
  }
  std::string advice = "; begin again with a lower learning rate";
  if (resumable_) {
    advice = "; resume from the last checkpoint, of step " + std::to_string(*resumable_) +
             ", with a lower learning rate";
    if (const auto files = checkpoints_in(c_.output); of_now && !wrote_ && files.size() > 1)
      advice += "; if it diverges at once again, put '" + files[1].string() + "' in its place";
  }
  throw Error(ErrorCode::kInvalidArgument, diverged + advice);
}

/// A batch's gradients, then the update, unless the loss is a spike.
Run::Step Run::one_step() {
  sampler_->next(c_.batch, batch_);
  const auto targets =
      std::count_if(batch_.targets.begin(), batch_.targets.end(), [](std::int32_t t) { return t >= 0; });
  const auto scale = static_cast<float>(1.0 / static_cast<double>(targets));
  Step step;
  const auto diverged = [&] {
    end_diverged(state_.step + 1, gradients_.not_finite(batch_, state_.step, scale, step.loss, step.norm));
  };
  step.loss = gradients_.of(batch_, state_.step, scale);
  if (!std::isfinite(step.loss)) diverged();
  step.skipped = c_.spike_deviations > 0 && is_spike(state_.loss, step.loss, c_.spike_deviations);
  if (!step.skipped) {
    step.norm =
        processes_.step(static_cast<float>(c_.schedule.learning_rate(state_.step)),
                        static_cast<float>(c_.schedule.decay(state_.step)), static_cast<float>(c_.clip));
    if (!std::isfinite(step.norm)) diverged();
  }
  ++state_.step;
  model_->set_lambda(c_.quantizer_schedule, state_.step);
  try {
    processes_.refresh();
  } catch (const Error& e) {
    if (e.code() != ErrorCode::kInvalidArgument) throw;
    end_diverged(state_.step, e.what(), false);  // only the process that makes this layer's form knows
  }
  confirm_newest();
  state_.data = sampler_->state();
  state_.micro_batch = gradients_.micro_batch();
  if (step.skipped) return step;
  state_.tokens += targets;
  const auto trits = model_->trit_counts();
  loss_sum_ += step.loss;
  flips_sum_ += trits.all ? static_cast<double>(trits.flips) / static_cast<double>(trits.all) : 0.0;
  ++since_report_;
  norm_ = step.norm;
  return step;
}

void Run::report(RunLog& log) {
  if (since_report_ == 0) return;  // all steps since were skipped
  const double elapsed = seconds_since(last_report_);
  const auto trits = model_->trit_counts();
  Progress p;
  p.step = state_.step;
  p.steps = c_.schedule.steps;
  p.tokens = state_.tokens;
  p.loss = loss_sum_ / static_cast<double>(since_report_);
  p.learning_rate = c_.schedule.learning_rate(state_.step - 1);
  p.gradient_norm = norm_;
  p.tokens_per_second = static_cast<double>(since_report_ * c_.batch * c_.length) / std::max(elapsed, 1e-9);
  p.seconds = seconds_before_ + seconds_since(start_);
  p.eta_seconds =
      static_cast<double>((p.steps - p.step) * c_.batch * c_.length) / std::max(p.tokens_per_second, 1e-9);
  p.zero_fraction = trits.all ? static_cast<double>(trits.zeros) / static_cast<double>(trits.all) : 0.0;
  p.flip_rate = flips_sum_ / static_cast<double>(since_report_);
  p.layer_scales = model_->layer_scales();
  p.epoch = state_.data.epoch;
  log.write(p);
  if (callbacks_.progress) callbacks_.progress(p);
  loss_sum_ = flips_sum_ = 0;
  since_report_ = 0;
  last_report_ = Clock::now();
}

Evaluation Run::evaluate(const TrainingText& text, std::int64_t max_tokens) {
  // The activations of training are not needed meanwhile; what scoring has no memory for, training may have.
  gradients_.release();
  Evaluation e;
  if (processes_.first()) e = evaluator_.score(text, max_tokens, gradients_.micro_batch());
  return processes_.group().of_first(e);
}

void Run::save(const std::filesystem::path& path) {
  state_.seconds = seconds_before_ + seconds_since(start_);
  processes_.save([&](Optimizer& all) {
    static_cast<void>(
        saves_.run("writing the checkpoint", [&] { save_checkpoint(path, *model_, all, state_); }));
  });
}

void Run::save_newest() {
  if (processes_.first() && saved_step_ && *saved_step_ < state_.step) keep_as_older(c_.output, *saved_step_);
  save(newest_checkpoint(c_.output));
  last_save_ = Clock::now();
  resumable_ = state_.step;
  wrote_ = true;
  if (!processes_.first()) return;
  saved_step_ = state_.step;
  confirmed_ = false;
  remove_older(c_.output, std::max<std::int64_t>(c_.keep_checkpoints - 1, 1), state_.step);
}

/// The weights of now have a finite loss, or those before them had: the newest checkpoint is a good one, and
/// the one that stayed beside it for the case that it is not may go.
void Run::confirm_newest() {
  if (!saved_step_ || confirmed_) return;
  remove_older(c_.output, c_.keep_checkpoints - 1, *saved_step_);
  confirmed_ = true;
}

/// Asks for text from the model as it is; what goes wrong there does not end the run. All processes call it,
/// and process 0 asks.
void Run::sample(RunLog& log) {
  const auto before = Clock::now();
  gradients_.release();
  processes_.gather_weights();
  if (!processes_.first()) return;
  try {
    const auto text = callbacks_.sample(state_.step, [this](const std::filesystem::path& path) {
      write_snapshot(path, c_, model_, *tokenizer_for_files(c_, tokenizer_, texts_.train));
    });
    if (text) log.write_sample(state_.step, c_.sample_prompt, *text);
  } catch (const std::exception& e) {  // an engine that does not fit into memory, too
    say(callbacks_, std::string("no sample: ") + e.what());
  }
  last_report_ += Clock::now() - before;
}

void Run::note_validation(const Evaluation& e) {
  // While quantisation grows losses are those of another model than is written, and mostly lower.
  if (c_.quantization == Quantization::kTernary && !c_.lora && model_.grows &&
      c_.quantizer_schedule.lambda(state_.step, c_.model.n_layers - 1, c_.model.n_layers) < 1)
    return;
  BestValidation& best = state_.best;
  if (best.step > 0 && e.nll >= best.nll) {
    ++best.since;
    return;
  }
  best = {e.nll, state_.step, 0};
  if (c_.keep_best) save(best_path());
}

/// Puts the weights of the best validation in place of the last ones.
void Run::take_best(TrainResult& result) {
  if (!c_.keep_best || state_.best.step == 0 || state_.best.step == state_.step) return;
  // After a run that was resumed with other settings it may be of steps that were given up.
  const bool there = processes_.group().of_first(processes_.first() && std::filesystem::exists(best_path()) &&
                                                 checkpoint_step(best_path()) == state_.best.step);
  if (!there) {
    say(callbacks_, "'" + best_path().string() + "' is not of step " + std::to_string(state_.best.step) +
                        ", which was the best: the last weights are the result");
    return;
  }
  static_cast<void>(
      processes_.load([&](Optimizer& all) { return load_checkpoint(best_path(), *model_, all); }));
  result.best_step = state_.best.step;
  model_->set_lambda({}, result.best_step);
  model_->refresh(context_);
  say(callbacks_, "the result is the model of step " + std::to_string(result.best_step) +
                      ", whose validation was the best");
}

TrainResult Run::loop(RunLog& log) {
  seconds_before_ = state_.seconds;
  model_->set_lambda(c_.quantizer_schedule, state_.step);
  model_->refresh(context_);
  log.start(c_, state_.step, model_->parameter_count(), figures_of(texts_.train, *tokenizer_));
  start_ = last_report_ = last_save_ = Clock::now();
  TrainResult result;
  const auto evaluated = [&](std::int64_t limit) {
    const auto before = Clock::now();
    const Evaluation e = evaluate(texts_.validation, limit);
    log.write("evaluation", state_.step, e);
    if (callbacks_.evaluation) callbacks_.evaluation(state_.step, e);
    last_report_ += Clock::now() - before;  // tokens per second are those of training
    return e;
  };
  const bool judged = c_.keep_best || c_.patience > 0;
  ProcessGroup& group = processes_.group();
  const bool samples = c_.sample_every > 0 && group.of_first(static_cast<bool>(callbacks_.sample));
  while (state_.step < c_.schedule.steps && !result.cancelled && !gets_no_better()) {
    const Step step = one_step();
    if (step.skipped) {
      ++result.skipped;
      log.skipped(state_.step, step.loss, state_.loss);
      say(callbacks_, "step " + std::to_string(state_.step) + " is passed over: its loss of " +
                          std::to_string(step.loss) + " is far above those of late, " +
                          std::to_string(state_.loss.mean));
    }
    const bool last = state_.step == c_.schedule.steps;
    if (last || state_.step % c_.log_every == 0) report(log);
    if (state_.step % c_.evaluate_every == 0 ? !last || judged : last && judged) {
      const Evaluation e = evaluated(c_.validation_tokens);
      if (judged) note_validation(e);
    }
    if (samples && (last || state_.step % c_.sample_every == 0)) sample(log);
    result.cancelled = group.any(callbacks_.cancelled && callbacks_.cancelled());
    const bool due = group.of_first(seconds_since(last_save_) >= c_.checkpoint_minutes * 60);
    if (last || result.cancelled || gets_no_better() || due) save_newest();
  }
  result.stopped_early = !result.cancelled && state_.step < c_.schedule.steps;
  if (result.stopped_early)
    say(callbacks_, "stopped at step " + std::to_string(state_.step) +
                        ": no validation was better than that of step " + std::to_string(state_.best.step));
  result.steps = state_.step;
  result.tokens = state_.tokens;
  result.seconds = seconds_before_ + seconds_since(start_);
  if (!result.cancelled) {
    take_best(result);
    result.final_evaluation = evaluated(kWhole);
    if (!std::isfinite(result.final_evaluation.nll))
      end_diverged(state_.step, "the validation text's loss is not finite");
    confirm_newest();
    if (!texts_.held_out.documents.tokens.empty()) {
      result.held_out = evaluate(texts_.held_out, kWhole);
      log.write("held_out", state_.step, *result.held_out);
    }
    // The last checkpoint, or the best, has brought process 0 all latent weights.
    if (processes_.first())
      export_run(c_, model_, *tokenizer_for_files(c_, tokenizer_, texts_.train),
                 [&](const std::string& text) { say(callbacks_, text); });
  }
  return result;
}

DryRun Run::measure() {
  state_.step = 0;
  model_->set_lambda(c_.quantizer_schedule, 0);
  model_->refresh(context_);
  one_step();  // takes the memory that the next ones use again
  const auto before = Clock::now();
  one_step();
  DryRun d;
  d.seconds_per_step = seconds_since(before);
  evaluate(texts_.validation, c_.length);
  d.parameters = model_->parameter_count();
  d.vocab_size = tokenizer_->vocab_size();
  d.train_tokens = static_cast<std::int64_t>(texts_.train.documents.tokens.size());
  d.validation_tokens = static_cast<std::int64_t>(texts_.validation.documents.tokens.size());
  d.held_out_tokens = static_cast<std::int64_t>(texts_.held_out.documents.tokens.size());
  TextFigures figures = figures_of(texts_.train, *tokenizer_);
  d.corpus = std::move(figures.corpus);
  d.learned_tokens = figures.learned;
  d.sequences_per_epoch = sampler_->sequences();
  d.steps = c_.schedule.steps;
  d.micro_batch = gradients_.micro_batch();
  d.activation_checkpointing = c_.activation_checkpointing;
  d.seconds_per_epoch =
      d.seconds_per_step * static_cast<double>(d.sequences_per_epoch) / static_cast<double>(c_.batch);
  d.seconds = d.seconds_per_step * static_cast<double>(d.steps);
  d.memory_bytes = context_.memory()->stats().peak_used;
  d.result = describe_export(c_);
  d.checkpoint_bytes = 4 * static_cast<std::uint64_t>(d.parameters) + processes_.state_bytes();
  return d;
}

/// What body(group, callbacks that are heard, run) returns, as a member of the group. The run is body's to
/// make, and ends after as_member(): till then the others may read its gradients.
template <class Body>
auto with_run(const TrainConfig& config, const TrainCallbacks& callbacks, ProcessGroup* members,
              Body&& body) {
  config.validate();
  const auto alone = single_process();
  ProcessGroup& group = members ? *members : *alone;
  const TrainCallbacks heard = callbacks_of(group, callbacks);
  std::optional<Run> run;
  return as_member(group, callbacks, [&] { return body(group, heard, run); });
}

}  // namespace

DryRun dry_run(const TrainConfig& config, const TrainCallbacks& callbacks, bool resume,
               const ExecutionContext& context, ProcessGroup* members) {
  return with_run(
      config, callbacks, members, [&](ProcessGroup& group, const TrainCallbacks& heard, auto& run) {
        const bool exists = group.of_first(is_first(group) && has_checkpoint(config, heard, resume));
        const auto place = is_first(group) ? writable_place(config.output) : std::filesystem::path();
        run.emplace(config, heard, context, group, exists, true);
        if (exists) run->resume();
        const DryRun d = run->measure();
        if (!is_first(group)) return d;
        const std::uintmax_t room = std::filesystem::space(place).available;
        const std::uint64_t checkpoints = static_cast<std::uint64_t>(config.keep_checkpoints) +
                                          (config.keep_best ? 2 : 1);  // one while it is being written
        if (room / checkpoints < d.checkpoint_bytes)
          throw Error(ErrorCode::kIo, "'" + place.string() + "' has room for " + std::to_string(room) +
                                          " bytes; " + std::to_string(checkpoints) + " checkpoints take " +
                                          std::to_string(checkpoints * d.checkpoint_bytes));
        return d;
      });
}

TrainResult train(const TrainConfig& config, const TrainCallbacks& callbacks, bool resume,
                  const ExecutionContext& context, ProcessGroup* members) {
  return with_run(config, callbacks, members,
                  [&](ProcessGroup& group, const TrainCallbacks& heard, auto& run) {
                    const bool first = is_first(group);
                    std::optional<OutputLock> lock;
                    if (first && std::filesystem::is_directory(config.output)) lock.emplace(config.output);
                    const bool exists = group.of_first(first && has_checkpoint(config, heard, resume));
                    if (first) {
                      std::filesystem::create_directories(config.output);
                      if (!lock) lock.emplace(config.output);
                      remove_unfinished(config.output);
                    }
                    run.emplace(config, heard, context, group, exists);
                    if (exists) run->resume();
                    if (first) run->keep_vocabulary();
                    const std::filesystem::path log_path = config.output / "log.jsonl";
                    if (first && !exists) keep_aside(log_path, heard);
                    RunLog log = first ? RunLog(log_path, exists) : RunLog();
                    return run->loop(log);
                  });
}

}  // namespace bitnet::training
