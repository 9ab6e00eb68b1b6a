// `bitnet bench`: a model's speed, and how near it is to what this machine allows. The measuring is
// bitnet-inference's throughput.hpp, the output bench_report.cpp.
#include <algorithm>
#include <functional>
#include <optional>
#include <ostream>
#include <utility>

#include "bench_report.hpp"
#include "bitnet/core/device/bandwidth.hpp"
#include "bitnet/core/machine.hpp"
#include "bitnet/inference/session.hpp"
#include "bitnet/quant/model_io.hpp"
#include "bitnet/quant/peak.hpp"
#include "commands/commands_list.hpp"
#include "common.hpp"
#include "loading.hpp"
#ifdef BITNET_WITH_GPU
#include "bitnet/gpu/peaks.hpp"
#endif

namespace bitnet::cli {
namespace {

using inference::MachineLimits;
using inference::ThroughputRunner;
using inference::ThroughputTest;

constexpr std::size_t kMostThreads = 1024;  // of an ExecutionContext
constexpr std::size_t kLeastProbe = std::size_t{1} << 20;
constexpr std::int64_t kFirstPrompt = 16;  // tokens

/// "1,4,16": whole numbers in [low, high], each once, in the order given.
std::vector<std::int64_t> number_list(const Values& values, const Option& option, std::int64_t low,
                                      std::int64_t high, const std::string& remark = {}) {
  return checked(values, option, [&](const std::string& text) {
    std::vector<std::int64_t> numbers;
    for (std::size_t begin = 0; begin <= text.size();) {
      const std::size_t end = std::min(text.find(',', begin), text.size());
      const std::string word = text.substr(begin, end - begin);
      const auto n = parse_integer(word);
      if (!n || *n < low || *n > high) {
        throw Error(ErrorCode::kInvalidArgument, "expected whole numbers from " + std::to_string(low) +
                                                     " to " + std::to_string(high) +
                                                     " with commas between, as in 1,2" + remark + ", got " +
                                                     cli::quoted(word.substr(0, 60)));
      }
      if (std::find(numbers.begin(), numbers.end(), *n) == numbers.end()) numbers.push_back(*n);
      begin = end + 1;
    }
    return numbers;
  });
}

std::vector<ThroughputTest> tests_of(const Values& values) {
  constexpr std::int64_t kMostTokens = 1 << 22;
  std::vector<ThroughputTest> tests;
  for (const std::int64_t n : number_list(values, opt::kBenchPrompt, 0, kMostTokens))
    if (n > 0) tests.push_back({ThroughputTest::Kind::kPrompt, n, 1});
  const auto batches = number_list(values, opt::kBenchBatch, 1, 4096);
  for (const std::int64_t n : number_list(values, opt::kBenchGen, 0, kMostTokens)) {
    if (n == 0) continue;
    for (const std::int64_t b : batches) tests.push_back({ThroughputTest::Kind::kDecode, n, b});
  }
  if (tests.empty()) throw UsageError("nothing to measure: -p and -n are both 0");
  return tests;
}

/// A context for each thread count, with one pool for all of them; all counts are checked before anything
/// runs.
std::vector<std::shared_ptr<const ExecutionContext>> contexts_of(const Values& values) {
  ExecutionContext::Options options;
  if (values.has(opt::kIsa)) options.isa = checked(values, opt::kIsa, isa_from_name);
  options.memory = limited_pool(values);
  if (values.origin(opt::kBenchThreads) == Origin::kEnvironment)  // one number, as for the other commands
    check_value(opt::kThreads, values.text(opt::kBenchThreads), opt::kThreads.env);
  const std::string remark = " (there are " + std::to_string(usable_cores()) + " cores)";
  std::vector<std::shared_ptr<const ExecutionContext>> contexts;
  for (const std::int64_t n : number_list(values, opt::kBenchThreads, 0, kMostThreads, remark)) {
    options.threads = thread_count(n);
    if (std::none_of(contexts.begin(), contexts.end(),
                     [&](const auto& context) { return context->threads() == options.threads; }))
      contexts.push_back(std::make_shared<const ExecutionContext>(options));
  }
  return contexts;
}

/// What a user waits for after the loading: a prompt of kFirstPrompt tokens in a session of its own, to the
/// logits that the first token is drawn from.
void make_first_token(const std::shared_ptr<const inference::Model>& model, DType kv_type) {
  std::vector<TokenId> prompt;
  for (std::int64_t i = 0; i < kFirstPrompt; ++i)
    prompt.push_back(static_cast<TokenId>(i % model->config().vocab_size));
  inference::Session session(model,
                             {.n_ctx = kFirstPrompt + 1, .chunk_rows = kFirstPrompt, .kv_type = kv_type});
  session.evaluate(prompt);
}

/// The probes of one thread count. Their buffer is as large as what a step reads, if there is memory for it
/// twice; it is taken when the first sample is, so that the model's own peak memory can be told before.
class Limits {
 public:
  Limits(std::shared_ptr<const ExecutionContext> context, std::size_t step_bytes, std::size_t available)
      : context_(std::move(context)),
        bytes_(std::max(kLeastProbe, std::min(step_bytes, available / 2))),
        peak_(context_) {}

