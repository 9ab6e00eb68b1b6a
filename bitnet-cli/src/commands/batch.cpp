// `bitnet batch`: many prompts from a file through the continuous-batching scheduler, records to a file. The
// formats are in batch_items.cpp and batch_records.cpp, what becomes of a prompt in batch_prompts.cpp.
#include <algorithm>
#include <chrono>
#include <deque>
#include <map>
#include <mutex>
#include <ostream>

#include "batch_items.hpp"
#include "batch_prompts.hpp"
#include "batch_records.hpp"
#include "batch_replicas.hpp"
#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/core/recovery.hpp"
#include "bitnet/inference/recovering_scheduler.hpp"
#include "commands/commands_list.hpp"
#include "common.hpp"
#include "device_report.hpp"
#include "loading.hpp"
#include "memory_watch.hpp"
#include "trace_file.hpp"

namespace bitnet::cli {
namespace {

namespace fs = std::filesystem;
using inference::FinishReason;
using inference::GenerationResult;
using inference::RecoveringScheduler;
using inference::Request;

class Batch {
 public:
  Batch(const Values& values, Io& io) : values_(values), io_(io), output_(require(values, opt::kOutput)) {}
  int run();

 private:
  void read_input();
  void check_system() const;
  void check_output() const;
  void take_over_finished();
  void open_journal(const std::vector<BatchRecord>& kept);
  void begin();
  void work();
  bool submit(std::size_t index, RecoveringScheduler& scheduler, BatchCalls::Done done);
  void say_details();
  void say_note(const std::string& line);
  void finish(std::size_t index, GenerationResult result) noexcept;
  void count(const Error& error) noexcept;
  void fail_item(std::size_t index, const std::string& why);
  void write_journal();
  void show_progress();
  void passed();
  void write_ready_lines();
  void write_output();
  int summarise(double seconds) const;
  void write_figures(double seconds);
  bool to_stdout() const { return output_ == "-"; }

