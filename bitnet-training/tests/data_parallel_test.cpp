// Data parallelism in groups of threads: the same bits however many processes there are, sums in the order
// that the header says, what is sent, and what happens when a process fails. Whole runs are
// parallel_runs_test.cpp, processes mpi_test.cpp.
#include "bitnet/training/data_parallel.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <vector>

#include "bitnet/core/memory/hybrid_memory_pool.hpp"
#include "bitnet/testing/testing.hpp"
#include "bitnet/training/ops.hpp"
#include "group_of_threads.hpp"
#include "tiny_training.hpp"

namespace bitnet::training {
namespace {

/// The result on process 0 of `processes` threads.
TinyResult train_on(int processes, const TinyOptions& options) {
  TinyResult first;
  const auto errors = on_members(processes, [&](ProcessGroup& group) {
    TinyResult result = train_tiny(group, options);
    if (group.rank() == 0) first = std::move(result);
  });
  for (const std::string& e : errors) EXPECT_EQ(e, "");
  return first;
}

void expect_same_bits(const TinyOptions& options, std::initializer_list<int> processes) {
  const auto alone = single_process();
  const TinyResult expected = train_tiny(*alone, options);
  ASSERT_EQ(expected.steps.size(), static_cast<std::size_t>(options.steps));
  EXPECT_NE(expected.steps.front().loss, expected.steps.back().loss);
  for (const int n : processes) {
    const TinyResult got = train_on(n, options);
    EXPECT_EQ(got.steps, expected.steps) << n << " processes";
    EXPECT_EQ(got.state, expected.state) << n << " processes";
  }
}

TEST(DataParallel, AnyNumberOfProcessesGivesTheSameBits) { expect_same_bits({}, {2, 4}); }

TEST(DataParallel, OfEveryOptimizer) {
  for (const char* optimizer : {"adamw8", "sgd", "muon"}) {
    SCOPED_TRACE(optimizer);
    TinyOptions o;
    o.optimizer = optimizer;
    expect_same_bits(o, {2, 4});
  }
}

TEST(DataParallel, OfEveryQuantiser) {
  TinyOptions full;
  full.quantization = Quantization::kNone;
  expect_same_bits(full, {2, 4});
  for (const auto gradient :
       {StraightThrough::kIdentity, StraightThrough::kClipped, StraightThrough::kLearnedScale})
    for (const auto granularity :
         {ScaleGranularity::kTensor, ScaleGranularity::kRow, ScaleGranularity::kGroup}) {
      SCOPED_TRACE(std::string(to_string(gradient)) + " " + std::string(to_string(granularity)));
      TinyOptions o;
      o.steps = 3;
      o.quantizer.gradient = gradient;
      o.quantizer.granularity = granularity;
      expect_same_bits(o, {2});
    }
}

TEST(DataParallel, WhileQuantisationGrows) {
  TinyOptions o;
  o.steps = 6;
  o.schedule = {QuantizerScheduleKind::kLinear, 4, false};
  expect_same_bits(o, {2, 4});
  o.schedule.layer_by_layer = true;
  expect_same_bits(o, {2});
}

TEST(DataParallel, InSmallerPassesOnSeveralThreads) {
  TinyOptions o;
  o.micro_batch = 1;
  o.threads = 2;
  expect_same_bits(o, {2, 4});
  o.parts = 8;
  expect_same_bits(o, {2, 4});
}

TEST(DataParallel, OtherNumbersOfPartsAreTheSameWithinRounding) {
  TinyOptions o;
  o.quantization = Quantization::kNone;  // no rounding steps to jump over
  o.steps = 1;
  const auto alone = single_process();
  o.parts = 1;
  const TinyStep whole = train_tiny(*alone, o).steps[0];
  for (const std::int64_t parts : {2, 4, 8}) {
    o.parts = parts;
    const TinyStep step = train_tiny(*alone, o).steps[0];
    EXPECT_NEAR(step.loss, whole.loss, 1e-6 * whole.loss);
    EXPECT_NEAR(step.norm, whole.norm, 1e-5 * whole.norm);
  }
}

/// The sum as the header defines it, of each element.
std::vector<float> pairwise(const std::vector<std::vector<float>>& parts, std::size_t begin,
                            std::size_t end) {
  if (end - begin == 1) return parts[begin];
  std::size_t left = 1;  // the largest power of two below the number of parts
  while (2 * left < end - begin) left *= 2;
  std::vector<float> x = pairwise(parts, begin, begin + left);
  const std::vector<float> y = pairwise(parts, begin + left, end);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  return x;
}

TEST(DataParallel, PartsAreAddedPairwiseInTheirOrder) {
  constexpr std::int64_t kParts = 12, kIn = 5, kOut = 7;
  for (const auto& [parts, processes] : std::vector<std::pair<std::int64_t, int>>{
           {1, 1}, {3, 1}, {7, 1}, {12, 1}, {3, 3}, {6, 3}, {12, 3}, {5, 5}}) {
    const auto errors = on_members(processes, [&, parts = parts](ProcessGroup& group) {
      const ExecutionContext context(ExecutionContext::Options{1, {}});
      Parameter w(context, "w", kOut, kIn, true), unused(context, "unused", 1, 3, false);
      Parameter* const all[] = {&w, &unused};
      DataParallel parallel(context, group, all);
      parallel.set_parts(parts);
      Tape tape(context);
      Rng rng(1);
      std::vector<float> x(static_cast<std::size_t>(kParts * kIn));
      for (float& v : x) v = static_cast<float>(rng.normal() * std::exp(3 * rng.normal()));
      // d(sum of logs of softmax) of one sequence, so that each has a gradient of its own size.
      const auto pass = [&](std::int64_t first, std::int64_t count) {
        const Variable in = tape.make(count, kIn, false);
        std::copy_n(x.begin() + first * kIn, count * kIn, in.value().begin());
        const std::vector<std::int32_t> targets(static_cast<std::size_t>(count), 2);
        const Variable l = cross_entropy(tape, linear(tape, in, w.variable()), targets, 1.0f);
        const double loss = l.value()[0];
        tape.backward(l);
        tape.reset();
        return loss;
      };
      const std::int64_t batch = kParts / parts * parts;
      std::vector<std::vector<float>> of_parts;
      for (std::int64_t part = 0; part < parts; ++part) {
        w.zero_grad();
        for (std::int64_t s = 0; s < batch / parts; ++s) pass(part * (batch / parts) + s, 1);
        of_parts.emplace_back(w.grad().begin(), w.grad().end());
      }
      for (int round = 0; round < 3; ++round) {  // gradients of the second and third are sent early
        parallel.gradients(tape, batch, 1, pass);
        const std::vector<float> expected = pairwise(of_parts, 0, of_parts.size());
        for (Parameter* p : parallel.owned())
          for (std::size_t i = 0; i < p->grad().size(); ++i)
            if (p->grad()[i] != (p == &w ? expected[i] : 0.0f))
              throw Error(ErrorCode::kInternal, "round " + std::to_string(round) + ", element " +
                                                    std::to_string(i) + " of " + p->name());
      }
    });
    for (const std::string& e : errors) EXPECT_EQ(e, "") << parts << " parts on " << processes;
  }
}

TEST(DataParallel, RefusesPartsThatDoNotFit) {
  EXPECT_TRUE(DataParallel::fits(6, 1));
  EXPECT_TRUE(DataParallel::fits(6, 3));
  EXPECT_FALSE(DataParallel::fits(6, 2));
  EXPECT_FALSE(DataParallel::fits(2, 4));
  EXPECT_FALSE(DataParallel::fits(0, 1));
  const auto errors = on_members(2, [](ProcessGroup& group) {
    TinyOptions o;
    o.parts = 6;
    train_tiny(group, o);
  });
  EXPECT_THAT(errors[0] + errors[1], ::testing::HasSubstr("2 processes cannot compute 6 parts"));
  const auto alone = single_process();
  TinyOptions o;
  o.parts = 3;
  BITNET_EXPECT_ERROR(train_tiny(*alone, o), ErrorCode::kInvalidArgument, "cannot be cut into 3 parts");
}

TEST(DataParallel, StateMovesToAnotherNumberOfProcesses) {
  TinyOptions o;
  const TinyResult whole = train_on(2, o);
  std::vector<std::byte> state;
  for (const auto& [from, to] : std::vector<std::pair<int, int>>{{4, 2}, {2, 4}, {2, 1}, {1, 4}}) {
    on_members(from, [&](ProcessGroup& group) {
      TinyTraining training(group, o);
      training.run(0, 2);
      auto bytes = training.state(group);
      if (group.rank() == 0) state = std::move(bytes);
    });
    const auto errors = on_members(to, [&](ProcessGroup& group) {
      TinyTraining training(group, o);
      training.set_state(group, state, 2);
      training.run(2, o.steps);
      const auto bytes = training.state(group);
      if (group.rank() == 0 && bytes != whole.state) throw Error(ErrorCode::kInternal, "other bits");
    });
    for (const std::string& e : errors) EXPECT_EQ(e, "") << from << " to " << to;
  }
}

TEST(DataParallel, EachParameterHasOneOwnerAndOneState) {
  const auto alone = single_process();
  TinyTraining whole(*alone, {});
  std::size_t all = 0;
  for (const OptimizerState& s : whole.optimizer().state()) all += s.bytes.size();
  std::vector<std::size_t> shares(4);
  on_members(4, [&](ProcessGroup& group) {
    TinyTraining training(group, {});
    for (const OptimizerState& s : training.optimizer().state())
      shares[static_cast<std::size_t>(group.rank())] += s.bytes.size();
  });
  EXPECT_EQ(shares[0] + shares[1] + shares[2] + shares[3], all);
  for (const std::size_t share : shares) {
    EXPECT_GT(share, all / 5);
    EXPECT_LT(share, all / 3);
  }
}

/// Counts the bytes that are sent, but for those of collective calls, and what is begun.
class CountingGroup final : public ProcessGroup {
 public:
  explicit CountingGroup(ProcessGroup& group) : group_(group) {}
  int rank() const noexcept override { return group_.rank(); }
  int size() const noexcept override { return group_.size(); }
  void send(std::span<const std::byte> bytes, int to, int tag) override {
    if (tag > 0) sent += bytes.size();
    ++begun;
    if (on_send) on_send(tag);
    group_.send(bytes, to, tag);
  }
  void receive(std::span<std::byte> bytes, int from, int tag) override {
    ++begun;
    group_.receive(bytes, from, tag);
  }
  void progress() override { group_.progress(); }
  void wait() override {
    group_.wait();
    begun = 0;
  }
  void withdraw() noexcept override {
    group_.withdraw();
    begun = 0;
  }
  void leave(std::string_view why) noexcept override { group_.leave(why); }
  std::size_t sent = 0;
  int begun = 0;
  std::function<void(int tag)> on_send;