  void sample() {
    if (!bandwidth_) bandwidth_.emplace(context_, bytes_);
    bandwidth_->sample();
    peak_.sample();
  }

  BenchLimits result() const {
    return {context_->threads(), bandwidth_->gigabytes_per_second(), peak_.int8_gops(), peak_.f32_gflops(),
            bandwidth_->best_loop()};
  }
  std::size_t bytes() const noexcept { return bytes_; }

 private:
  std::shared_ptr<const ExecutionContext> context_;
  std::size_t bytes_;
  quant::PeakProbe peak_;
  std::optional<BandwidthProbe> bandwidth_;
};

/// None for what is no single OpenCL device.
std::optional<BenchPeaks> peaks_of([[maybe_unused]] const inference::InferenceEngine& engine,
                                   [[maybe_unused]] const Values& values) {
#ifdef BITNET_WITH_GPU
  const std::string& name = engine.stages().front().device;
  if (engine.stages().size() != 1 || !name.starts_with("opencl:")) return std::nullopt;
  gpu::Options options;
  options.sub_devices = sub_devices(values, name);
  options.memory_limit = device_memory_limit(values);
  const gpu::DevicePeaks p = gpu::measure_peaks(name, options);
  return BenchPeaks{p.copy_gbps, p.int8_gops, p.enqueue_seconds, p.launch_seconds};
#else
  return std::nullopt;
#endif
}

/// Passes of a run of a test: its launches are given for one.
double passes_of(const ThroughputTest& test) {
  return static_cast<double>(test.total_tokens()) / BenchRow::tokens_of_a_pass(test);
}

class Bench {
 public:
  Bench(const Values& values, Io& io)
      : values_(values),
        io_(io),
        tests_(tests_of(values)),
        contexts_(contexts_of(values)),
        repetitions_(values.integer(opt::kBenchRepetitions)) {
    report_.path = require(values, opt::kModel);
    report_.cpu = cpu_name();
    report_.isa = to_string(contexts_.front()->isa());
    report_.build = "bitnet " BITNET_VERSION ", " BITNET_COMPILER;
    if (const std::string type = BITNET_BUILD_TYPE; !type.empty()) report_.build += ", " + type;
  }

  BenchReport run() {
    for (const auto& context : contexts_) measure(context);
    return std::move(report_);
  }

 private:
  /// Of a device: how fast it reads, which cannot be less than what its copies moved in all, and its
  /// integers.
  BenchLimits device_limits(const inference::InferenceEngine& engine, std::size_t threads) const {
    BenchLimits limits{threads, engine.model()->backend().measure_bandwidth(), {}, {}, {}};
    if (report_.peaks) {
      limits.read_gbps = std::max(limits.read_gbps.value_or(0), report_.peaks->copy_gbps);
      limits.int8_gops = report_.peaks->int8_gops;
    }
    return limits;
  }

  /// A device whose caches hold all that a step reads is not bound by its memory, and how fast its caches are
  /// is not measured. The CPU's probe reads as much as a step does.
  MachineLimits known_limits(const inference::InferenceEngine& engine) const {
    const BenchLimits& l = report_.limits.back();
    const bool cached = report_.device != "cpu" &&
                        report_.weights.step_bytes() <= engine.selection().device.capabilities.cache_bytes;
    return {cached ? std::nullopt : l.read_gbps, l.int8_gops};
  }

  void describe(const inference::InferenceEngine& engine, const ThroughputRunner& runner) {
    const inference::Model& model = *engine.model();
    report_.device = engine.selection().device.name;
    report_.device_description = model.backend().description();
    report_.ternary = model.ternary();
    report_.head_type = inference::to_string(model.head_type());
    report_.parameters = model.n_parameters();
    report_.file_bytes = quant::ModelReader::open(report_.path)->file_bytes();
    report_.load_seconds = model.load_seconds();
    report_.weights = inference::weight_cost(model);
    report_.kv_type = values_.text(opt::kKvType);
    report_.kv_bytes_per_position = runner.kv_bytes_per_position();
  }

