// The facade and perplexity on a model file, and devices that lack ops.
#include "bitnet/inference/engine.hpp"

#include <cmath>
#include <map>

#include "bitnet/core/io/gguf.hpp"
#include "bitnet/core/profiler.hpp"
#include "bitnet/inference/fallback_backend.hpp"
#include "bitnet/testing/forwarding_backend.hpp"
#include "support.hpp"

namespace bitnet::inference {
namespace {

struct EngineTest : ::testing::Test {
  testing::TempDir folder;
  testing::TensorModel tensors = testing::random_model(
      [] {
        ModelConfig c = text_config();
        c.hidden_size = c.intermediate_size = 128;
        c.head_dim = 32;
        return c;
      }(),
      2, DType::kF16);
  std::filesystem::path path = folder / "tiny.gguf";

  EngineTest() {
    const auto tokenizer = byte_tokenizer();
    quant::write_model(path, tensors.config, tokenizer.get(), tensors, {});
  }

  EngineOptions options() const {
    EngineOptions o;
    o.model = path;
    o.context = make_context(1);
    return o;
  }
};

TEST_F(EngineTest, GeneratesFromTextAsThePlainLoopDoes) {
  InferenceEngine engine(options());
  GenerationOptions g;
  g.max_tokens = 20;
  g.sampling.seed = 11;
  std::string streamed;
  const GenerationResult result =
      engine.generate("the cat", g, [&](std::string_view text) { streamed += text; });
  const auto prompt = engine.model()->tokenizer()->encode("the cat");
  EXPECT_EQ(result.tokens, plain_generate(engine.model(), prompt, g.sampling, 20));
  EXPECT_EQ(result.text, streamed);
  EXPECT_EQ(result.text, engine.model()->tokenizer()->decode(result.tokens));
  EXPECT_EQ(result.prompt_tokens, static_cast<std::int64_t>(prompt.size()));
  EXPECT_GE(result.timings.decode_seconds, 0);
  EXPECT_GT(result.timings.prompt_seconds, 0);

  const GenerationResult again = engine.generate("the cat", g);  // from the cached prompt
  EXPECT_EQ(again.reused_tokens, again.prompt_tokens - 1);
  EXPECT_EQ(again.tokens, result.tokens);
}

TEST_F(EngineTest, ASentencePieceTextGoesOnWithItsSpace) {
  const auto tokenizer = Tokenizer::load(testing::source_path("tests/data/tokenizers/spm.model"));
  ASSERT_TRUE(tokenizer->strips_leading_space());
  ModelConfig config = tensors.config;
  config.vocab_size = tokenizer->vocab_size();
  const auto model = testing::random_model(config, 4);
  quant::write_model(folder / "spm.gguf", config, tokenizer.get(), model, {});
  EngineOptions o = options();
  o.model = folder / "spm.gguf";
  InferenceEngine engine(o);
  int spaces = 0;
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    GenerationOptions g;
    g.max_tokens = 6;
    g.ignore_eos = true;
    g.sampling.seed = seed;
    g.sampling.temperature = 3;
    const GenerationResult result = engine.generate("the", g);
    // Prompt and answer decode to the prompt's text and the answer's.
    std::vector<TokenId> all = tokenizer->encode("the");
    const std::string before = tokenizer->decode(all);
    all.insert(all.end(), result.tokens.begin(), result.tokens.end());
    EXPECT_EQ(before + result.text, tokenizer->decode(all));
    if (result.text.empty() || result.text[0] != ' ') continue;
    ++spaces;
    g.strip_leading_space = true;
    EXPECT_EQ(engine.generate("the", g).text, tokenizer->decode(result.tokens));
  }
  EXPECT_GT(spaces, 0);
}

TEST_F(EngineTest, AKvTypeThatNoPolicyAllowsIsRefusedBeforeTheModelIsRead) {
  EngineOptions o = options();
  o.model = folder / "nowhere.gguf";
  o.kv_type = DType::kBF16;
  BITNET_EXPECT_ERROR(
      InferenceEngine{o}, ErrorCode::kUnsupported,
      "precision of attention in inference: storage bf16, compute f32, accumulate f32 asked for; there are");
  o.kv_type.reset();
  o.precision = PrecisionPolicy::training(DType::kBF16);
  BITNET_EXPECT_ERROR(InferenceEngine{o}, ErrorCode::kUnsupported,
                      "precision of ternary linear in inference");
}

TEST_F(EngineTest, ThePolicySaysWhatModelAndCacheAreStoredIn) {
  const auto text = [&](auto change) {
    EngineOptions o = options();
    change(o);
    InferenceEngine engine(o);
    GenerationOptions g;
    g.max_tokens = 12;
    return engine.generate("the", g).text;
  };
  EngineOptions o = options();
  o.precision = PrecisionPolicy::inference().set_kv_type(DType::kF32).set_tables(DType::kF16);
  InferenceEngine engine(o);
  EXPECT_EQ(engine.model()->precision(), *o.precision);
  EXPECT_EQ(engine.model()->head_type(), HeadType::kF16);
  EXPECT_EQ(engine.model()->kv_type(), DType::kF32);
  EXPECT_EQ(engine.model()->kv_type(DType::kI8), DType::kI8);
  EXPECT_EQ(text([&](EngineOptions& p) { p.precision = o.precision; }), text([](EngineOptions& p) {
              p.head = HeadType::kF16;
              p.kv_type = DType::kF32;
            }));
  // An option goes before the policy.
  o.head = HeadType::kInt8;
  EXPECT_EQ(InferenceEngine(o).model()->head_type(), HeadType::kInt8);
}

TEST_F(EngineTest, ASchedulerOfTheEngineGivesTheSameTokens) {
  InferenceEngine engine(options());
  GenerationOptions g;
  g.max_tokens = 12;
  const auto prompt = engine.model()->tokenizer()->encode("and the hat");
  const GenerationResult alone = engine.generate(prompt, g);
  const auto scheduler = engine.make_scheduler();
  int done = 0;
  for (int i = 0; i < 3; ++i) {
    Request r;
    r.prompt = prompt;
    r.options = g;
    r.on_done = [&](RequestId, const GenerationResult& result) {
      EXPECT_EQ(result.tokens, alone.tokens);
      EXPECT_EQ(result.text, alone.text);
      ++done;
    };
    scheduler->submit(std::move(r));
  }
  scheduler->run();
  EXPECT_EQ(done, 3);
}

TEST_F(EngineTest, ALimitOfTheContextIsForMemoryOnly) {
  InferenceEngine engine(options()), limited(options());
  GenerationOptions g;
  g.max_tokens = 4;
  const auto expected = engine.generate("the cat", g);
  limited.limit_context(expected.prompt_tokens + 4);
  EXPECT_EQ(limited.n_ctx(), expected.prompt_tokens + 4);
  EXPECT_EQ(limited.generate("the cat", g).tokens, expected.tokens);
  EXPECT_LT(limited.session().cache_bytes(), engine.session().cache_bytes());
  limited.limit_context(1);  // the session exists
  EXPECT_EQ(limited.n_ctx(), expected.prompt_tokens + 4);
  limited.limit_context(1 << 20);
  EXPECT_EQ(limited.n_ctx(), expected.prompt_tokens + 4);
  BITNET_EXPECT_ERROR(limited.limit_context(0), ErrorCode::kInvalidArgument, "a context of 0 tokens");
}

TEST_F(EngineTest, RefusesAndCancels) {
  EngineOptions o = options();
  o.n_ctx = 8;
  InferenceEngine engine(o);
  BITNET_EXPECT_ERROR((void)engine.generate("the cat and the hat and the rat sat on the mat"),
                      ErrorCode::kInvalidArgument, "but the context holds 8");
  BITNET_EXPECT_ERROR((void)engine.generate("a\xff"), ErrorCode::kInvalidArgument, "prompt");
  GenerationOptions g;
  g.cancellation.cancel();
  EXPECT_EQ(engine.generate("the", g).finish_reason, FinishReason::kCancelled);
  InferenceEngine roomy(options());
  g = {};
  g.max_tokens = -1;
  g.ignore_eos = true;
  const CancellationToken token = g.cancellation;
  const GenerationResult stopped = roomy.generate("the cat", g, [&](std::string_view) { token.cancel(); });
  EXPECT_EQ(stopped.finish_reason, FinishReason::kCancelled);
  EXPECT_LT(stopped.tokens.size(), 127u);
  EXPECT_EQ(roomy.generate("").prompt_tokens, 1);  // BOS alone
  o.model = folder / "absent.gguf";
  BITNET_EXPECT_ERROR(InferenceEngine{o}, ErrorCode::kNotFound, "absent.gguf");
  o = options();
  o.device = "abacus";
  BITNET_EXPECT_ERROR(InferenceEngine{o}, ErrorCode::kNotFound, "abacus");
}

TEST_F(EngineTest, PerplexityEqualsTheReference) {
  InferenceEngine engine(options());
  const auto& tokenizer = *engine.model()->tokenizer();
  const std::string text =
      "the cat and the hat and the rat sat on the mat, the end. the hat is odd; 12 cats?";
  const std::vector<TokenId> tokens = tokenizer.encode(text);
  PerplexityOptions o;
  o.n_ctx = 16;
  int reports = 0;
  o.progress = [&](std::int64_t, std::int64_t, double) { ++reports; };
  const PerplexityResult result = perplexity(engine.model(), text, o);

  // The engine's own logits are compared with the reference elsewhere (rounding ties would blur them here):
  // this scores them by the definition, chunk by chunk.
  double nll = 0, squares = 0, bytes = 0, n = 0;
  for (std::size_t begin = 0; begin + 16 <= tokens.size(); begin += 16) {
    std::vector<TokenId> chunk(tokens.begin() + static_cast<std::ptrdiff_t>(begin),
                               tokens.begin() + static_cast<std::ptrdiff_t>(begin + 16));
    chunk[0] = *tokenizer.bos();
    for (std::size_t i = 9; i < 16; ++i) {
      Session session(engine.model());
      const auto logits = session.evaluate(std::span<const TokenId>(chunk).first(i));
      double sum = 0;
      for (const float l : logits) sum += std::exp(static_cast<double>(l));
      const double v = std::log(sum) - logits[static_cast<std::size_t>(chunk[i])];
      nll += v;
      squares += v * v;
      bytes += static_cast<double>(tokenizer.token_bytes(chunk[i]).size());
      ++n;
    }
  }
  EXPECT_EQ(result.scored_tokens, static_cast<std::int64_t>(n));
  EXPECT_EQ(result.chunks, reports);
  EXPECT_EQ(result.scored_bytes, static_cast<std::int64_t>(bytes));
  EXPECT_NEAR(result.nll, nll, 1e-9 * nll);
  EXPECT_NEAR(result.perplexity, std::exp(nll / n), 1e-9 * std::exp(nll / n));
  EXPECT_NEAR(result.bits_per_byte, nll / std::log(2.0) / bytes, 1e-9);
  const double variance = (squares / n - nll / n * (nll / n)) * n / (n - 1);
  EXPECT_NEAR(result.standard_error, result.perplexity * std::sqrt(variance / n),
              1e-9 * result.standard_error);
  o.chunk_rows = 3;
  EXPECT_EQ(perplexity(engine.model(), text, o).nll, result.nll);  // to the bit
}

TEST_F(EngineTest, PerplexityRefusesAndCancels) {
  InferenceEngine engine(options());
  BITNET_EXPECT_ERROR(perplexity(engine.model(), "short"), ErrorCode::kInvalidArgument,
                      "one chunk needs 512");
  PerplexityOptions o;
  o.n_ctx = 4;
  o.cancellation.cancel();
  BITNET_EXPECT_ERROR(perplexity(engine.model(), "the cat and the hat", o), ErrorCode::kCancelled,
                      "cancelled");
  BITNET_EXPECT_ERROR(negative_log_likelihood(std::vector<float>{1, NAN}, 0), ErrorCode::kInternal, "number");
  EXPECT_NEAR(negative_log_likelihood(std::vector<float>{0, 0}, 1), std::log(2.0), 1e-15);
}

/// The CPU backend in disguise: lacks ops, and its buffers are not the CPU's, so that mixing them up fails.
class PartialDevice final : public Backend {
 public:
  explicit PartialDevice(std::vector<BackendOp> ops, bool refuse_dense = false)
      : cpu_(make_cpu_backend(make_context(1))), ops_(std::move(ops)), refuse_dense_(refuse_dense) {}
  std::string_view name() const noexcept override { return "partial"; }
  std::string description() const override { return "a test device"; }
  bool supports(BackendOp op) const noexcept override {
    return std::find(ops_.begin(), ops_.end(), op) != ops_.end();
  }
  std::size_t available_memory() const override { return std::size_t{1} << 30; }
  static inline int runs = 0;

