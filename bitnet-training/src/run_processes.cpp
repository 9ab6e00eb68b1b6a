// Agreement between the processes of a run.
#include "run_processes.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>
#include <span>
#include <type_traits>

#include "bitnet/core/error.hpp"

namespace bitnet::training {

std::shared_ptr<const Tokenizer> shared_tokenizer(ProcessGroup& group, const TrainConfig& c,
                                                  const TrainCallbacks& callbacks, bool resumed) {
  std::shared_ptr<const Tokenizer> tokenizer;
  if (is_first(group)) tokenizer = tokenizer_of(c, callbacks, resumed);
  if (group.size() == 1) return tokenizer;
  std::string json = tokenizer ? tokenizer->to_json() : "",
              config = tokenizer ? tokenizer->config_json() : "";
  group.broadcast(json);
  group.broadcast(config);
  return tokenizer ? tokenizer : Tokenizer::from_json(json, config);
}

RunTexts shared_texts(ProcessGroup& group, const TrainConfig& c, const ExecutionContext& context,
                      const Tokenizer& tokenizer, const TrainCallbacks& callbacks, bool dry) {
  const bool in_turn = !c.shards.empty() && !dry;
  if (in_turn && !is_first(group)) group.barrier();
  RunTexts texts = texts_of(c, context, tokenizer, callbacks, dry);
  if (in_turn && is_first(group)) group.barrier();
  return texts;
}

void check_same(ProcessGroup& group, const std::map<std::string, std::string>& mine) {
  const auto count = group.of_first(mine.size());
  auto it = mine.begin();
  for (std::size_t i = 0; i < count; ++i) {
    std::string key = is_first(group) ? it->first : "", value = is_first(group) ? it->second : "";
    group.broadcast(key);
    group.broadcast(value);
    if (is_first(group)) {
      ++it;
      continue;
    }
    const auto here = mine.find(key);
    if (here == mine.end() || here->second != value)
      throw Error(ErrorCode::kInvalidArgument,
                  "process " + std::to_string(group.rank()) + " has another run than process 0: " + key +
                      " is " + value + " there and " + (here == mine.end() ? "not given" : here->second) +
                      " here");
  }
}

std::map<std::string, std::string> course_of(const TrainConfig& c) {
  return {{"training.optimizer", std::string(to_string(c.optimizer))},
          {"data.held_out", c.held_out.empty() ? "not given" : "given"},
          {"output.evaluate_every", std::to_string(c.evaluate_every)},
          {"training.patience", std::to_string(c.patience)},
          {"training.spike_deviations", std::to_string(c.spike_deviations)},
          {"output.sample_every", std::to_string(c.sample_every)},
          {"output.keep_best", c.keep_best ? "true" : "false"}};
}

std::vector<BitLinear*> ternary_layers(const RunModel& model) {
  std::vector<BitLinear*> all;
  if (!model.whole) return all;
  for (const TensorId id : model.whole->tensor_ids())
    if (auto* l = dynamic_cast<BitLinear*>(model.whole->linear(id))) all.push_back(l);
  return all;
}

std::int64_t parts_in(const std::map<std::string, std::string>& settings) {
  std::int64_t parts = 0;
  if (const auto it = settings.find(kPartsSetting); it != settings.end())
    std::from_chars(it->second.data(), it->second.data() + it->second.size(), parts);
  return parts;
}

TrainCallbacks callbacks_of(const ProcessGroup& group, const TrainCallbacks& callbacks) {
  TrainCallbacks heard;
  if (is_first(group)) heard = callbacks;
  heard.cancelled = callbacks.cancelled;
  return heard;
}

std::int64_t parts_of(const TrainConfig& c, const ProcessGroup& group, std::int64_t stored) {
  std::int64_t parts = c.gradient_parts;
  if (parts == 0 && stored > 0 && c.batch % stored == 0 && DataParallel::fits(stored, group.size()))
    parts = stored;
  if (parts == 0) parts = group.size();
  if (!DataParallel::fits(parts, group.size()))
    throw Error(ErrorCode::kInvalidArgument,
                "training.gradient_parts is " + std::to_string(parts) + ", which " +
                    std::to_string(group.size()) +
                    " processes cannot share: each computes 1, 2, 4, 8, … of them");
  if (c.batch % parts != 0)
    throw Error(ErrorCode::kInvalidArgument, "training.batch is " + std::to_string(c.batch) +
                                                 ", which cannot be cut into the " + std::to_string(parts) +
                                                 " parts of " + std::to_string(group.size()) + " processes");
  return parts;
}

namespace {

/// Process 0's state for all, but for identity and settings.
void share(ProcessGroup& group, TrainState& state) {
  const auto all = [&](auto& value) {
    static_assert(std::is_trivially_copyable_v<std::remove_reference_t<decltype(value)>>);
    group.broadcast(std::as_writable_bytes(std::span(&value, 1)));
  };
  all(state.step);
  all(state.tokens);
  all(state.seconds);
  all(state.data);
  all(state.micro_batch);
  all(state.loss);
  all(state.best);
}

}  // namespace

RunProcesses::RunProcesses(const TrainConfig& config, const ExecutionContext& context, ProcessGroup& group,
                           const RunModel& model)
    : c_(config),
      context_(context),
      group_(group),
      model_(model),
      parallel_(context, group, model->parameters(), ternary_layers(model)),
      optimizer_(optimizer_of(config, context, model, parallel_.owned())) {
  parallel_.set_parts(parts_of(config, group, 0));
}

void RunProcesses::refresh() {
  parallel_.refresh([this] { model_->refresh(context_); });
}

std::unique_ptr<Optimizer> RunProcesses::whole_optimizer() {
  return first() ? optimizer_of(c_, context_, model_, model_->parameters()) : nullptr;
}

void RunProcesses::save(const std::function<void(Optimizer& all)>& write) {
  if (group_.size() == 1) return write(*optimizer_);
  const auto all = whole_optimizer();
  parallel_.gather_weights();
  parallel_.gather_state(*optimizer_, all.get());
  if (all) write(*all);
}

void RunProcesses::begin(const Distillation* distillation) {
  if (group_.size() == 1) return;
  if (distillation) {
    std::map<std::string, std::string> teacher;
    for (const auto& [key, value] : distillation->teacher().identity()) teacher["teacher's " + key] = value;
    check_same(group_, teacher);
  }
  parallel_.spread_weights();
}

TrainState RunProcesses::load(const std::function<TrainState(Optimizer& all)>& read) {
  if (group_.size() == 1) return read(*optimizer_);
  const auto all = whole_optimizer();
  TrainState state;
  if (all) state = read(*all);
  parallel_.spread_weights();
  parallel_.spread_state(*optimizer_, all.get());
  share(group_, state);
  return state;
}

std::string RunProcesses::first_bad_gradient() {
  // Parameters are in the order of the forward pass; an embedding that is the head, too, is the last one.
  const auto parameters = model_->parameters();
  std::int64_t mine = -1;
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const auto g = parameters[i]->grad();
    if (parallel_.owner(i) == group_.rank() &&
        !std::all_of(g.begin(), g.end(), [](float v) { return std::isfinite(v); }))
      mine = static_cast<std::int64_t>(i);
  }
  std::vector<std::int64_t> all(static_cast<std::size_t>(group_.size()));
  group_.gather(std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(all)));
  const std::int64_t last = *std::max_element(all.begin(), all.end());
  return last < 0 ? std::string() : "the gradient of " + parameters[static_cast<std::size_t>(last)]->name();
}

std::uint64_t RunProcesses::state_bytes() {
  std::uint64_t mine = 0;
  for (const OptimizerState& state : optimizer_->state()) mine += state.bytes.size();
  std::vector<std::uint64_t> all(static_cast<std::size_t>(group_.size()));
  group_.gather(std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(all)));
  return std::accumulate(all.begin(), all.end(), std::uint64_t{0});
}

}  // namespace bitnet::training