 private:
  ProcessGroup& group_;
};

TEST(DataParallel, GradientsTravelWhileOthersAreYetToBeComputed) {
  std::vector<std::size_t> early(2), all(2), later_layer(2);
  const auto errors = on_members(2, [&](ProcessGroup& group) {
    CountingGroup counting(group);
    TinyOptions o;
    o.parts = 2;
    o.micro_batch = 4;
    TinyTraining training(counting, o);
    training.run(0, 1);  // the tape has yet to learn when gradients are complete
    const auto parameters = training.model().parameters();
    const auto at = static_cast<std::size_t>(group.rank());
    const auto of_layer = [](const Parameter* p, const char* layer) {
      return p->name().find(layer) != std::string::npos;
    };
    counting.on_send = [&](int tag) {
      if (tag < 1 || tag > static_cast<int>(parameters.size())) return;  // no gradient
      ++all[at];
      early[at] += std::none_of(parameters.begin(), parameters.end(), [&](Parameter* p) {
        return of_layer(p, ".0.") && p->variable().node()->grad_written;
      });
    };
    training.run(1, 2);
    for (std::size_t i = 0; i < parameters.size(); ++i)
      later_layer[at] += of_layer(parameters[i], ".1.") && training.parallel().owner(i) != group.rank();
  });
  for (const std::string& e : errors) EXPECT_EQ(e, "");
  // Before anything of the first layer: the second one's, and the norm's after it.
  EXPECT_EQ(early[0] + early[1], later_layer[0] + later_layer[1] + 1);
  EXPECT_GT(all[0] + all[1], early[0] + early[1]);
}

TEST(DataParallel, TernaryWeightsTravelAsCodesOfTwoBits) {
  std::vector<std::size_t> gradients(2), weights(2);
  std::size_t ternary = 0, others = 0, scales = 0;
  const auto errors = on_members(2, [&](ProcessGroup& group) {
    CountingGroup counting(group);
    TinyTraining training(counting, {});
    training.run(0, 1);
    const auto at = static_cast<std::size_t>(group.rank());
    const std::size_t before = counting.sent;
    training.parallel().refresh([&] { training.model().refresh(training.context()); });
    weights[at] = counting.sent - before;
    gradients[at] = before - weights[at];
    if (group.rank() != 0) return;
    for (const TensorId id : training.model().tensor_ids())
      if (Linear* l = training.model().linear(id)) {
        ternary += l->weight().value().size();
        ++scales;
      }
    others = static_cast<std::size_t>(training.model().parameter_count()) - ternary;
  });
  for (const std::string& e : errors) EXPECT_EQ(e, "");
  EXPECT_EQ(gradients[0] + gradients[1], 4 * (ternary + others));  // each gradient once
  EXPECT_EQ(weights[0] + weights[1], ternary / 4 + 4 * scales + 4 * others);
}

TEST(DataParallel, AProcessThatFailsEndsTheOthers) {
  for (const int failing : {0, 1, 2}) {
    const auto errors = on_members(4, [&](ProcessGroup& group) {
      TinyTraining training(group, {});
      training.on_pass = [&](std::int64_t step, std::int64_t) {
        if (step == 2 && group.rank() == failing) throw Error(ErrorCode::kIo, "no network");
      };
      training.run(0, 4);
    });
    for (int rank = 0; rank < 4; ++rank)
      EXPECT_EQ(
          errors[static_cast<std::size_t>(rank)],
          rank == failing ? "no network" : "process " + std::to_string(failing) + " has left: no network");
  }
}

TEST(DataParallel, AFailureWithdrawsWhatWasBegun) {
  const auto members = thread_group(2);
  CountingGroup first(*members[0]);
  std::vector<std::byte> gradient;
  int tag = 0;
  {
    TinyOptions o;
    o.parts = 2;
    o.micro_batch = 4;
    TinyTraining training(first, o);
    training.after_pass = [] { throw Error(ErrorCode::kIo, "no network"); };
    BITNET_EXPECT_ERROR(training.run(0, 1), ErrorCode::kIo, "no network");
    EXPECT_EQ(first.sent, 0u);  // the tape has yet to learn when gradients are complete
    const int receives = first.begun;
    EXPECT_GT(receives, 0);
    BITNET_EXPECT_ERROR(training.run(0, 1), ErrorCode::kIo, "no network");
    EXPECT_GT(first.sent, 0u);
    EXPECT_GT(first.begun, receives);
    const auto parameters = training.model().parameters();
    for (std::size_t i = 0; i < parameters.size() && gradient.empty(); ++i)
      if (training.parallel().owner(i) == 0) {
        gradient.resize(parameters[i]->value().size_bytes());
        tag = static_cast<int>(1 + i);
      }
  }
  EXPECT_EQ(first.begun, 0) << "after the buffers have gone";
  members[1]->send(gradient, 0, tag);  // for AddressSanitizer: what the other process would go on with
  members[1]->withdraw();
}

TEST(DataParallel, AFailedPassMayBeTriedAgain) {
  const TinyResult expected = train_on(2, {});
  const auto errors = on_members(2, [&](ProcessGroup& group) {
    TinyTraining training(group, {});
    int failures = 0;
    training.on_pass = [&](std::int64_t step, std::int64_t first) {
      if (group.rank() != 1 || step != 1 || first != 6 || failures++ > 0) return;
      training.tape().release();
      throw Error(ErrorCode::kOutOfMemory, "no memory");
    };
    training.run(0, 1);
    try {
      training.run(1, 2);
    } catch (const Error& e) {
      if (e.code() != ErrorCode::kOutOfMemory) throw;
      training.run(1, 2);
    }
    training.run(2, 4);
    if (failures != (group.rank() == 1 ? 2 : 0)) throw Error(ErrorCode::kInternal, "not tried twice");
    const auto state = training.state(group);
    if (group.rank() == 0 && state != expected.state) throw Error(ErrorCode::kInternal, "other bits");
  });
  for (const std::string& e : errors) EXPECT_EQ(e, "");
}

TEST(Tape, SaysWhenAGradientIsComplete) {
  const ExecutionContext context(ExecutionContext::Options{1, {}});
  Parameter a(context, "a", 4, 3, true), b(context, "b", 4, 4, true), c(context, "c", 5, 4, true);
  Tape tape(context);
  std::vector<std::pair<Node*, std::vector<float>>> told;
  tape.watch_gradients([&](Node* node) {
    told.emplace_back(node, std::vector<float>(node->grad, node->grad + node->rows * node->cols));
  });
  const auto pass = [&](std::int64_t rows) {
    told.clear();
    for (Parameter* p : {&a, &b, &c}) p->zero_grad();
    const Variable in = tape.make(rows, 3, false);
    Rng rng(3);
    for (float& v : in.value()) v = static_cast<float>(rng.normal());
    Variable x = linear(tape, in, a.variable());
    x = linear(tape, x, b.variable());
    x = linear(tape, x, b.variable());
    const std::vector<std::int32_t> targets(static_cast<std::size_t>(rows), 1);
    tape.backward(cross_entropy(tape, linear(tape, x, c.variable()), targets, 1.0f));
    tape.reset();
  };
  Rng rng(4);
  for (Parameter* p : {&a, &b, &c})
    for (float& w : p->value()) w = static_cast<float>(rng.normal());
  pass(2);
  EXPECT_TRUE(told.empty()) << "nothing is known of the first pass";
  for (int again = 0; again < 2; ++again) {
    pass(2);
    ASSERT_EQ(told.size(), 3u);
    std::size_t i = 0;
    for (Parameter* p : {&c, &b, &a}) {
      EXPECT_EQ(told[i].first, p->variable().node());
      EXPECT_TRUE(std::equal(told[i].second.begin(), told[i].second.end(), p->grad().begin()))
          << p->name() << " changed after it was said to be complete";
      ++i;
    }
  }
  pass(3);
  EXPECT_TRUE(told.empty()) << "other shapes";
  pass(3);
  EXPECT_EQ(told.size(), 3u);
  tape.watch_gradients({});
  pass(3);
  EXPECT_TRUE(told.empty());
}

TEST(TernaryCache, CodesGiveTheSameTernaryForm) {
  const ExecutionContext context(ExecutionContext::Options{2, {}});
  Rng rng(6);
  for (const auto granularity :
       {ScaleGranularity::kTensor, ScaleGranularity::kRow, ScaleGranularity::kGroup}) {
    QuantizerOptions options;
    options.granularity = granularity;
    constexpr std::int64_t kOut = 37, kIn = 301;  // ragged bytes, groups and pieces
    TernaryCache here(context, kOut, kIn, options), there(context, kOut, kIn, options);
    std::vector<float> latent(kOut * kIn);
    for (int round = 0; round < 3; ++round) {
      for (float& w : latent) w = static_cast<float>(rng.normal());
      here.update(context, latent);
      std::vector<std::uint8_t> codes(here.code_bytes());
      here.pack(context, codes);
      EXPECT_EQ(codes.size(), (latent.size() + 3) / 4);
      there.assign(context, codes, here.scales());
      EXPECT_TRUE(std::equal(here.trits().begin(), here.trits().end(), there.trits().begin()));
      EXPECT_TRUE(std::equal(here.scales().begin(), here.scales().end(), there.scales().begin()));
      EXPECT_EQ(here.zeros(), there.zeros());
      EXPECT_EQ(here.flips(), there.flips());
    }
    EXPECT_GT(here.flips(), 0);
    std::vector<std::uint8_t> codes(here.code_bytes() + 1);
    BITNET_EXPECT_ERROR(here.pack(context, codes), ErrorCode::kInvalidArgument, "number of bytes");
    BITNET_EXPECT_ERROR(there.assign(context, codes, here.scales()), ErrorCode::kInvalidArgument,
                        "another number");
  }
}

}  // namespace
}  // namespace bitnet::training
