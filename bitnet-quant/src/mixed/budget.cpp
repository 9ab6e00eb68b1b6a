// From figures of each linear to a configuration within a budget.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "bitnet/core/error.hpp"
#include "bitnet/quant/assignment.hpp"
#include "bitnet/quant/sensitivity.hpp"
#include "model_io/writer_base.hpp"
#include "short_name.hpp"

namespace bitnet::quant {
namespace {

BitAssignment sums_of(std::span<const LinearSensitivity> linears, const Assignment& a) {
  BitAssignment b{a.chosen, 0, 0, a.exact};
  for (std::size_t i = 0; i < linears.size(); ++i) {
    const Candidate& c = linears[i].candidates[a.chosen[i]];
    b.bytes += c.bytes;
    b.cost += c.cost;
  }
  return b;
}

/// The least value over the candidates of each linear, summed.
template <class Value>
double least_sum(std::span<const LinearSensitivity> linears, Value&& value) {
  double sum = 0;
  for (const LinearSensitivity& l : linears) {
    double least = value(l.candidates.front());
    for (const Candidate& c : l.candidates) least = std::min(least, value(c));
    sum += least;
  }
  return sum;
}

double bytes_of(const Candidate& c) { return static_cast<double>(c.bytes); }
double cost_of(const Candidate& c) { return c.cost; }

/// A bisection over the summed costs, which remembers what was measured.
class Search {
 public:
  Search(const std::vector<LinearSensitivity>& linears, double factor,
         const std::function<LogitMetrics(const BitAssignment&)>& measure)
      : linears_(linears), most_(std::log(factor)), measure_(measure) {}

  /// Whether the assignment keeps to the budget; the smallest that does is kept.
  bool fits(const BitAssignment& a) {
    auto at = seen_.find(a.chosen);
    if (at == seen_.end()) {
      const LogitMetrics m = measure_(a);
      ++result.runs;
      at = seen_.emplace(a.chosen, change_of(m)).first;
      if (at->second <= most_ && (!found_ || a.bytes < result.assignment.bytes)) {
        found_ = true;
        result.assignment = a;
        result.measured = m;
      }
    }
    return at->second <= most_;
  }
  bool was_measured(const BitAssignment& a) const { return seen_.contains(a.chosen); }
  double change(const BitAssignment& a) const { return seen_.at(a.chosen); }

  /// Between a summed cost that fits and one that does not.
  void bisect(double fits_at, double too_much, int runs) {
    double probe = most_;  // as if the errors added up
    for (int round = 0; round < 60 && result.runs < runs && too_much > 1.001 * fits_at; ++round) {
      if (!(probe > fits_at && probe < too_much))
        probe = std::sqrt(std::max(fits_at, 1e-6 * too_much) * too_much);
      if (!(probe > fits_at && probe < too_much)) return;
      (fits(assign_within_cost(linears_, probe)) ? fits_at : too_much) = probe;
      probe = 0;
    }
  }

  PerplexityAssignment result;

 private:
  static double change_of(const LogitMetrics& m) {
    return m.positions > 0 ? (m.nll_other - m.nll_original) / static_cast<double>(m.positions) : 0;
  }
  const std::vector<LinearSensitivity>& linears_;
  double most_;
  const std::function<LogitMetrics(const BitAssignment&)>& measure_;
  std::map<std::vector<std::size_t>, double> seen_;
  bool found_ = false;
};

}  // namespace

BitAssignment assign_within_bytes(std::span<const LinearSensitivity> linears, std::uint64_t bytes) {
  std::vector<std::vector<Choice>> things;
  for (const LinearSensitivity& l : linears) {
    things.emplace_back();
    for (const Candidate& c : l.candidates) things.back().push_back({bytes_of(c), c.cost});
  }
  const auto found = assign(things, static_cast<double>(bytes));
  if (!found)
    throw Error(
        ErrorCode::kInvalidArgument,
        fmt::format("the linears' smallest candidates take {:.0f} bytes: expected a budget that leaves "
                    "them as many, got {}",
                    least_sum(linears, bytes_of), bytes));
  return sums_of(linears, *found);
}

BitAssignment assign_within_cost(std::span<const LinearSensitivity> linears, double cost) {
  std::vector<std::vector<Choice>> things;
  for (const LinearSensitivity& l : linears) {
    things.emplace_back();
    for (const Candidate& c : l.candidates) things.back().push_back({c.cost, bytes_of(c)});
  }
  const auto found = assign(things, cost);
  if (!found)
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("the linears' best candidates cost {:g} together: expected a budget of at least "
                            "that, got {:g}",
                            least_sum(linears, cost_of), cost));
  return sums_of(linears, *found);
}

QuantConfig assigned_config(const QuantConfig& config, const ModelConfig& model,
                            std::span<const LinearSensitivity> linears, const BitAssignment& assignment) {
  QuantConfig out = as_mixed(config);
  const std::vector<PlannedLinear> plans = plan_linears(out, model);
  std::vector<std::pair<LinearPlan, std::vector<std::string>>> groups;
  for (std::size_t i = 0; i < linears.size(); ++i) {
    if (assignment.chosen[i] == 0) continue;  // as the configuration has it
    const LinearPlan& plan = linears[i].candidates[assignment.chosen[i]].plan;
    auto at = std::find_if(groups.begin(), groups.end(), [&](const auto& g) { return g.first == plan; });
    if (at == groups.end()) at = groups.insert(at, {plan, {}});
    at->second.push_back(short_name(linears[i].id));
  }
  for (auto& [plan, names] : groups)
    out.layers.push_back({std::move(names),
                          plan.method,
                          is_ternary(plan.method) ? std::optional(plan.scales) : std::nullopt,
                          {},
                          {}});
  return out;
}

PerplexityAssignment assign_within_perplexity(
    const std::vector<LinearSensitivity>& linears, double factor,
    const std::function<LogitMetrics(const BitAssignment&)>& measure, int runs) {
  if (!std::isfinite(factor) || factor <= 0)
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("a perplexity budget of {} times the original's", factor));
  Search search(linears, factor, measure);
  // A little more than the least, for the sum is in another order.
  const double least = least_sum(linears, cost_of);
  const BitAssignment best = assign_within_cost(linears, least * (1 + 1e-9));
  if (!search.fits(best))
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("the linears' best candidates together have {:.4f} times the original's "
                            "perplexity: expected a budget of at least that, or better candidates, got {}",
                            std::exp(search.change(best)), factor));
  const BitAssignment smallest =
      assign_within_bytes(linears, static_cast<std::uint64_t>(least_sum(linears, bytes_of)));
  if (!search.fits(smallest)) search.bisect(best.cost, smallest.cost, runs);
  return search.result;
}

std::uint64_t bytes_beside_linears(const ModelConfig& model, const WriteOptions& options) {
  std::uint64_t bytes = 0;
  for (const TensorId id : model_tensors(model))
    if (!is_linear(id.role))
      bytes += static_cast<std::uint64_t>(tensor_shape(id, model).numel()) *
               bits_of(model_io::dense_dtype(id, options)) / 8;
  return bytes;
}

}  // namespace bitnet::quant