 private:
  struct Memory final : Buffer {
    explicit Memory(BufferPtr b) : Buffer(b->bytes()), inner(std::move(b)) {}
    BufferPtr inner;
  };
  static Buffer& in(Buffer& b) { return *dynamic_cast<Memory&>(b).inner; }
  static Matrix in(Matrix m) {
    m.buffer = &in(*m.buffer);
    return m;
  }
  /// Above every processor's, so that `auto` takes it.
  std::optional<double> do_measure_bandwidth() override { return 42e3; }
  void use(BackendOp op) const {
    ++runs;
    if (!supports(op)) throw Error(ErrorCode::kDevice, "an op that the device lacks");
  }
  BufferPtr do_allocate(std::size_t n, MemoryTag tag) override {
    return std::make_shared<Memory>(cpu_->allocate(n, tag));
  }
  void do_upload(Buffer& to, std::size_t at, std::span<const std::byte> from) override {
    cpu_->upload(in(to), at, from);
  }
  void do_download(const Buffer& from, std::size_t at, std::span<std::byte> to) override {
    cpu_->download(*dynamic_cast<const Memory&>(from).inner, at, to);
  }
  PreparedPtr do_prepare(const LinearWeights& w) override {
    if (refuse_dense_ && !w.ternary()) throw Error(ErrorCode::kUnsupported, "dense linears");
    return cpu_->prepare(w);
  }
  PreparedPtr do_prepare_embedding(const LinearWeights& w) override { return cpu_->prepare_embedding(w); }
  void do_linear(std::span<const PreparedWeights* const> w, Matrix x, std::span<const Matrix> outs) override {
    use(BackendOp::kLinear);
    std::vector<Matrix> inner;
    for (const Matrix& m : outs) inner.push_back(in(m));
    cpu_->linear(w, in(x), inner);
  }
  void do_embed(const PreparedWeights& t, std::span<const std::int32_t> ids, Matrix out) override {
    use(BackendOp::kEmbed);
    cpu_->embed(t, ids, in(out));
  }
  void do_rms_norm(Matrix x, const Buffer& w, float eps, Matrix out) override {
    use(BackendOp::kRmsNorm);
    cpu_->rms_norm(in(x), *dynamic_cast<const Memory&>(w).inner, eps, in(out));
  }
  void do_rope(Matrix x, std::span<const std::int32_t> p, const Buffer& t, std::int64_t d) override {
    use(BackendOp::kRope);
    cpu_->rope(in(x), p, *dynamic_cast<const Memory&>(t).inner, d);
  }
  void do_attention(const AttentionArgs& args) override {
    use(BackendOp::kAttention);
    AttentionArgs a = args;
    for (Matrix* m : {&a.q, &a.k, &a.v, &a.out}) *m = in(*m);
    a.cache.keys = &in(*a.cache.keys);
    a.cache.values = &in(*a.cache.values);
    cpu_->attention(a);
  }
  void do_gated_activation(Activation f, Matrix g, Matrix u, Matrix out) override {
    use(BackendOp::kGatedActivation);
    cpu_->gated_activation(f, in(g), in(u), in(out));
  }
  void do_add(Matrix x, Matrix y) override {
    use(BackendOp::kAdd);
    cpu_->add(in(x), in(y));
  }
  void do_logits(const PreparedWeights& h, Matrix x, std::span<const std::int32_t> r, Matrix out) override {
    use(BackendOp::kLogits);
    cpu_->logits(h, in(x), r, in(out));
  }
  void do_sync() override {}

