// The search for tile and work-group sizes: every candidate is a backend of its own, built with its sizes,
// and is asked through the seam that models use, so that what is measured is what they get.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>
#include <numeric>
#include <optional>

#include "bitnet/core/error.hpp"
#include "bitnet/core/rng.hpp"
#include "bitnet/core/statistics.hpp"
#include "bitnet/gpu/tuning.hpp"
#include "device_list.hpp"
#include "device_traits.hpp"
#include "opencl_backend.hpp"
#include "tune_choice.hpp"
#include "tune_reference.hpp"
#include "tuning_table.hpp"

namespace bitnet::gpu {
namespace {

constexpr std::int64_t kManyRows[] = {
    5, 48};  // of a small batch and of a prompt; both end in the middle of a tile
constexpr std::int64_t kMostOut = 16384;    // columns of a head: enough to fill a device
constexpr std::uint16_t kHalfOne = 0x3c00;  // f16
constexpr double kSampleSeconds = 2e-3;     // so that what one wait costs does not count
constexpr int kMostRepeats = 256;           // of a sample
constexpr int kMostCandidates = 64;         // of one program, by the candidates of tunables()

/// A program for one or many rows, and which of tunables() it has.
struct Program {
  std::string_view name, rows;
  std::vector<std::size_t> tunables;
};

bool is_for(const Program& p, TuneShape::Kind kind) {
  if (p.name == "int8_matmul") return kind == TuneShape::Kind::kInt8;
  if (p.name == "dense_matmul") return kind == TuneShape::Kind::kDense;
  return kind == TuneShape::Kind::kTernary;  // ternary_matmul, and normalize_quantize before it
}

std::vector<Program> programs_of(KernelForm form, std::span<const TuneShape> shapes) {
  std::vector<Program> all;
  for (std::size_t i = 0; i < tunables().size(); ++i) {
    const Tunable& t = tunables()[i];
    if (t.form != form) continue;
    if (all.empty() || all.back().name != t.program || all.back().rows != t.rows)
      all.push_back({t.program, t.rows, {}});
    all.back().tunables.push_back(i);
  }
  std::erase_if(all, [&](const Program& p) {
    return std::none_of(shapes.begin(), shapes.end(), [&](const TuneShape& s) { return is_for(p, s.kind); });
  });
  return all;
}

/// `now` first, then every combination that fits the device and is another one.
std::vector<TunableValues> candidates_of(const Program& p, const TunableValues& now, std::size_t most) {
  std::vector<TunableValues> all{now};
  std::vector<TunableValues> combined{now};
  for (const std::size_t i : p.tunables) {
    std::vector<TunableValues> next;
    for (const TunableValues& values : combined)
      for (const int value : tunables()[i].candidates) {
        next.push_back(values);
        next.back()[i] = value;
      }
    combined = std::move(next);
  }
  for (TunableValues& values : combined) {
    TunableValues fitted = values;
    fit(fitted, most);
    if (fitted == values && std::find(all.begin(), all.end(), values) == all.end())
      all.push_back(std::move(values));
  }
  if (all.size() > kMostCandidates) all.resize(kMostCandidates);
  return all;
}

std::string text_of(const Program& p, const TunableValues& values) {
  std::string text;
  for (const std::size_t i : p.tunables)
    text += fmt::format("{}{}={}", text.empty() ? "" : " ", tunables()[i].macro, values[i]);
  return text;
}

TuneProblem problem_of(const TuneShape& shape, std::int64_t rows, Rng& rng) {
  TuneProblem p;
  p.out = shape.kind == TuneShape::Kind::kTernary ? shape.out : std::min(shape.out, kMostOut);
  p.in = shape.in;
  p.rows = rows;
  const auto n = static_cast<std::size_t>(p.out * p.in);
  switch (shape.kind) {
    case TuneShape::Kind::kTernary:
      p.scale = 0.37f;
      for (std::size_t i = 0; i < n; ++i)
        p.trits.push_back(static_cast<std::int8_t>(static_cast<int>(rng.below(3)) - 1));
      break;
    case TuneShape::Kind::kInt8:
      for (std::size_t i = 0; i < n; ++i) p.floats.push_back(static_cast<float>(rng.uniform() - 0.5));
      break;
    case TuneShape::Kind::kDense:  // ±[1, 2): every mantissa
      for (std::size_t i = 0; i < n; ++i)
        p.halves.push_back(static_cast<std::uint16_t>(kHalfOne | rng.below(1024) | rng.below(2) << 15));
      break;
  }
  for (std::int64_t i = 0; i < rows * p.in; ++i) p.x.push_back(static_cast<float>(rng.normal()));
  return p;
}

/// One problem on one backend.
class Product {
 public:
  Product(Backend& backend, const TuneProblem& p)
      : backend_(backend), floats_(static_cast<std::size_t>(p.rows * p.out)) {
    LinearWeights w;
    w.out = p.out;
    w.in = p.in;
    if (!p.trits.empty()) {
      w.trits = p.trits;
      w.scales = {&p.scale, 1};
      w.rows_per_scale = p.out;
    } else if (!p.halves.empty()) {
      w.dense = std::as_bytes(std::span(p.halves));
      w.dense_type = DType::kF16;
    } else {
      w.dense = std::as_bytes(std::span(p.floats));
      w.dense_form = DenseForm::kInt8;
      rows_.resize(static_cast<std::size_t>(p.rows));
      std::iota(rows_.begin(), rows_.end(), 0);
    }
    weights_ = rows_.empty() ? backend.prepare(w) : backend.prepare_embedding(w);
    in_ = backend.allocate(p.x.size() * sizeof(float), "tuning");
    out_ = backend.allocate(floats_ * sizeof(float), "tuning");
    backend.upload(*in_, 0, std::as_bytes(std::span(p.x)));
    x_ = {in_.get(), 0, p.rows, p.in};
    y_ = {out_.get(), 0, p.rows, p.out};
  }

