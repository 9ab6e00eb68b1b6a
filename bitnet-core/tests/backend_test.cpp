// The backend seam: argument checks happen before a device sees anything; the registry finds and explains
// devices.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <functional>
#include <limits>
#include <utility>
#include <vector>

#include "bitnet/core/device/registry.hpp"
#include "bitnet/core/profiler.hpp"
#include "bitnet/testing/testing.hpp"

namespace bitnet {
namespace {

constexpr std::int64_t kHuge = std::numeric_limits<std::int64_t>::max() - 1;  // even

struct PlainBuffer final : Buffer {
  explicit PlainBuffer(std::size_t bytes) : Buffer(bytes) {}
};

struct Plain final : PreparedWeights {
  Plain(std::int64_t out, std::int64_t in, bool ternary) : PreparedWeights(out, in, ternary, 0) {}
};

/// Counts the calls that pass the checks.
class CountingBackend final : public Backend {
 public:
  int calls = 0;
  std::function<void()> fails = [] {};  // of add() and sync()
  std::string_view name() const noexcept override { return "counting"; }
  std::string description() const override { return "counts calls"; }
  bool supports(BackendOp) const noexcept override { return true; }
  std::size_t available_memory() const override { return 0; }

 private:
  BufferPtr do_allocate(std::size_t bytes, MemoryTag) override {
    return std::make_shared<PlainBuffer>(bytes);
  }
  void do_upload(Buffer&, std::size_t, std::span<const std::byte>) override { ++calls; }
  void do_download(const Buffer&, std::size_t, std::span<std::byte>) override { ++calls; }
  PreparedPtr do_prepare(const LinearWeights& w) override {
    return std::make_shared<Plain>(w.out, w.in, w.ternary());
  }
  PreparedPtr do_prepare_embedding(const LinearWeights& w) override {
    return std::make_shared<Plain>(w.out, w.in, false);
  }
  void do_linear(std::span<const PreparedWeights* const>, Matrix, std::span<const Matrix>) override {
    ++calls;
  }
  void do_embed(const PreparedWeights&, std::span<const std::int32_t>, Matrix) override { ++calls; }
  void do_rms_norm(Matrix, const Buffer&, float, Matrix) override { ++calls; }
  void do_rope(Matrix, std::span<const std::int32_t>, const Buffer&, std::int64_t) override { ++calls; }
  void do_attention(const AttentionArgs&) override { ++calls; }
  void do_gated_activation(Activation, Matrix, Matrix, Matrix) override { ++calls; }
  void do_add(Matrix, Matrix) override {
    ++calls;
    fails();
  }
  void do_logits(const PreparedWeights&, Matrix, std::span<const std::int32_t>, Matrix) override { ++calls; }
  void do_sync() override {
    ++calls;
    fails();
  }
};

class BackendChecks : public ::testing::Test {
 protected:
  Matrix matrix(std::int64_t rows, std::int64_t cols) { return {big_.get(), 0, rows, cols}; }
  void refused(const std::function<void()>& call, const char* text) {
    const int before = backend_.calls;
    BITNET_EXPECT_ERROR(call(), ErrorCode::kInvalidArgument, text);
    EXPECT_EQ(backend_.calls, before) << "the device must not see a bad call";
  }
  void accepted(const std::function<void()>& call) {
    const int before = backend_.calls;
    EXPECT_NO_THROW(call());
    EXPECT_EQ(backend_.calls, before + 1);
  }
  CountingBackend backend_;
  BufferPtr big_ = backend_.allocate(4096);
};

TEST_F(BackendChecks, MatricesMustFitTheirBuffers) {
  accepted([&] { backend_.add(matrix(32, 32), matrix(32, 32)); });
  refused([&] { backend_.add(matrix(32, 33), matrix(32, 33)); }, "does not fit its buffer of 4096 bytes");
  refused([&] { backend_.add({big_.get(), 4, 32, 32}, matrix(32, 32)); }, "does not fit");
  refused([&] { backend_.add({big_.get(), 2, 1, 1}, matrix(1, 1)); }, "does not fit");
  refused([&] { backend_.add({nullptr, 0, 1, 1}, matrix(1, 1)); }, "does not fit");
  refused([&] { backend_.add({big_.get(), 0, std::int64_t{1} << 62, 8}, matrix(1, 1)); }, "does not fit");
  refused([&] { backend_.add(matrix(2, 3), matrix(3, 2)); },
          "add: x is [2, 3], y [3, 2]: they must have the same shape");
}

TEST_F(BackendChecks, TopOfARowHasOneToAllOfItsColumns) {
  std::array<TopValue, 6> out{};
  accepted([&] { backend_.top(matrix(1, 8), 6, out); });  // by a download of its row
  refused([&] { backend_.top(matrix(1, 8), 9, out); }, "top: 9 of x [1, 8] into 6 places");
  refused([&] { backend_.top(matrix(1, 8), 0, out); }, "k must be 1 … columns");
  refused([&] { backend_.top(matrix(2, 8), 4, out); }, "out [rows, k]");
  refused([&] { backend_.top(matrix(32, 33), 1, out); }, "does not fit");
}

TEST_F(BackendChecks, TransfersStayInside) {
  std::array<std::byte, 16> bytes{};
  accepted([&] { backend_.upload(*big_, 4080, bytes); });
  refused([&] { backend_.upload(*big_, 4081, bytes); },
          "upload: 16 bytes at byte 4081 of 4096: the range is outside the buffer");
  refused([&] { backend_.download(*big_, ~std::size_t{0}, bytes); }, "outside the buffer");
}

TEST_F(BackendChecks, AProfilerSeesOpsWithTheirBytesAndWaitsForThem) {
  Profiler profiler;
  backend_.set_profiler(&profiler);
  const int before = backend_.calls;
  backend_.add(matrix(2, 8), matrix(2, 8));
  backend_.rms_norm(matrix(2, 8), *big_, 1e-5f, matrix(2, 8));
  EXPECT_EQ(backend_.calls, before + 4);  // each op, and a sync() behind it
  refused([&] { backend_.add(matrix(2, 3), matrix(3, 2)); }, "same shape");
  const Plain w(4, 8, false);
  const PreparedWeights* const one = &w;
  const Matrix out = matrix(2, 4);
  backend_.linear({&one, 1}, matrix(2, 8), {&out, 1});
  backend_.add(matrix(0, 8), matrix(0, 8));  // nothing to do
  const auto events = profiler.events();
  ASSERT_EQ(events.size(), 3u);
  EXPECT_STREQ(events[0].name, "add");
  EXPECT_EQ(events[0].rows, 2);
  EXPECT_EQ(events[0].bytes, 3 * 2 * 8 * sizeof(float));
  EXPECT_STREQ(events[1].name, "rms_norm");
  EXPECT_EQ(events[1].bytes, 2 * 2 * 8 * sizeof(float) + 4096);
  EXPECT_EQ(events[2].bytes, (2 * 8 + 2 * 4) * sizeof(float));  // these weights occupy nothing
  backend_.set_profiler(nullptr);
  accepted([&] { backend_.add(matrix(2, 8), matrix(2, 8)); });
  EXPECT_EQ(profiler.events().size(), 3u);
}

TEST_F(BackendChecks, FailuresOfADeviceSayWhichOneOnce) {
  const auto text_of = [&](const std::function<void()>& call) {
    try {
      call();
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string("nothing");
  };
  const auto add = [&] { backend_.add(matrix(2, 8), matrix(2, 8)); };
  backend_.fails = [] { throw Error(ErrorCode::kDevice, "the queue is lost"); };
  EXPECT_EQ(text_of(add), "counting: the queue is lost");
  EXPECT_EQ(text_of([&] { backend_.sync(); }), "counting: the queue is lost");
  Profiler profiler;
  backend_.set_profiler(&profiler);
  EXPECT_EQ(text_of(add), "counting: the queue is lost");
  backend_.set_profiler(nullptr);
  // As from one of several devices that a backend is made of.
  backend_.fails = [] { throw Error(ErrorCode::kDevice, "the queue is lost").add_context("opencl:0:1"); };
  EXPECT_EQ(text_of(add), "opencl:0:1: the queue is lost");
  backend_.fails = [] { throw Error(ErrorCode::kInvalidArgument, "a buffer of another backend"); };
  EXPECT_EQ(text_of(add), "a buffer of another backend");
}

// Zones are those of the backend around it; what is measured inside still ends with the op.
TEST_F(BackendChecks, AnInnerProfilerSeesNoOpsAndTheyWait) {
  Profiler profiler;
  backend_.set_inner_profiler(&profiler);
  EXPECT_EQ(backend_.profiler(), &profiler);
  const int before = backend_.calls;
  backend_.add(matrix(2, 8), matrix(2, 8));
  EXPECT_EQ(backend_.calls, before + 2);
  EXPECT_TRUE(profiler.events().empty());
  backend_.set_profiler(&profiler);
  backend_.add(matrix(2, 8), matrix(2, 8));
  EXPECT_EQ(profiler.events().size(), 1u);
  backend_.set_inner_profiler(nullptr);
  EXPECT_EQ(backend_.profiler(), nullptr);
  backend_.add(matrix(2, 8), matrix(2, 8));
  EXPECT_EQ(profiler.events().size(), 1u);
}

TEST_F(BackendChecks, WeightsMustBeWhole) {
  const std::vector<std::int8_t> trits(6);
  const std::array<float, 1> scale{1};
  const LinearWeights good{
      .out = 2, .in = 3, .trits = trits, .scales = scale, .rows_per_scale = 2, .dense = {}};
  EXPECT_EQ(backend_.prepare(good)->out(), 2);
  LinearWeights bad = good;
  bad.in = 4;
  refused([&] { (void)backend_.prepare(bad); },
          "prepare: 6 trits for 2 × 4: trits must have out × in elements");
  bad = good;
  bad.rows_per_scale = 1;
  refused([&] { (void)backend_.prepare(bad); }, "1 scales for 2 rows: one scale for every group");
  refused([&] { (void)backend_.prepare_embedding(good); },
          "the weights of 2 × 3 are ternary; embeddings are dense");
  bad = good;
  bad.trit_rows = [](std::int64_t, std::int64_t, std::int8_t*) {};
  refused([&] { (void)backend_.prepare(bad); }, "not several");
  bad.trits = {};
  EXPECT_TRUE(backend_.prepare(bad)->ternary());
  bad.scales = {};
  refused([&] { (void)backend_.prepare(bad); }, "one scale for every group");
  bad = {};
  refused([&] { (void)backend_.prepare(bad); }, "weights of 0 × 0: out and in must be positive");
  const std::vector<std::byte> bytes(10);
  bad = {.out = 2, .in = 3, .trits = {}, .scales = {}, .dense = bytes, .dense_type = DType::kF16};
  refused([&] { (void)backend_.prepare(bad); }, "10 bytes for 2 × 3 of f16");
  bad.dense_type = DType::kI32;
  refused([&] { (void)backend_.prepare(bad); }, "weights are i32; dense weights are f32, f16 or bf16");
}

TEST(LinearWeights, RowsComeFromEitherForm) {
  const std::vector<std::int8_t> trits{1, 0, -1, 0, 1, 1};
  std::vector<std::int8_t> scratch;
  LinearWeights w{.out = 3, .in = 2, .trits = trits, .scales = {}, .dense = {}};
  EXPECT_EQ(w.trits_of(1, 3, scratch), trits.data() + 2);
  w.trits = {};
  w.trit_rows = [&](std::int64_t begin, std::int64_t end, std::int8_t* to) {
    std::copy(trits.begin() + 2 * begin, trits.begin() + 2 * end, to);
  };
  EXPECT_EQ(std::vector<std::int8_t>(w.trits_of(1, 3, scratch), w.trits_of(1, 3, scratch) + 4),
            (std::vector<std::int8_t>{-1, 0, 1, 1}));
  const std::vector<std::uint16_t> halves{1, 2, 3, 4, 5, 6};
  std::vector<std::byte> bytes;
  LinearWeights d{.out = 3, .in = 2, .trits = {}, .scales = {}, .dense = {}, .dense_type = DType::kF16};
  d.dense = std::as_bytes(std::span(halves));
  EXPECT_EQ(d.dense_row_bytes(), 4u);
  EXPECT_EQ(d.dense_of(2, 3, bytes), d.dense.data() + 8);
  const std::span<const std::byte> whole = std::exchange(d.dense, {});
  d.dense_rows = [&](std::int64_t begin, std::int64_t end, std::byte* to) {
    std::copy(whole.begin() + 4 * begin, whole.begin() + 4 * end, to);
  };
  EXPECT_EQ(std::to_integer<int>(d.dense_of(2, 3, bytes)[2]), 6);
  EXPECT_EQ(bytes.size(), 4u);
}

TEST_F(BackendChecks, LinearsAgreeWithTheirMatrices) {
  const Plain a(5, 3, true), b(4, 3, false);
  const std::array<const PreparedWeights*, 2> mixed{&a, &b};
  const std::array<Matrix, 2> outs{matrix(2, 5), matrix(2, 4)};
  accepted([&] { backend_.linear(std::span(mixed).first(1), matrix(2, 3), std::span(outs).first(1)); });
  refused([&] { backend_.linear(mixed, matrix(2, 3), outs); },
          "weight 0 is ternary, weight 1 dense: weights of one call must be of one kind");
  refused([&] { backend_.linear(mixed, matrix(2, 3), std::span(outs).first(1)); },
          "2 weights, 1 outputs: one output for every weight");
  refused([&] { backend_.linear(std::span(mixed).first(1), matrix(2, 4), std::span(outs).first(1)); },
          "linear: x is [2, 4], weight 0 [5, 3]: x must have `in` columns");
  const std::array<const PreparedWeights*, 1> none{nullptr};
  refused([&] { backend_.linear(none, matrix(2, 3), std::span(outs).first(1)); }, "weight 0 is null");
  refused([&] { backend_.linear(std::span(mixed).first(1), matrix(3, 3), std::span(outs).first(1)); },
          "out 0 is [2, 5], x [3, 3], weight 0 [5, 3]: out must be [rows of x, out]");
}

TEST_F(BackendChecks, FusedLinearsAgreeWithTheirMatricesAndAreMadeOfTheSingleOps) {
  const Plain a(5, 3, true);
  const std::array<const PreparedWeights*, 1> one{&a};
  const std::array<Matrix, 1> outs{matrix(2, 5)};
  const PlainBuffer norm(3 * sizeof(float)), small(2 * sizeof(float));
  const Matrix x = matrix(2, 3);
  const auto calls = [&](const std::function<void()>& call) {
    const int before = backend_.calls;
    call();
    return backend_.calls - before;
  };
  EXPECT_EQ(calls([&] { backend_.norm_linear(one, x, norm, 1e-5f, x, outs); }), 2);
  EXPECT_EQ(calls([&] { backend_.gated_linear(Activation::kSilu, x, x, &norm, 1e-5f, a, outs[0]); }), 3);
  EXPECT_EQ(calls([&] { backend_.gated_linear(Activation::kSilu, x, x, nullptr, 1e-5f, a, outs[0]); }), 2);
  refused([&] { backend_.norm_linear(one, x, small, 1e-5f, x, outs); },
          "weight has 8 bytes, x is [2, 3]: weight must have a value a column");
  refused([&] { backend_.norm_linear(one, x, norm, 1e-5f, matrix(1, 3), outs); }, "norm_linear");
  refused([&] { backend_.norm_linear(one, matrix(2, 4), norm, 1e-5f, matrix(2, 4), outs); }, "`in` columns");
  refused([&] { backend_.gated_linear(Activation::kSilu, x, matrix(1, 3), nullptr, 1e-5f, a, outs[0]); },
          "gated_linear");
  refused([&] { backend_.gated_linear(Activation::kSilu, x, x, &small, 1e-5f, a, outs[0]); },
          "a value a column");
  refused([&] { backend_.gated_linear(Activation::kSilu, x, x, nullptr, 1e-5f, a, matrix(2, 4)); },
          "rows of x");
}

TEST_F(BackendChecks, IdsPositionsAndPagesAreInRange) {
  const Plain table(10, 3, false);
  const std::vector<std::int32_t> ids{0, 9}, bad_ids{0, 10};
  accepted([&] { backend_.embed(table, ids, matrix(2, 3)); });
  refused([&] { backend_.embed(table, bad_ids, matrix(2, 3)); }, "ids[1] = 10 is outside 0 … 9");
  accepted([&] { backend_.logits(table, matrix(2, 3), std::vector<std::int32_t>{1}, matrix(1, 10)); });
  refused([&] { backend_.logits(table, matrix(2, 3), std::vector<std::int32_t>{2}, matrix(1, 10)); },
          "rows[0] = 2");
  const BufferPtr rope = backend_.allocate(sizeof(float) * 4 * 8);  // 8 positions of head_dim 4
  accepted([&] { backend_.rope(matrix(1, 8), std::vector<std::int32_t>{7}, *rope, 4); });
  refused([&] { backend_.rope(matrix(1, 8), std::vector<std::int32_t>{8}, *rope, 4); }, "positions[0] = 8");
  refused([&] { backend_.rope(matrix(1, 8), std::vector<std::int32_t>{0}, *rope, 3); },
          "head_dim is 3, x [1, 8]: head_dim must be even and divide the columns");
  refused([&] { backend_.rope(matrix(2, 8), std::vector<std::int32_t>{0}, *rope, 4); },
          "1 positions, x is [2, 8]");
  refused([&] { backend_.rope(matrix(1, 0), std::vector<std::int32_t>{0}, *rope, kHuge); }, "head_dim is");
  refused([&] { backend_.embed(table, ids, matrix(1, 3)); }, "out is [1, 3] for 2 ids of a table [10, 3]");
  refused([&] { backend_.logits(table, matrix(2, 4), ids, matrix(2, 10)); },
          "hidden is [2, 4], head [10, 3]: hidden must have `in` columns");
  refused([&] { backend_.logits(table, matrix(2, 3), ids, matrix(2, 9)); },
          "out is [2, 9] for 2 rows of a head [10, 3]");
}

TEST_F(BackendChecks, AttentionCoversItsRows) {
  const std::vector<std::int32_t> pages{0, 1};
  std::vector<SequenceSlice> sequences{{0, 2, 3, pages}};
  const BufferPtr keys = backend_.allocate(4096), values = backend_.allocate(4096);
  AttentionArgs args{matrix(2, 8),
                     matrix(2, 4),
                     matrix(2, 4),
                     matrix(2, 8),
                     {keys.get(), values.get(), 2, 4},
                     sequences,
                     2,
                     1,
                     4};
  accepted([&] { backend_.attention(args); });
  sequences[0].past = 7;  // nine tokens in two pages of four
  refused([&] { backend_.attention(args); }, "too few pages: 2 of 3 for 9 tokens");
  sequences[0].past = kHuge;  // more than int64 counts
  refused([&] { backend_.attention(args); }, "too few pages: 2 of ");
  sequences[0].past = 3;
  sequences[0].n_rows = kHuge;
  refused([&] { backend_.attention(args); }, "too few pages: 2 of ");
  sequences[0].n_rows = 1;
  refused([&] { backend_.attention(args); },
          "sequences have 1 rows, k is [2, 4]: sequences must cover every row");
  sequences[0].first_row = 1;
  refused([&] { backend_.attention(args); },
          "a sequence of 1 rows at row 1, 3 in the cache, where row 0 is next");
  sequences[0].first_row = 0;
  sequences[0].n_rows = 2;
  args.cache.n_pages = 1;
  refused([&] { backend_.attention(args); }, "pages[1] = 1");
  args.cache.n_pages = 1000;
  refused([&] { backend_.attention(args); },
          "too small: 4096 bytes of keys, 4096 of values for 1000 pages of 64 bytes");
  args.n_heads = args.n_kv_heads = kHuge;
  refused([&] { backend_.attention(args); }, "heads × 4: columns must be heads × head_dim");
  args.n_heads = 3;
  args.n_kv_heads = 2;
  refused([&] { backend_.attention(args); }, "n_heads is 3, n_kv_heads 2: n_kv_heads must divide n_heads");
  BITNET_EXPECT_ERROR((void)kv_page_bytes(DType::kI8, 16, 1, std::numeric_limits<std::int64_t>::max()),
                      ErrorCode::kInvalidArgument, "KV pages of 16 tokens × 1 heads");
}

TEST_F(BackendChecks, QueriesAreRowsOfTheSequences) {
  const std::vector<std::int32_t> pages{0, 1}, others{2, 3};
  const std::vector<SequenceSlice> sequences{{0, 2, 3, pages}, {2, 3, 0, others}};
  const BufferPtr keys = backend_.allocate(4096), values = backend_.allocate(4096);
  AttentionArgs args{matrix(0, 8),
                     matrix(5, 4),
                     matrix(5, 4),
                     matrix(0, 8),
                     {keys.get(), values.get(), 4, 4},
                     sequences,
                     2,
                     1,
                     4,
                     {}};
  accepted([&] { backend_.attention(args); });  // keys and values are stored
  std::vector<SequenceSlice> queries{{0, 1, 4, pages}, {1, 2, 0, others}};
  args.q = args.out = matrix(3, 8);
  args.queries = queries;
  accepted([&] { backend_.attention(args); });
  queries[0].past = 5;
  refused([&] { backend_.attention(args); },
          "the query at row 0, tokens 5 … 5, lies in none of the 2 sequences");
  queries[0].past = kHuge;
  refused([&] { backend_.attention(args); }, "rows of the sequences");
  queries[0] = {0, 1, 4, others};
  refused([&] { backend_.attention(args); }, "rows of the sequences");
  queries[0] = {1, 1, 4, pages};
  refused([&] { backend_.attention(args); }, "in order");
  queries = {{0, 2, 0, others}, {2, 1, 4, pages}};
  args.queries = queries;
  refused([&] { backend_.attention(args); }, "in their order");
  args.queries = std::span(queries).first(1);
  refused([&] { backend_.attention(args); }, "cover every row of q");
  args.q = args.out = matrix(6, 8);
  refused([&] { backend_.attention(args); }, "q is [6, 8], k [5, 4]: q must not have more rows than k");
}

TEST(BackendRegistry, FindsSelectsAndExplains) {
  BackendRegistry registry;
  const auto make = [](std::shared_ptr<const ExecutionContext>) -> std::unique_ptr<Backend> {
    return std::make_unique<CountingBackend>();
  };
  registry.add(
      {.name = "cpu", .kind = DeviceKind::kCpu, .description = "", .memory_bytes = 0, .emulated = false},
      make);
  EXPECT_EQ(registry.select("auto").device.name, "cpu");
  EXPECT_EQ(registry.select("auto").reason, "cpu: no other device was found");
  registry.add({.name = "opencl:0:0",
                .kind = DeviceKind::kCpu,
                .description = "",
                .memory_bytes = 99,
                .emulated = true},
               make);
  EXPECT_EQ(registry.select("auto").reason, "cpu: the other devices run on this CPU too");
  registry.add({.name = "opencl:1:0",
                .kind = DeviceKind::kGpu,
                .description = "",
                .memory_bytes = 5,
                .emulated = false},
               make);
  registry.add({.name = "opencl:1:1",
                .kind = DeviceKind::kGpu,
                .description = "",
                .memory_bytes = 9,
                .emulated = false},
               make);
  EXPECT_EQ(registry.select("auto").device.name, "opencl:1:1");
  EXPECT_EQ(registry.create("auto", nullptr)->name(), "counting");
  registry.add_note("OpenCL: no driver");
  BITNET_EXPECT_ERROR(
      (void)registry.create("cuda", nullptr), ErrorCode::kNotFound,
      "device 'cuda' (there are: cpu, opencl:0:0, opencl:1:0, opencl:1:1, auto); OpenCL: no driver");
  BITNET_EXPECT_ERROR(
      registry.add({.name = "cpu", .kind = {}, .description = "", .memory_bytes = 0, .emulated = false},
                   make),
      ErrorCode::kInvalidArgument, "registered already");
  registry.add(
      {.name = "none", .kind = DeviceKind::kGpu, .description = "", .memory_bytes = 0, .emulated = false},
      [](std::shared_ptr<const ExecutionContext>) { return std::unique_ptr<Backend>(); });
  BITNET_EXPECT_ERROR((void)registry.create("none", nullptr), ErrorCode::kInternal,
                      "device 'none': its factory made no backend");
}

}  // namespace
}  // namespace bitnet