  std::unique_ptr<Backend> cpu_;
  std::vector<BackendOp> ops_;
  bool refuse_dense_;
};

using Op = BackendOp;

TEST_F(EngineTest, EveryMixOfDeviceAndCpuOpsGivesTheSameTokens) {
  GenerationOptions g;
  g.max_tokens = 10;
  g.ignore_eos = true;
  const GenerationResult expected = InferenceEngine(options()).generate("the cat", g);
  for (unsigned mask = 1; mask < 255; mask += 7) {
    std::vector<Op> ops;
    for (unsigned i = 0; i < kBackendOpCount; ++i)
      if (mask >> i & 1) ops.push_back(static_cast<Op>(i));
    BackendRegistry registry;
    register_cpu_backend(registry);
    registry.add({"partial", DeviceKind::kGpu, "test", 1 << 20, false},
                 [&](auto) { return std::make_unique<PartialDevice>(ops); });
    EngineOptions o = options();
    o.device = "auto";
    o.chunk_rows = 3;
    PartialDevice::runs = 0;
    InferenceEngine engine(o, registry);
    EXPECT_EQ(engine.selection().device.name, "partial");
    EXPECT_EQ(engine.fallback_ops().size(), kBackendOpCount - ops.size());
    EXPECT_EQ(engine.generate("the cat", g).tokens, expected.tokens) << "mask " << mask;
    EXPECT_GT(PartialDevice::runs, 0);
    o.device_only = true;
    BITNET_EXPECT_ERROR(InferenceEngine(o, registry), ErrorCode::kUnsupported,
                        list_ops(engine.fallback_ops()));
  }
}

TEST_F(EngineTest, AutoGoesOnToTheNextDeviceAndANameDoesNot) {
  GenerationOptions g;
  g.max_tokens = 5;
  const GenerationResult expected = InferenceEngine(options()).generate("the cat", g);
  BackendRegistry registry;
  register_cpu_backend(registry);
  registry.add({"dead", DeviceKind::kGpu, "test", 2 << 20, false},
               [](auto) -> std::unique_ptr<Backend> { throw Error(ErrorCode::kDevice, "no answer"); });
  registry.add({"full", DeviceKind::kGpu, "test", 1 << 20, false}, [](auto context) {
    return std::make_unique<testing::FaultyBackend>(
        make_cpu_backend(context), [](std::string_view what, std::size_t) {
          if (what == "allocate") throw Error(ErrorCode::kOutOfMemory, "the device is full");
        });
  });
  EngineOptions o = options();
  o.device = "auto";
  InferenceEngine engine(o, registry);
  EXPECT_EQ(engine.selection().device.name, "cpu");
  EXPECT_THAT(engine.selection().reason, ::testing::AllOf(::testing::HasSubstr("device 'dead': no answer"),
                                                          ::testing::HasSubstr("device 'full': ")));
  EXPECT_TRUE(engine.selection().alternatives.empty());
  EXPECT_EQ(engine.generate("the cat", g).tokens, expected.tokens);
  o.device_only = true;
  BITNET_EXPECT_ERROR(InferenceEngine(o, registry), ErrorCode::kDevice, "no answer");
  o.device_only = false;
  o.device = "full";
  BITNET_EXPECT_ERROR(InferenceEngine(o, registry), ErrorCode::kOutOfMemory, "the device is full");
}

TEST_F(EngineTest, ThePerplexityOfManyTextsIsThatOfEachAlone) {
  InferenceEngine engine(options());
  const Tokenizer& tokenizer = *engine.model()->tokenizer();
  const bool has_bos = tokenizer.adds_bos() && tokenizer.bos();
  std::vector<std::vector<TokenId>> texts{{}, {*tokenizer.bos()}};
  for (const char* text :
       {"the", "the cat", "a hat that is longer than a piece of the text may be", "cat", "x"})
    texts.push_back(tokenizer.encode(text));
  PerplexityOptions o;
  o.n_ctx = 24;
  // One at a time, through a session.
  double nll = 0;
  std::int64_t scored = 0, pieces = 0;
  Session session(engine.model(), {.n_ctx = 24});
  for (const auto& text : texts) {
    for (std::size_t at = 0; at < text.size();) {
      std::vector<TokenId> piece;
      if (has_bos && text[at] != *tokenizer.bos()) piece.push_back(*tokenizer.bos());
      while (piece.size() < 24 && at < text.size()) piece.push_back(text[at++]);
      if (piece.size() < 2) continue;
      ++pieces;
      session.truncate(0);
      session.evaluate_all(std::span<const TokenId>(piece).first(piece.size() - 1), 0,
                           [&](std::int64_t p, std::span<const float> logits) {
                             nll += negative_log_likelihood(logits, piece[static_cast<std::size_t>(p + 1)]);
                             ++scored;
                           });
    }
  }
  ASSERT_GT(pieces, 5);  // one is in several
  for (const std::int64_t rows : {1, 7, 24, 256}) {
    o.chunk_rows = rows;
    std::int64_t last = 0;
    o.progress = [&](std::int64_t done, std::int64_t of, double) {
      EXPECT_GT(done, last);
      EXPECT_EQ(of, pieces);
      last = done;
    };
    const PerplexityResult r = perplexity_of_texts(engine.model(), texts, o);
    EXPECT_EQ(r.scored_tokens, scored);
    EXPECT_EQ(r.chunks, pieces);
    EXPECT_EQ(last, pieces);
    EXPECT_NEAR(r.nll, nll, 1e-9 * nll) << rows << " rows a pass";  // summed in another order
    EXPECT_NEAR(std::log(r.perplexity), nll / static_cast<double>(scored), 1e-9);
  }
  o.progress = {};
  o.max_chunks = 2;
  EXPECT_EQ(perplexity_of_texts(engine.model(), texts, o).chunks, 2);
  BITNET_EXPECT_ERROR(perplexity_of_texts(engine.model(), std::span(texts).first(2), o),
                      ErrorCode::kInvalidArgument, "none of 2 texts has two tokens");
  o.chunk_rows = 0;
  BITNET_EXPECT_ERROR(perplexity_of_texts(engine.model(), texts, o), ErrorCode::kInvalidArgument,
                      "chunk_rows 0");
}

TEST_F(EngineTest, AModelThatCannotRunIsNoFaultOfADevice) {
  BackendRegistry registry;
  int opened = 0;
  for (const char* name : {"one", "two"})
    registry.add({name, DeviceKind::kGpu, "test", 1 << 20, false}, [&](auto) -> std::unique_ptr<Backend> {
      ++opened;
      throw Error(ErrorCode::kDevice, "no answer");
    });
  EngineOptions o = options();
  o.device = "auto";
  o.model = folder / "unknown.gguf";
  GgufMetadata metadata;
  metadata.set_string("general.architecture", "mamba");
  GgufWriter(o.model, metadata, {}).finish();
  try {
    InferenceEngine engine(o, registry);
    FAIL() << "no Error";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::kUnsupported) << e.what();
    EXPECT_THAT(e.what(), ::testing::Not(::testing::HasSubstr("device")));
  }
  EXPECT_EQ(opened, 0);
}