  void run() {
    if (!rows_.empty()) return backend_.logits(*weights_, x_, rows_, y_);
    const PreparedWeights* const one = weights_.get();
    backend_.linear({&one, 1}, x_, {&y_, 1});
  }

  std::vector<float> result() {
    std::vector<float> y(floats_);
    run();
    backend_.download(*out_, 0, std::as_writable_bytes(std::span(y)));
    return y;
  }

  double seconds(int repeats) {
    backend_.sync();
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < repeats; ++i) run();
    backend_.sync();
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
    return std::max(taken.count(), 1e-9) / repeats;
  }

 private:
  Backend& backend_;
  std::size_t floats_;
  std::vector<std::int32_t> rows_;  // of logits
  PreparedPtr weights_;
  BufferPtr in_, out_;
  Matrix x_, y_;
};

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

class Search {
 public:
  Search(const ClDevice& device, const TuneOptions& options, std::shared_ptr<const ExecutionContext> context)
      : device_(device),
        options_(options),
        context_(std::move(context)),
        traits_(traits_of(device, options.device.kernels)) {
    options_.device.tuning_file = std::filesystem::path();
    row_.device = device.own_name;
    row_.driver = device.driver;
    row_.model = options.model;
    form_ = traits_.wide ? KernelForm::kWide : KernelForm::kGroups;
    row_.values.assign(tunables().size(), 0);
    values_ = tuning_with(row_, device.max_work_group, form_, options_.device).values();
  }

  TuneResult run() {
    const std::vector<Program> programs = programs_of(form_, options_.shapes);
    std::vector<std::vector<TunableValues>> candidates;
    for (const Program& p : programs) {
      candidates.push_back(candidates_of(p, values_, device_.max_work_group));
      progress_.total += candidates.back().size();
    }
    TuneResult result{device_.own_name, {}, {}};
    for (std::size_t i = 0; i < programs.size(); ++i)
      result.programs.push_back(choose(programs[i], candidates[i]));
    for (const Program& p : programs)
      for (const std::size_t t : p.tunables) row_.values[t] = values_[t];
    result.yaml = to_yaml({{row_}});
    return result;
  }

 private:
  struct Live {
    std::unique_ptr<Backend> backend;
    TuneCandidate found;
  };

  void report(const Program& p, std::size_t done) {
    progress_.done += done;
    progress_.what = fmt::format("{}, {} {}", p.name, p.rows, p.rows == "one" ? "row" : "rows");
    if (options_.progress) options_.progress(progress_);
  }

  /// What the driver refuses is a candidate that cannot be chosen.
  template <class Body>
  static void attempt(Live& live, Body&& body) {
    if (live.found.refused || live.found.unequal) return;
    try {
      body();
    } catch (const Error& e) {
      if (e.code() != ErrorCode::kDevice && e.code() != ErrorCode::kOutOfMemory) throw;
      live.found.refused = true;
      live.found.why = e.what();
    }
  }

  std::vector<std::int64_t> rows_of(const Program& p) const {
    std::vector<std::int64_t> rows;
    if (p.rows != "many") rows.push_back(1);
    if (p.rows != "one") rows.insert(rows.end(), std::begin(kManyRows), std::end(kManyRows));
    return rows;
  }

  TunedProgram choose(const Program& p, const std::vector<TunableValues>& candidates) {
    std::vector<Live> live(candidates.size());
    for (std::size_t i = 0; i < live.size(); ++i) {
      report(p, 0);
      attempt(live[i], [&] {
        TuningRow row = row_;
        row.values = candidates[i];
        // As with the programs that have been chosen already.
        for (std::size_t t = 0; t < values_.size(); ++t)
          if (std::find(p.tunables.begin(), p.tunables.end(), t) == p.tunables.end())
            row.values[t] = values_[t];
        live[i].backend = make_opencl_backend(device_, options_.device, context_, &row);
      });
    }
    for (const std::int64_t rows : rows_of(p)) {
      for (const TuneShape& shape : options_.shapes)
        if (is_for(p, shape.kind)) measure(shape, rows, live);
      for (Live& one : live) one.found.end_of_rows();
    }
    TunedProgram tuned{
        std::string(p.name), std::string(p.rows), {}, text_of(p, candidates[0]), 1, candidates.size(), 0, 0};
    std::vector<TuneCandidate> found;
    for (const Live& one : live) {
      found.push_back(one.found);
      tuned.refused += one.found.refused ? 1 : 0;
      tuned.unequal += one.found.unequal ? 1 : 0;
    }
    const std::optional<std::size_t> best = best_of(found);
    if (!best)
      throw Error(ErrorCode::kDevice,
                  fmt::format("{}: none of {} candidates gives the right results{}{}", p.name, found.size(),
                              found[0].why.empty() ? "" : ": ", found[0].why));
    tuned.gain = gain_of(found, *best);
    for (const std::size_t t : p.tunables) values_[t] = candidates[*best][t];
    tuned.chosen = text_of(p, candidates[*best]);
    report(p, candidates.size());
    return tuned;
  }