  const Values& values_;
  Io& io_;
  fs::path output_;
  RecordFormat format_ = RecordFormat::kJsonl;
  std::vector<BatchItem> items_;
  std::vector<BatchRecord> records_;  // one an item; finish_reason is empty until it is done
  std::size_t n_done_ = 0, n_kept_ = 0, n_written_ = 0;
  std::int64_t new_tokens_ = 0;
  std::optional<TraceFile> trace_;  // outlives the engine
  MemoryWatch memory_;
  BatchReplicas replicas_{values_, io_, memory_.monitor(),
                          [this](const std::string& line) { say_note(line); }};
  BatchPrompts prompts_{values_, io_};
  ErrorMonitor faults_{{.report = [this](const std::string& line) { say_note(line); }}};  // of passes
  ErrorMonitor item_errors_{{.report = [](const std::string&) {}}};                       // summarise() tells
  bool has_begun_ = false;  // from here on OUT is written, whatever happens
  std::optional<BatchJournal> journal_;
  std::vector<std::size_t> finished_;  // items, in the order in which they ended; reserved
  std::size_t n_journalled_ = 0;       // of those
  std::unique_ptr<ProgressBar> bar_;
  std::optional<StatisticsFile> statistics_;
};

void Batch::read_input() {
  const std::string path = require(values_, opt::kInput);
  BatchItems input;
  retry_io("reading the items", [&] { input = read_batch_items(path); });
  for (const std::string& note : input.notes) io_.err << "note: " << note << '\n';
  items_ = std::move(input.items);
  records_.resize(items_.size());
  for (std::size_t i = 0; i < items_.size(); ++i) {
    records_[i].id = items_[i].id;
    records_[i].prompt = items_[i].prompt;
    records_[i].messages = items_[i].messages;
    records_[i].options = options_text(items_[i]);
  }
}

/// A system message is part of a chat: without messages or a template there would be nowhere to put it.
void Batch::check_system() const {
  if (!values_.has(opt::kSystem) || values_.has(opt::kChatTemplate)) return;
  const auto is_chat = [](const BatchItem& item) { return !item.messages.empty(); };
  const auto is_plain = [](const BatchItem& item) { return item.messages.empty() && item.error.empty(); };
  if (std::any_of(items_.begin(), items_.end(), is_plain) &&
      std::none_of(items_.begin(), items_.end(), is_chat))
    throw UsageError("--system needs --chat-template NAME (auto: the model's own), or items with `messages`");
}

/// Finds out before hours of work that the result could not be written.
void Batch::check_output() const {
  if (to_stdout()) {
    if (values_.flag(opt::kResume)) throw UsageError("--resume needs an output file");
    return;
  }
  std::error_code ignored;
  if (fs::exists(output_, ignored) && !fs::is_regular_file(output_, ignored))
    throw Error(ErrorCode::kInvalidArgument, "'" + output_.string() + "': is no ordinary file");
  if (fs::equivalent(output_, require(values_, opt::kInput), ignored))
    throw Error(ErrorCode::kInvalidArgument, "'" + output_.string() + "': input and output are the same");
  check_replaces_no_input(values_, output_, "'" + output_.string() + "': the records");
  for (const Option* o : {&opt::kProfile, &opt::kStatistics})
    if (values_.has(*o) && same_file(values_.text(*o), output_))
      throw UsageError("--" + std::string(o->name) + " and --output name the same file");
  const fs::path folder = output_.parent_path();
  if (!folder.empty() && !fs::is_directory(folder, ignored))
    throw Error(ErrorCode::kNotFound,
                "'" + output_.string() + "': there is no directory '" + folder.string() + "'");
  const fs::path journal = BatchJournal::path_for(output_);
  if (!values_.flag(opt::kResume) && fs::exists(journal, ignored) && !fs::is_empty(journal, ignored))
    throw Error(
        ErrorCode::kInvalidArgument,
        "'" + journal.string() +
            "' holds records of a run that did not end: continue it with --resume, or remove that file");
}

/// --resume: complete records of OUT and of its journal whose item is still the same.
void Batch::take_over_finished() {
  std::map<std::string, std::deque<BatchRecord>> known;  // by input_key()
  const auto collect = [&](const fs::path& path, RecordFormat format, bool lenient) {
    if (!fs::exists(path)) return;
    std::string text;
    retry_io("--resume", [&] { text = read_file(path); });
    auto records =
        with_context("'" + path.string() + "'", [&] { return parse_records(text, format, lenient); });
    for (BatchRecord& r : records)
      if (r.is_complete()) known[input_key(r)].push_back(std::move(r));
  };
  collect(output_, format_, false);
  collect(BatchJournal::path_for(output_), RecordFormat::kJsonl, true);
  for (std::size_t i = 0; i < items_.size(); ++i) {
    if (!items_[i].error.empty()) continue;
    const auto found = known.find(input_key(records_[i]));
    if (found == known.end() || found->second.empty()) continue;
    BatchRecord record = std::move(found->second.front());
    found->second.pop_front();
    record.id = items_[i].id;  // .csv does not tell whether it was a number
    records_[i] = std::move(record);
    ++n_kept_;
  }
  n_done_ = n_kept_;
}

/// A fresh journal that begins with what was taken over, so that a line which was cut off is gone.
void Batch::open_journal(const std::vector<BatchRecord>& kept) {
  std::string lines;
  for (const BatchRecord& r : kept)
    if (!r.finish_reason.empty()) lines += format_jsonl(r);
  retry_io("beginning the journal", [&] {
    write_file(BatchJournal::path_for(output_), lines);
    journal_.emplace(output_);
  });
}

/// What is wrong with an item is the item's: it is left out, and its record says why. By several threads at
/// once.
bool Batch::submit(std::size_t index, RecoveringScheduler& scheduler, BatchCalls::Done done) {
  const BatchItem& item = items_[index];
  if (!item.error.empty()) {
    count(Error(ErrorCode::kInvalidArgument, item.error));
    fail_item(index, item.error);
    return false;
  }
  bool given = false;
  const auto fail = [&](const Error& e) {
    fail_item(index, (item.line > 0 ? "line " + std::to_string(item.line) + ": " : "") + e.what());
  };
  Recovery recovery({skip_item(fail)}, &item_errors_);
  try {
    static_cast<void>(recovery.run("an item", [&] {
      Request request = prompts_.request_of(item, records_[index].seed);
      records_[index].prompt_tokens = static_cast<std::int64_t>(request.prompt.size());
      request.on_done = done;
      scheduler.submit(std::move(request));
      given = true;
    }));
  } catch (const Error& e) {  // no rule sees these
    if (e.code() == ErrorCode::kCancelled) throw;
    fail(e);
  }
  return given;
}

void Batch::fail_item(std::size_t index, const std::string& why) {
  const std::lock_guard lock(output_mutex());
  records_[index].error = why;
  records_[index].finish_reason = "error";
  ++n_done_;
  finished_.push_back(index);
}

/// Called by the scheduler; where memory runs out, its texts are short.
void Batch::finish(std::size_t index, GenerationResult result) noexcept {
  BatchRecord& record = records_[index];
  record.text = std::move(result.text);
  record.finish_reason = to_string(result.finish_reason);  // fits into the string itself
  record.completion_tokens = result.completion_tokens;
  record.milliseconds = 1000 * (result.timings.prompt_seconds + result.timings.decode_seconds);
  if (result.error) {
    try {
      record.error = failure_text(*result.error);
    } catch (const std::bad_alloc&) {
      record.error = "error";  // fits into the string itself, as not every code's name does
    }
    count(*result.error);
  }
  new_tokens_ += result.completion_tokens;
  if (result.finish_reason == FinishReason::kCancelled) return;
  ++n_done_;
  finished_.push_back(index);
}

/// For the summary; where memory runs out it is one short.
void Batch::count(const Error& error) noexcept {
  try {
    item_errors_.record(error);
  } catch (...) {
  }
}

/// Puts what has finished where a crash cannot reach it.
void Batch::write_journal() {
  if (!journal_) return;
  try {
    for (; n_journalled_ < finished_.size(); ++n_journalled_) {
      const BatchRecord& record = records_[finished_[n_journalled_]];
      retry_io("keeping a record", [&] { journal_->add(record); });
    }
  } catch (const std::bad_alloc&) {  // the next time, or in OUT
  }
}

void Batch::show_progress() {
  const auto stats = replicas_.stats();
  const auto to_do = static_cast<double>(items_.size() - n_kept_);
  bar_->update(static_cast<double>(n_done_ - n_kept_), to_do,
               rate(static_cast<double>(stats.generated_tokens), stats.step_seconds) + " tokens/s, " +
                   std::to_string(stats.running) + " at a time");
}

/// With -o -: records go out in order as soon as all before them are done.
void Batch::write_ready_lines() {
  if (!to_stdout()) return;
  while (n_written_ < records_.size() && !records_[n_written_].finish_reason.empty()) {
    io_.out << format_jsonl(records_[n_written_]);
    ++n_written_;
  }
  io_.out.flush();
  check_out(io_);
}

void Batch::say_note(const std::string& line) {
  const std::lock_guard lock(output_mutex());
  if (bar_ != nullptr) bar_->clear();
  io_.err << "note: " << line << '\n';
}

/// What the items need of the model.
void Batch::begin() {
  const inference::InferenceEngine& engine = replicas_.load();
  memory_.follow(replicas_.memory());
  prompts_.begin(*engine.model(), engine.n_ctx(), items_);
  finished_.reserve(items_.size());
}

/// After each pass of a replica.
void Batch::passed() {
  write_journal();
  try {
    show_progress();
    write_ready_lines();
  } catch (const std::bad_alloc&) {  // the next time
  }
}

void Batch::work() {
  begin();
  replicas_.make_schedulers(faults_);
  if (!to_stdout()) open_journal(records_);
  has_begun_ = true;
  bar_ = std::make_unique<ProgressBar>(io_, "items");
  std::vector<std::size_t> open;
  for (std::size_t i = 0; i < records_.size(); ++i)
    if (records_[i].finish_reason.empty()) open.push_back(i);
  BatchCalls calls;
  calls.submit = [this](std::size_t item, RecoveringScheduler& scheduler, BatchCalls::Done done) {
    return submit(item, scheduler, std::move(done));
  };
  calls.finished = [this](std::size_t item, GenerationResult result) { finish(item, std::move(result)); };
  calls.passed = [this] { passed(); };
  replicas_.run(open, calls);
  bar_.reset();
  if (values_.flag(opt::kVerbose)) say_details();
}

/// --verbose, at the end: how long prompts were, and how many guesses held.
void Batch::say_details() {
  std::vector<std::int64_t> lengths;
  for (const BatchRecord& r : records_)
    if (r.prompt_tokens > 0) lengths.push_back(r.prompt_tokens);
  const LengthStatistics s = length_statistics(lengths);
  io_.err << "batch: prompts of " << s.shortest << " to " << grouped(s.longest)
          << " tokens, half of them up to " << grouped(s.median) << ", " << grouped(s.total) << " in all\n";
  io_.err << memory_.report() << device_lines(replicas_.statistics());
  if (values_.flag(opt::kReplicas))
    for (const BatchReplicas::Share& share : replicas_.shares())
      io_.err << "batch: " << share.items << (share.items == 1 ? " item" : " items") << " on " << share.device
              << '\n';
  const auto stats = replicas_.stats();
  if (stats.yielded > 0)
    io_.err << "batch: " << stats.yielded << " sequences waited because memory was short\n";
  if (stats.drafted_tokens > 0)
    io_.err << "batch: "
            << draft_text(static_cast<std::int64_t>(stats.drafted_tokens),
                          static_cast<std::int64_t>(stats.accepted_tokens))
            << '\n';
}

void Batch::write_output() {
  for (BatchRecord& r : records_)
    if (r.finish_reason.empty()) r.finish_reason = "cancelled";
  write_ready_lines();
  if (to_stdout()) return;
  try {
    retry_io("writing the records", [&] { write_file(output_, format_records(records_, format_)); });
  } catch (...) {
    if (journal_)
      say_note("'" + BatchJournal::path_for(output_).string() +
               "' holds what is done: --resume goes on from it");
    throw;
  }
  BatchJournal::remove(output_);
}

int Batch::summarise(double seconds) const {
  std::size_t failed = 0, cancelled = 0;
  constexpr std::size_t kListed = 5;
  for (const BatchRecord& r : records_) {
    if (r.finish_reason == "cancelled") ++cancelled;
    if (r.finish_reason != "error") continue;
    if (++failed <= kListed) io_.err << "item " << quoted(r.id.text) << ": " << r.error << '\n';
  }
  if (failed > kListed) {
    io_.err << "… and " << failed - kListed << " more\n";
    for (const ErrorPattern& p : item_errors_.patterns())
      io_.err << "  " << p.count << " × " << to_string(p.code) << " (" << p.place << "), the last: " << p.last
              << '\n';
  }
  io_.err << items_.size() << (items_.size() == 1 ? " item: " : " items: ")
          << items_.size() - failed - cancelled << " done";
  if (n_kept_ > 0) io_.err << " (" << n_kept_ << " of them before)";
  if (failed > 0) io_.err << ", " << failed << " failed";
  if (cancelled > 0)
    io_.err << ", " << cancelled << " cancelled" << (to_stdout() ? "" : " (--resume does them)");
  io_.err << "; " << grouped(new_tokens_) << " tokens in " << fixed(seconds, 1) << " s ("
          << rate(static_cast<double>(new_tokens_), seconds) << " tokens/s), peak memory "
          << human_bytes(peak_memory_bytes()) << '\n';
  if (cancelled > 0 || io_.is_cancelled()) return kInterrupted;
  return failed > 0 ? kFailure : kOk;
}

/// --statistics and --profile, of this run's items.
void Batch::write_figures(double seconds) {
  if (!trace_ && !statistics_->wanted()) return;
  using Json = nlohmann::ordered_json;
  Json device = device_json(replicas_.statistics()), pools = pools_json(replicas_.backends());
  if (trace_) trace_->write(device, pools, io_);
  std::size_t failed = 0;
  std::int64_t prompt_tokens = 0;
  for (const BatchRecord& r : records_) {
    failed += r.finish_reason == "error" ? 1 : 0;
    prompt_tokens += r.prompt_tokens;
  }
  std::string devices;
  Json shares = Json::array();
  for (const BatchReplicas::Share& share : replicas_.shares()) {
    // Without a name none was loaded: everything had been done before.
    const std::string device_name = share.device.empty() ? values_.text(opt::kDevice) : share.device;
    devices += (devices.empty() ? "" : ",") + device_name;
    shares.push_back({{"device", device_name}, {"items", share.items}});
  }
  statistics_->write({{"model", values_.text(opt::kModel)},
                      {"device", devices},
                      {"replicas", std::move(shares)},
                      {"load_seconds", replicas_.load_seconds()},
                      {"items", items_.size()},
                      {"kept", n_kept_},
                      {"failed", failed},
                      {"prompt_tokens", prompt_tokens},
                      {"completion_tokens", new_tokens_},
                      {"seconds", seconds},
                      {"peak_rss_bytes", peak_memory_bytes()},
                      {"device_statistics", std::move(device)},
                      {"memory_pools", std::move(pools)}});
}

int Batch::run() {
  require(values_, opt::kModel);
  require(values_, opt::kInput);
  checked(values_, opt::kInput, check_input_name);
  format_ = checked(values_, opt::kOutput, record_format);
  check_chat_template(values_);
  static_cast<void>(generation_options(values_, io_));  // mistakes in the options are not each item's
  read_input();
  check_system();
  check_output();
  if (values_.has(opt::kProfile)) trace_.emplace(values_, "bitnet batch");
  statistics_.emplace(values_);
  if (trace_) replicas_.set_profiler(trace_->profiler());
  if (values_.flag(opt::kResume)) take_over_finished();
  const Stopwatch watch;
  std::exception_ptr problem;
  const auto attempt = [&](const std::function<void()>& body) {
    try {
      body();
    } catch (const std::exception& e) {
      if (problem != nullptr) say_note(e.what());
      if (problem == nullptr) problem = std::current_exception();
    }
  };
  if (n_done_ < items_.size()) {
    attempt([&] { work(); });
    if (!has_begun_ && problem != nullptr) std::rethrow_exception(problem);
  }
  bar_.reset();
  const double seconds = watch.seconds();
  attempt([&] { faults_.flush(); });
  attempt([&] { write_output(); });
  attempt([&] { write_figures(seconds); });
  const int code = summarise(seconds);
  if (problem != nullptr) std::rethrow_exception(problem);
  return code;
}

int batch(const Values& values, Io& io) { return Batch(values, io).run(); }

}  // namespace

const Command kBatchCommand{
    .name = "batch",
    .summary = "run many prompts from a file, several at a time",
    .usage = "-m MODEL -i IN -o OUT [options]",
    .description =
        "IN: .txt (a prompt a line), .json or .jsonl (texts, or objects with `prompt` or `messages`, an `id` "
        "and "
        "overrides of the sampling options), .csv (a column `prompt`). OUT: .jsonl, .json or .csv with a "
        "record for "
        "each item, in the order of IN: id, prompt, text, finish_reason (stop, length, cancelled, error), "
        "prompt_tokens, completion_tokens, milliseconds, seed, error. A bad item fails alone; the exit code "
        "is then "
        "1. Ctrl-C keeps what is done, and --resume does the rest. --seed holds for every item without its "
        "own; "
        "without it each item gets a random one, which its record names.",
    .example =
        "bitnet batch -m models/bitnet-demo-i2_s.gguf -i prompts.jsonl -o out.jsonl --config "
        "configs/batch.yaml\n"
        "bitnet batch -m models/bitnet-demo-i2_s.gguf -i prompts.jsonl -o out.jsonl --resume",
    .arguments = {},
    .options = concat({{&opt::kInput, &opt::kOutput, &opt::kResume, &opt::kChatTemplate, &opt::kSystem,
                        &opt::kSpecial, &opt::kTruncate, &opt::kCtxSize, &opt::kBatchSize, &opt::kKvType,
                        &opt::kReplicas, &opt::kProfile, &opt::kStatistics},
                       engine_options(),
                       sampling_options(),
                       draft_options(),
                       {&opt::kConfig, &opt::kVerbose}}),
    .body = batch,
};

}  // namespace bitnet::cli
