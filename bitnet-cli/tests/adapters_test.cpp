// --lora and `bitnet merge` on tiny models with an adapter made here.
#include <cmath>
#include <nlohmann/json.hpp>
#include <random>

#include "adapters.hpp"
#include "bitnet/quant/adapter.hpp"
#include "bitnet/quant/model_io.hpp"
#include "cli_fixture.hpp"

namespace bitnet::cli {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

class AdaptersTest : public CliTest {
 protected:
  /// An adapter of every attention linear for the model at `path`; its updates are as large as `size` says.
  std::string adapter(const std::string& path, const std::string& name, float size) {
    const ModelConfig config = quant::ModelReader::open(path)->config();
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    quant::LoraAdapter made;
    for (const TensorId id : model_tensors(config)) {
      if (id.role != TensorRole::kAttnQ && id.role != TensorRole::kAttnV) continue;
      const Shape shape = tensor_shape(id, config);
      quant::LoraLinear l{id, 4, 2.0f, {}, {}};
      for (std::int64_t i = 0; i < 4 * shape[1]; ++i) l.a.push_back(normal(random) * size / 16);
      for (std::int64_t i = 0; i < shape[0] * 4; ++i) l.b.push_back(normal(random));
      made.linears.push_back(std::move(l));
    }
    quant::write_adapter(file(name), made, config);
    return file(name);
  }
  Outcome generate(const std::vector<std::string>& more, const std::string& path) {
    std::vector<std::string> args{"run", "-m", path, "-p", "hello", "--temp", "0", "-n", "24"};
    args.insert(args.end(), more.begin(), more.end());
    return call(args);
  }
  double perplexity(const std::vector<std::string>& more, const std::string& path) {
    std::string text = "x";
    for (int i = 0; i < 400; ++i) text += static_cast<char>('a' + i * i % 26);
    std::vector<std::string> args{"perplexity", "-m", path, "-f", file("text", text), "-c", "64", "--json"};
    args.insert(args.end(), more.begin(), more.end());
    const Outcome o = call(args);
    EXPECT_EQ(o.code, kOk) << o.err;
    return json::parse(o.out)["perplexity"];
  }
};

TEST_F(AdaptersTest, RunBesideTheWeights) {
  const std::string lora = adapter(model(), "lora", 1);
  const Outcome plain = generate({}, model()), with = generate({"--lora", lora, "-v"}, model());
  ASSERT_EQ(with.code, kOk) << with.err;
  EXPECT_NE(plain.out, with.out);
  EXPECT_THAT(with.err, HasSubstr("adapters: rank 4 in all"));
  EXPECT_EQ(generate({"--lora", lora + ":0"}, model()).out, plain.out);
  EXPECT_EQ(generate({"--lora", lora + ":1"}, model()).out, with.out);
  EXPECT_EQ(generate({"--lora", lora, "--lora", lora + ":-1"}, model()).out, plain.out);
}

TEST_F(AdaptersTest, BatchItemsGoThroughThem) {
  const std::string lora = adapter(model(), "lora", 1);
  const std::string in = file("in.txt", "hello\nhello\n");
  const Outcome o =
      call({"batch", "-m", model(), "-i", in, "-o", "-", "--temp", "0", "-n", "24", "--lora", lora});
  ASSERT_EQ(o.code, kOk) << o.err;
  const json first = json::parse(o.out.substr(0, o.out.find('\n')));
  std::string text = generate({"--lora", lora}, model()).out;
  while (text.ends_with('\n')) text.pop_back();
  std::string got = first["text"];
  while (got.ends_with('\n')) got.pop_back();
  EXPECT_EQ(got, text);
}

TEST_F(AdaptersTest, MergedIntoADenseModelItPredictsAsTheAdapterDoes) {
  const std::string lora = adapter(dense_model(), "lora", 0.2f), merged = file("merged.gguf");
  const Outcome o = call({"merge", dense_model(), merged, "--lora", lora, "--dense-type", "f32"});
  ASSERT_EQ(o.code, kOk) << o.err;
  EXPECT_THAT(o.out, HasSubstr("blk.0.attn_q.weight: update"));
  EXPECT_THAT(o.err, HasSubstr("4 linears merged"));
  EXPECT_THAT(o.err, HasSubstr("kept 100.0"));
  const double with = perplexity({"--lora", lora}, dense_model()), after = perplexity({}, merged);
  EXPECT_NE(perplexity({}, dense_model()), with);
  EXPECT_NEAR(after, with, 0.01 * with);
}

TEST_F(AdaptersTest, MergedIntoATernaryModelItSaysWhatIsLost) {
  const std::string lora = adapter(model(), "lora", 0.3f), merged = file("merged.gguf");
  const Outcome o = call({"merge", model(), merged, "--lora", lora, "--json"});
  ASSERT_EQ(o.code, kOk) << o.err;
  const json report = json::parse(o.out)["linears"];
  ASSERT_EQ(report.size(), 4u);
  for (const json& linear : report) {
    EXPECT_GT(linear["flips"].get<std::int64_t>(), 0);
    EXPECT_GT(linear["kept"].get<double>(), 0);
    EXPECT_EQ(linear["weights"].get<std::int64_t>() > linear["flips"].get<std::int64_t>(), true);
  }
  EXPECT_EQ(generate({}, merged).code, kOk);
  // An update that moves no weight past half of its scale leaves the trits.
  const std::string faint = adapter(model(), "faint", 1e-6f);
  const Outcome none = call({"merge", model(), file("same.gguf"), "--lora", faint});
  EXPECT_THAT(none.err, HasSubstr("kept 0.00 %"));
  EXPECT_THAT(none.err, HasSubstr("note: ternary weights keep only"));
  EXPECT_EQ(generate({}, file("same.gguf")).out, generate({}, model()).out);
}

TEST_F(AdaptersTest, MergedIntoEveryKindOfLinearItComesNearToTheAdapter) {
  const auto quantise = [&](const std::string& out, const std::string& plan, const std::string& type) {
    const auto o = call({"quantize", dense_model(), out, "--plan", file("p.yaml", plan), "--type", type});
    ASSERT_EQ(o.code, kOk) << o.err;
  };
  const std::string mixed = "scheme: mixed_precision\nweights: ";
  quantise(file("int8"), mixed + "{method: int8}\n", "extended");
  quantise(file("planes"), mixed + "{method: two-plane, scales: group32}\n", "extended");
  quantise(file("groups"), mixed + "{method: ls, scales: group32}\n", "extended");
  quantise(file("rows.gguf"), "weights: {method: ls, scales: row}\n", "tq2_0");
  quantise(file("fours"), mixed + "{method: ls}\nlayers: [{match: '*', activation_bits: 4}]\n", "extended");
  const std::string lora = adapter(dense_model(), "lora", 0.3f);
  for (const std::string name : {"int8", "planes", "groups", "rows.gguf", "fours"}) {
    SCOPED_TRACE(name);
    const std::string in = file(name), out = file("merged-" + name);
    const Outcome o = call({"merge", in, out, "--lora", lora, "--json"});
    ASSERT_EQ(o.code, kOk) << o.err;
    const json report = json::parse(o.out)["linears"];
    ASSERT_EQ(report.size(), 4u);
    const std::int64_t planes = name == "int8" ? 0 : name == "planes" ? 2 : 1;
    for (const json& linear : report) {
      EXPECT_EQ(linear["trits"].get<std::int64_t>(), planes * linear["weights"].get<std::int64_t>());
      EXPECT_GT(linear["kept"].get<double>(), name == "int8" ? 0.99 : 0.1);
    }
    const auto before = quant::ModelReader::open(in), after = quant::ModelReader::open(out);
    for (const TensorId id : before->tensors()) EXPECT_EQ(before->stored_type(id), after->stored_type(id));
    // What runs is nearer to the adapter beside the weights than the model without it is, where a linear has
    // room for a small change.
    const double plain = perplexity({}, in), merged = perplexity({}, out);
    EXPECT_NE(merged, plain);
    if (planes == 1) continue;
    const double with = perplexity({"--lora", lora}, in);
    EXPECT_LT(std::fabs(merged - with), std::fabs(plain - with));
  }
  EXPECT_FAILS(call({"merge", file("rows.gguf"), file("x.gguf"), "--lora", lora, "--type", "i2_s"}), kFailure,
               "i2_s holds one scale a matrix, got 256; types that would do: tq1_0, tq2_0, extended");
  EXPECT_FAILS(call({"merge", file("int8"), file("x.gguf"), "--lora", lora}), kFailure,
               "i2_s holds no int8 linears; types that would do: extended");
  EXPECT_FAILS(call({"merge", file("rows.gguf"), file("int8"), "--lora", lora}), kFailure, "is not empty");
  EXPECT_FALSE(fs::exists(file("x.gguf")));
}

TEST_F(AdaptersTest, WrongOnesAreNamed) {
  EXPECT_FAILS(generate({"--lora", file("none")}, model()), kFailure,
               "none': expected an adapter's directory");
  EXPECT_FAILS(generate({"--lora", ":2"}, model()), kUsage, "--lora: expected PATH or PATH:WEIGHT");
  const std::string lora = adapter(model(), "lora", 1);
  EXPECT_FAILS(generate({"--lora", lora + ":x"}, model()), kFailure, "lora:x'");
  EXPECT_FAILS(call({"merge", model(), file("x.gguf")}), kUsage, "missing option --lora");
  EXPECT_FAILS(call({"merge", model(), model(), "--lora", lora}), kFailure, "same");
  EXPECT_FALSE(fs::exists(file("x.gguf")));
}

}  // namespace
}  // namespace bitnet::cli