TEST_F(EngineTest, AutoPassesOverADeviceWithoutRoomForTheLinears) {
  const std::size_t needed = ModelFiles::open(path).least_bytes();
  std::size_t trits = 0;
  for (const TensorId id : model_tensors(tensors.config))
    if (is_linear(id.role)) trits += static_cast<std::size_t>(tensor_shape(id, tensors.config).numel());
  EXPECT_GT(needed, 0u);
  EXPECT_NEAR(static_cast<double>(needed), static_cast<double>(trits) / 5, 20.0);
  for (const bool fits : {false, true}) {
    BackendRegistry registry;
    register_cpu_backend(registry);
    registry.add({"gpu", DeviceKind::kGpu, "test", fits ? needed : needed - 1, false},
                 [](auto) { return std::make_unique<PartialDevice>(std::vector<Op>{Op::kAdd}); });
    EngineOptions o = options();
    o.device = "auto";
    EXPECT_EQ(InferenceEngine(o, registry).selection().device.name, fits ? "gpu" : "cpu");
  }
}

TEST_F(EngineTest, AProfileHasLoadingTextAndCopiesBetweenDeviceAndCpu) {
  BackendRegistry registry;
  register_cpu_backend(registry);
  registry.add({"gpu", DeviceKind::kGpu, "test", 1 << 20, false},
               [](auto) { return std::make_unique<PartialDevice>(std::vector<Op>{Op::kLinear}); });
  Profiler profiler;
  EngineOptions o = options();
  o.device = "gpu";
  o.profiler = &profiler;
  InferenceEngine engine(o, registry);
  GenerationOptions g;
  g.max_tokens = 3;
  g.ignore_eos = true;
  ASSERT_FALSE(engine.generate("the cat", g).error);
  std::map<std::string, ProfileRow> rows;
  for (const ProfileRow& row : profiler.summary()) rows[row.name] = row;
  for (const char* name : {"load", "prepare", "prepare_embedding", "upload", "copy", "norm_linear", "text"})
    EXPECT_GT(rows[name].calls, 0u) << name;
  EXPECT_EQ(rows["load"].calls, 1u);
  EXPECT_EQ(rows["text"].calls, 3u);
  EXPECT_GT(rows["copy"].bytes, 0u);
}