  /// All tests with one thread count. Repetitions go round all tests and the probes, so that a machine that
  /// slows down does so for tests and limits alike.
  void measure(const std::shared_ptr<const ExecutionContext>& context) {
    const bool first = report_.rows.empty();
    const Stopwatch since_opening;
    const auto engine = load_engine(values_, io_, context);
    if (first) {
      make_first_token(engine->model(), kv_type(values_));
      report_.first_token_seconds = since_opening.seconds();
    }
    inference::CancellationToken token;
    if (io_.cancelled != nullptr) token = inference::CancellationToken(*io_.cancelled);
    ThroughputRunner runner(engine->model(), tests_, token, kv_type(values_));
    if (first) describe(*engine, runner);
    std::optional<Limits> limits;
    if (report_.device == "cpu")
      limits.emplace(context, report_.weights.step_bytes(), engine->model()->backend().available_memory());

    std::vector<BenchRow> rows;
    for (const ThroughputTest& test : tests_) rows.push_back({test, context->threads(), {}, {}});
    ProgressBar bar(io_, "runs");
    const auto total = static_cast<double>(tests_.size()) * static_cast<double>(repetitions_ + 1);
    double done = 0;
    const auto each_test = [&](const std::function<void(BenchRow&)>& body) {
      for (BenchRow& row : rows) {
        bar.update(done, total, row.test.name() + ", " + std::to_string(context->threads()) + " threads");
        body(row);
        ++done;
      }
    };
    each_test([&](BenchRow& row) { runner.warm_up(row.test); });
    for (std::int64_t i = 0; i < repetitions_; ++i) {
      each_test([&](BenchRow& row) {
        const Backend& backend = engine->model()->backend();
        const std::uint64_t before = backend.statistics().launches;
        row.samples.push_back(static_cast<double>(row.test.total_tokens()) / runner.seconds(row.test));
        row.launches = static_cast<double>(backend.statistics().launches - before) / passes_of(row.test);
      });
      if (first && i == 0) report_.peak_rss_bytes = peak_memory_bytes();
      check_cancelled(io_);
      if (limits) limits->sample();
    }
    if (first && !limits) {
      report_.device_statistics = engine->model()->backend().statistics();
      report_.peaks = peaks_of(*engine, values_);
    }
    report_.limits.push_back(limits ? limits->result() : device_limits(*engine, context->threads()));
    if (limits && first) report_.probe_bytes = limits->bytes();
    for (BenchRow& row : rows) {
      row.limit = throughput_limit(row.test, report_.weights, report_.kv_bytes_per_position,
                                   runner.chunk_rows(), known_limits(*engine));
      report_.rows.push_back(std::move(row));
    }
  }

  const Values& values_;
  Io& io_;
  std::vector<ThroughputTest> tests_;
  std::vector<std::shared_ptr<const ExecutionContext>> contexts_;
  std::int64_t repetitions_;
  BenchReport report_;
};

/// Those of the other commands, with a list of thread counts.
std::vector<const Option*> machine_options() {
  std::vector<const Option*> options = engine_options();
  std::replace(options.begin(), options.end(), &opt::kThreads, &opt::kBenchThreads);
  return options;
}

int bench(const Values& values, Io& io) {
  require(values, opt::kModel);
  const BenchReport report = Bench(values, io).run();
  const std::string format = values.text(opt::kBenchOutput);
  io.out << (format == "json"  ? bench_json(report)
             : format == "csv" ? bench_csv(report)
                               : bench_markdown(report));
  return kOk;
}

}  // namespace

const Command kBenchCommand{
    .name = "bench",
    .summary = "measure a model's speed, and how near it is to the machine's limit",
    .usage = "-m MODEL [-p 512] [-n 128] [-b 1,4,16] [-t 1,2] [options]",
    .description =
        "As llama-bench does it: pp512 is a prompt of 512 tokens, tg128 the decoding of 128 tokens from an "
        "empty context, tg128@b16 that of 16 sequences together; tokens/s as mean ± standard deviation over "
        "--repetitions.\n"
        "In the same run the memory's read bandwidth (a buffer as large as the weights, the best of six read "
        "loops) and the instruction set's int8 peak are measured. Decoding is bound by the bytes that a "
        "token "
        "needs, prompts and large batches by two operations a ternary weight; the fraction of that limit "
        "stands beside each figure. Without a known limit (dense prompts, weights within a device's cache, "
        "other devices) it is n/a.\n"
        "The first token's time is one sample: from opening the model to the logits after a prompt of 16 "
        "tokens, "
        "with the first of --threads and the page cache as it is. Measure twice for a warm one.",
    .example =
        "bitnet bench -m models/bitnet-demo-i2_s.gguf -t 1,2\n"
        "bitnet bench -m models/bitnet-demo-i2_s.gguf -p 512,4096 -n 0 -r 3 -o json > new.json",
    .arguments = {},
    .options = concat({{&opt::kBenchPrompt, &opt::kBenchGen, &opt::kBenchBatch, &opt::kBenchRepetitions},
                       machine_options(),
                       {&opt::kBenchOutput, &opt::kKvType, &opt::kVerbose}}),
    .body = bench,
};

}  // namespace bitnet::cli
