// The contract of docs/numerics.md as one matrix: the logits of a text are bit-equal whatever the number of
// threads, what else is in the batch, how the prompt is cut, and the instruction set among those of a class.
// Models: the tiny ones of every architecture and format, the shipped one, and the widths of 2B-4T. What the
// logits must be is models_test.cpp's; this one compares them with themselves. BITNET_ISA names the
// instruction set under test, as one ctest each; the reference is the first of its class that this CPU has.
#include <cctype>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "bitnet/inference/model.hpp"
#include "bitnet/inference/register.hpp"
#include "bitnet/testing/isa_class.hpp"
#include "bitnet/testing/reference_forward.hpp"
#include "bitnet/testing/testing.hpp"
#include "forward.hpp"

namespace bitnet::inference {
namespace {

#ifdef BITNET_TEST_SMALL
constexpr bool kSmall = true;  // sanitizers: 20 to 50 times slower
#else
constexpr bool kSmall = false;
#endif

/// More than two of the largest chunk and than a tile of attention's keys, and no multiple of a page.
constexpr std::size_t kTokens = 141;
constexpr std::int64_t kChunks[] = {1, 7, 64, 0};  // 0: whole

/// Two layers of 2B-4T (configs/synth/bitnet-2b-4t.json) with few words, from a seed.
const testing::TensorModel& wide_model() {
  static const testing::TensorModel model = [] {
    ModelConfig c = ModelConfig::from_json_file(testing::source_path("configs/synth/bitnet-2b-4t.json"));
    c.n_layers = 2;
    c.vocab_size = 512;
    c.head_dim = 128;
    if (kSmall) {
      c.hidden_size /= 10;
      c.intermediate_size = 700;
      c.n_heads = 4;
      c.n_kv_heads = 1;
    }
    return testing::random_model(c, 1, DType::kF16);
  }();
  return model;
}

/// What a model is kept in while it runs. Each form has bits of its own.
struct Form {
  HeadType head;
  DType kv;
};
constexpr Form kForms[] = {{HeadType::kInt8, DType::kF16},  {HeadType::kInt8, DType::kI8},
                           {HeadType::kInt8, DType::kF32},  {HeadType::kStored, DType::kF16},
                           {HeadType::kStored, DType::kI8}, {HeadType::kStored, DType::kF32}};
/// For the wide model: the int8 head and both fast caches.
constexpr Form kWideForms[] = {kForms[0], kForms[1]};
/// For the shipped model: all, but under sanitizers one of each head.
#ifdef BITNET_TEST_SMALL
constexpr Form kShippedForms[] = {kForms[0], kForms[4]};
constexpr std::size_t kThreads[] = {3};
#else
constexpr const auto& kShippedForms = kForms;
constexpr std::size_t kThreads[] = {1, 2, 3};
#endif

std::shared_ptr<const Model> make_model(const std::string& name, Form form, Isa isa, std::size_t threads) {
  ExecutionContext::Options machine;
  machine.threads = threads;
  machine.isa = isa;
  auto backend = make_cpu_backend(std::make_shared<const ExecutionContext>(machine));
  LoadOptions options;
  options.head = form.head;
  if (name == "2b_4t_widths")
    return Model::build(wide_model().config, nullptr, std::move(backend), wide_model(), options);
  const bool shipped = name == "shipped";
  return Model::load(
      testing::source_path(shipped ? "models/bitnet-demo-i2_s.gguf" : "tests/data/models/" + name),
      std::move(backend), options);
}

std::vector<TokenId> random_tokens(std::size_t n, std::int64_t vocab, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<TokenId> ids(n);
  for (TokenId& id : ids) id = static_cast<TokenId>(random() % static_cast<std::uint32_t>(vocab));
  return ids;
}

/// A sequence of a ragged batch.
struct Member {
  Member(KvPool& pool, std::vector<TokenId> tokens, std::int64_t rows_a_pass)
      : ids(std::move(tokens)), chunk(rows_a_pass), cache(pool, static_cast<std::int64_t>(ids.size())) {}

  bool done() const { return cache.length() == static_cast<std::int64_t>(ids.size()); }
  /// Appends what it evaluates in the next pass; begins anew when all is evaluated.
  void join(std::vector<SequenceSlice>& slices, std::vector<TokenId>& to) {
    if (done()) cache.truncate(0);
    rows = std::min(chunk, static_cast<std::int64_t>(ids.size()) - cache.length());
    if (!cache.reserve(cache.length() + rows)) throw Error(ErrorCode::kInternal, "the pool is too small");
    first_row = static_cast<std::int64_t>(to.size());
    slices.push_back({first_row, rows, cache.length(), cache.pages()});
    const auto from = ids.begin() + static_cast<std::ptrdiff_t>(cache.length());
    to.insert(to.end(), from, from + static_cast<std::ptrdiff_t>(rows));
  }