  /// All candidates on one shape: their results first, then their times, in turn. Each has its weights only
  /// while it runs.
  void measure(const TuneShape& shape, std::int64_t rows, std::vector<Live>& live) {
    Rng rng(static_cast<std::uint64_t>(shape.out * 131 + shape.in * 7 + rows));
    const TuneProblem problem = problem_of(shape, rows, rng);
    const std::vector<float> right = reference_product(*context_, problem);
    std::vector<std::vector<double>> samples(live.size());
    std::vector<int> repeats(live.size(), 1);
    const auto each = [&](auto&& body) {
      for (std::size_t i = 0; i < live.size(); ++i) {
        attempt(live[i], [&] { body(i); });
        if (live[i].backend != nullptr) live[i].backend->memory()->trim();  // or its pool keeps them
      }
    };
    each([&](std::size_t i) {
      Product product(*live[i].backend, problem);
      live[i].found.unequal = !same_bits(product.result(), right);
      if (live[i].found.unequal) return;
      repeats[i] = static_cast<int>(
          std::clamp(kSampleSeconds / product.seconds(1), 1.0, static_cast<double>(kMostRepeats)));
    });
    for (int round = 0; round < options_.rounds; ++round) {
      each([&](std::size_t i) {
        Product product(*live[i].backend, problem);
        product.seconds(1);  // the first one finds the weights in no cache
        samples[i].push_back(product.seconds(repeats[i]));
      });
      if (options_.progress) options_.progress(progress_);
    }
    each([&](std::size_t i) { live[i].found.add(median(samples[i]) * static_cast<double>(shape.count)); });
  }

  const ClDevice& device_;
  TuneOptions options_;
  std::shared_ptr<const ExecutionContext> context_;
  const DeviceTraits traits_;
  KernelForm form_{};
  TuningRow row_;
  TunableValues values_;  // chosen so far
  TuneProgress progress_;
};

void check(const TuneOptions& options) {
  if (options.shapes.empty()) throw Error(ErrorCode::kInvalidArgument, "no shapes to tune for");
  if (options.rounds < 1)
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("{} rounds of tuning: expected 1 or more", options.rounds));
  constexpr std::int64_t kMost = std::int64_t{1} << 30;
  for (const TuneShape& s : options.shapes)
    if (s.out < 1 || s.in < 1 || s.count < 1 || s.out > kMost / s.in)
      throw Error(
          ErrorCode::kInvalidArgument,
          fmt::format("a shape of {} x {}, {} times: expected sizes from 1 on, and at most 2^30 values",
                      s.out, s.in, s.count));
}

}  // namespace

std::vector<TuneShape> tune_shapes(const ModelConfig& c) {
  const bool ternary = c.weights == WeightKind::kTernary;
  std::vector<TuneShape> all;
  const auto add = [&](TuneShape::Kind kind, std::int64_t out, std::int64_t in, std::int64_t count) {
    for (TuneShape& s : all)
      if (s.kind == kind && s.out == out && s.in == in) {
        s.count += count;
        return;
      }
    all.push_back({kind, out, in, count});
  };
  const auto linear = ternary ? TuneShape::Kind::kTernary : TuneShape::Kind::kDense;
  add(linear, c.q_dim(), c.hidden_size, c.n_layers);
  add(linear, c.kv_dim(), c.hidden_size, 2 * c.n_layers);
  add(linear, c.hidden_size, c.q_dim(), c.n_layers);
  add(linear, c.intermediate_size, c.hidden_size, 2 * c.n_layers);
  add(linear, c.hidden_size, c.intermediate_size, c.n_layers);
  add(ternary ? TuneShape::Kind::kInt8 : TuneShape::Kind::kDense, c.vocab_size, c.hidden_size, 1);
  return all;
}

TuneResult tune(std::string_view device, const TuneOptions& options,
                std::shared_ptr<const ExecutionContext> context) {
  check(options);
  if (context == nullptr) context = std::make_shared<const ExecutionContext>();
  const ClDevice found = find_device(device, options.device.sub_devices);
  return with_context(device, [&] { return Search(found, options, std::move(context)).run(); });
}

}  // namespace bitnet::gpu