TEST_F(EngineTest, WeightsThatTheDeviceRefusesRunOnTheCpu) {
  ModelConfig config = testing::tiny_config();
  config.weights = WeightKind::kDense;
  const auto dense = testing::random_model(config, 3);
  const auto model = Model::build(
      config, nullptr,
      with_cpu_fallback(std::make_unique<PartialDevice>(std::vector<Op>{Op::kLinear, Op::kAdd}, true),
                        make_cpu_backend(make_context(1))),
      dense);
  SamplerOptions greedy;
  greedy.temperature = 0;
  EXPECT_EQ(plain_generate(model, {3, 4, 5}, greedy, 8),
            plain_generate(make_model(dense), {3, 4, 5}, greedy, 8));
}

TEST_F(EngineTest, TheBandwidthOfADeviceWithTheCpuBesideItIsTheDevices) {
  const auto both = with_cpu_fallback(std::make_unique<PartialDevice>(std::vector<Op>{Op::kLinear}),
                                      make_cpu_backend(make_context(1)));
  EXPECT_EQ(both->measure_bandwidth(), 42e3);
}

TEST_F(EngineTest, TheEngineTellsWhatADeviceAskedForByNameDoesNotRun) {
  ModelConfig config = tensors.config;
  config.weights = WeightKind::kDense;
  const auto dense = testing::random_model(config, 3);
  quant::WriteOptions as;
  as.type = quant::LinearType::kDense;
  quant::write_model(folder / "dense.gguf", config, byte_tokenizer().get(), dense, as);
  BackendRegistry registry;
  register_cpu_backend(registry);
  for (const bool refuse : {false, true})
    registry.add({refuse ? "picky" : "gpu", DeviceKind::kGpu, "test", 1 << 20, false}, [refuse](auto) {
      return std::make_unique<PartialDevice>(std::vector<Op>{Op::kLinear, Op::kAdd}, refuse);
    });
  EngineOptions o = options();
  o.model = folder / "dense.gguf";
  o.floats = quant::FloatLinears::kKeep;
  o.device = "gpu";
  InferenceEngine taken(o, registry);
  EXPECT_EQ(taken.fallback_ops().size(), kBackendOpCount - 2);
  EXPECT_EQ(taken.fallback_weights(), 0);
  o.device = "picky";
  InferenceEngine refused(o, registry);
  EXPECT_EQ(refused.selection().device.name, "picky");
  EXPECT_EQ(refused.fallback_weights(), 7 * config.n_layers);
  EXPECT_EQ(InferenceEngine(options()).fallback_weights(), 0);
}

TEST(Fallback, ADeviceThatLacksNothingStaysItself) {
  auto cpu = make_cpu_backend(make_context(1));
  const Backend* before = cpu.get();
  const auto after = with_cpu_fallback(std::move(cpu), make_cpu_backend(make_context(1)), true);
  EXPECT_EQ(after.get(), before);
}

}  // namespace
}  // namespace bitnet::inference