  std::vector<TokenId> ids;
  std::int64_t chunk;
  KvCache cache;
  std::int64_t rows = 0, first_row = 0;  // in the pass that is made
};

/// One way to compute the logits of the text.
struct Way {
  std::int64_t chunk = 0;  // rows a pass; 0: all
  bool company = false;    // among five other sequences
};

/// Logits [kTokens, vocab] after each token of the text.
std::vector<float> logits_of(const std::shared_ptr<const Model>& model, DType kv, const Way& way) {
  const std::int64_t vocab = model->config().vocab_size;
  const auto n = static_cast<std::int64_t>(kTokens);
  KvPool pool(model->backend(), model->config(), 64, KvPool::kDefaultPageSize, kv);
  ForwardPass forward(model, n, n + 16, n);
  std::vector<std::unique_ptr<Member>> members;
  // Two before and three behind, of all lengths and phases, with one row a pass or a few.
  for (std::uint32_t i = 0; i < 6; ++i) {
    const bool self = i == 2;
    if (!self && !way.company) continue;
    members.push_back(
        std::make_unique<Member>(pool, random_tokens(self ? kTokens : 5 + 11 * i, vocab, self ? 7 : 50 + i),
                                 self ? (way.chunk == 0 ? n : way.chunk) : (i == 4 ? 3 : 1)));
  }
  Member& self = *members[way.company ? 2 : 0];
  std::vector<float> logits(kTokens * static_cast<std::size_t>(vocab));
  std::vector<SequenceSlice> slices;
  std::vector<TokenId> ids;
  std::vector<std::int32_t> rows;
  while (!self.done()) {
    slices.clear();
    ids.clear();
    rows.clear();
    for (const auto& m : members) m->join(slices, ids);
    for (std::int64_t r = 0; r < self.rows; ++r)
      rows.push_back(static_cast<std::int32_t>(self.first_row + r));
    forward.run(pool, slices, ids, rows);
    forward.logits(0, self.rows,
                   std::span(logits).subspan(static_cast<std::size_t>(self.cache.length() * vocab)));
    for (const auto& m : members) m->cache.set_length(m->cache.length() + m->rows);
  }
  return logits;
}

/// The first instruction set that this CPU has and that is of the same class.
Isa reference_isa(Isa isa) {
  for (const Isa other : compiled_isas())
    if (is_supported(other) && testing::is_fused(f32_kernels(other)) == testing::is_fused(f32_kernels(isa)))
      return other;
  return isa;
}

void expect_equal(const std::vector<float>& logits, const std::vector<float>& reference, std::int64_t vocab) {
  ASSERT_EQ(logits.size(), reference.size());
  if (std::memcmp(logits.data(), reference.data(), logits.size() * sizeof(float)) == 0) return;
  std::size_t i = 0;
  while (std::memcmp(&logits[i], &reference[i], sizeof(float)) == 0) ++i;
  ADD_FAILURE() << "token " << i / static_cast<std::size_t>(vocab) << ", logit "
                << i % static_cast<std::size_t>(vocab) << ": " << logits[i] << ", expected " << reference[i];
}

using Case = std::tuple<const char*, Form>;
class Numerics : public ::testing::TestWithParam<Case> {};

TEST_P(Numerics, LogitsAreTheSameBitsInEveryWay) {
  const std::string name = std::get<0>(GetParam());
  const Form form = std::get<1>(GetParam());
  const Isa isa = default_isa(), other = reference_isa(isa);
  if (name == "2b_4t_widths" && !testing::is_fused(f32_kernels(isa)))
    GTEST_SKIP() << "the widths of 2B-4T are for the fast class: " << to_string(isa) << " would take minutes";
  const auto plain = make_model(name, form, other, 1);
  const std::int64_t vocab = plain->config().vocab_size;
  const std::vector<float> reference = logits_of(plain, form.kv, {});
  for (const std::size_t threads : kThreads) {
    const auto model = make_model(name, form, isa, threads);
    for (const std::int64_t chunk : kChunks) {
      for (const bool company : {false, true}) {
        SCOPED_TRACE(::testing::Message()
                     << to_string(isa) << " against " << to_string(other) << ", " << threads
                     << " threads, chunks of " << chunk << (company ? ", among others" : ", alone"));
        expect_equal(logits_of(model, form.kv, {chunk, company}), reference, vocab);
      }
    }
  }
}

std::string name_of(const ::testing::TestParamInfo<Case>& test) {
  const auto& [model, form] = test.param;
  std::string name = std::string(model) + "_" + std::string(to_string(form.head)) + "_head_" +
                     std::string(to_string(form.kv)) + "_kv";
  for (char& c : name)
    if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
  return name;
}

INSTANTIATE_TEST_SUITE_P(Tiny, Numerics,
                         ::testing::Combine(::testing::Values("bitnet-25-packed", "bitnet-25-online",
                                                              "1bitllm-float", "llama-packed-divide",
                                                              "llama-dense", "bitnet-b1.58-i2_s.gguf",
                                                              "llama-tq1_0.gguf", "llama-tq2_0.gguf"),
                                            ::testing::ValuesIn(kForms)),
                         name_of);
INSTANTIATE_TEST_SUITE_P(Shipped, Numerics,
                         ::testing::Combine(::testing::Values("shipped"), ::testing::ValuesIn(kShippedForms)),
                         name_of);
INSTANTIATE_TEST_SUITE_P(Wide, Numerics,
                         ::testing::Combine(::testing::Values("2b_4t_widths"),
                                            ::testing::ValuesIn(kWideForms)),
                         name_of);

}  // namespace
}  // namespace bitnet::inference
