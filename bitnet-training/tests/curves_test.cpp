// The page of curves: that it says what the log says, also while the log grows and after a run was stopped.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "bitnet/training/curves.hpp"
#include "tiny_run.hpp"

namespace bitnet::training {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

std::string page_of(const std::filesystem::path& log, int refresh_seconds = 0) {
  Curves curves(log);
  curves.update();
  return curves.html(refresh_seconds);
}

std::size_t count(const std::string& text, const std::string& what) {
  std::size_t n = 0;
  for (std::size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++n;
  return n;
}

TEST(Curves, ARunsLogIsAPageOfCharts) {
  const Fixture f;
  TrainConfig c = f.config("out");
  c.model.n_layers = 2;
  c.sample_every = 7;
  c.sample_prompt = "It <was>";
  c.sample_tokens = 4;
  TrainCallbacks callbacks;
  callbacks.sample = [](std::int64_t step, const WriteSnapshot&) {
    return " sample " + std::to_string(step);
  };
  const TrainResult r = run(c, false, callbacks);
  const std::string page = page_of(c.output / "log.jsonl");
  for (const char* title :
       {"Loss", "Learning rate", "Gradient norm", "Zeros", "Flips", "Scales by layer", "Speed"})
    EXPECT_THAT(page, HasSubstr(">" + std::string(title) + "<")) << title;
  EXPECT_THAT(page, HasSubstr("layer 0"));
  EXPECT_THAT(page, HasSubstr("layer 1"));
  EXPECT_THAT(page, HasSubstr("<td>14 of 14</td>"));
  char perplexity[32];
  std::snprintf(perplexity, sizeof perplexity, "%.4g", r.final_evaluation.perplexity);
  EXPECT_THAT(page, HasSubstr(perplexity));
  EXPECT_THAT(page, HasSubstr("Step 7: It &lt;was&gt; sample 7"));
  EXPECT_THAT(page, HasSubstr("Step 14: It &lt;was&gt; sample 14"));
  EXPECT_THAT(page, Not(HasSubstr("http-equiv=\"refresh\"")));
  EXPECT_THAT(page_of(c.output / "log.jsonl", 5), HasSubstr("<meta http-equiv=\"refresh\" content=\"5\">"));
}

TEST(Curves, FullPrecisionHasNoTrits) {
  const Fixture f;
  const TrainConfig c = f.config("out", "none");
  stop_after(c, 4);
  const std::string page = page_of(c.output / "log.jsonl");
  EXPECT_THAT(page, HasSubstr(">Loss<"));
  EXPECT_THAT(page, Not(HasSubstr("Scales by layer")));
  EXPECT_THAT(page, Not(HasSubstr(">Zeros<")));
}

constexpr const char* kStart =
    R"({"type":"start","step":0,"steps":90,"parameters":5,"quantization":"ternary"})";

std::string train_line(int step, double loss) {
  return R"({"type":"train","step":)" + std::to_string(step) + R"(,"loss":)" + std::to_string(loss) +
         R"(,"learning_rate":0.1,"gradient_norm":1,"zero_fraction":0.3,"flip_rate":0.01,"layer_scales":[0.5]})";
}

TEST(Curves, ALogIsReadAsItGrows) {
  const testing::TempDir dir;
  const auto log = dir / "log.jsonl";
  Curves curves(log);
  curves.update();  // not there yet
  EXPECT_THAT(curves.html(0), HasSubstr("<svg"));
  std::ofstream out(log);
  const auto write = [&](const std::string& text) { out << text << std::flush; };
  write(std::string(kStart) + "\n" + train_line(10, 4) + "\n");
  curves.update();
  EXPECT_THAT(curves.html(0), HasSubstr("<td>10 of 90</td>"));
  const std::string line = train_line(20, 3);
  write(line.substr(0, 25));  // half a line
  curves.update();
  EXPECT_THAT(curves.html(0), HasSubstr("<td>10 of 90</td>"));
  write(line.substr(25) + "\nno record {\n[1]\n{\"type\":\"train\"\n");
  curves.update();
  EXPECT_THAT(curves.html(0), HasSubstr("<td>20 of 90</td>"));
  EXPECT_EQ(curves.html(0), page_of(log));
  // Killed and resumed at step 10: what came later never was.
  write(R"({"type":"evaluation","step":20,"tokens":9,"nll":1,"perplexity":2.7,"bits_per_byte":1})"
        "\n");
  write(R"({"type":"start","step":10,"steps":90,"parameters":5,"quantization":"ternary"})"
        "\n");
  curves.update();
  EXPECT_THAT(curves.html(0), HasSubstr("<td>10 of 90</td>"));
  EXPECT_THAT(curves.html(0), Not(HasSubstr("validation perplexity")));
}

TEST(Curves, LongRunsAreThinnedToMeans) {
  const testing::TempDir dir;
  std::string log = std::string(kStart) + "\n";
  for (int i = 1; i <= 5000; ++i) log += train_line(i, i % 2 ? 1.0 : 3.0) + "\n";
  write_file(dir / "log.jsonl", log);
  const std::string page = page_of(dir / "log.jsonl");
  write_file(dir / "short.jsonl",
             std::string(kStart) + "\n" + train_line(1, 2) + "\n" + train_line(2, 2) + "\n");
  EXPECT_LT(page.size(), 40 * page_of(dir / "short.jsonl").size());
  EXPECT_LT(count(page, ","), 400u * 8 * 4);
  EXPECT_THAT(page, HasSubstr("<td>5000 of 90</td>"));
}

}  // namespace
}  // namespace bitnet::training
