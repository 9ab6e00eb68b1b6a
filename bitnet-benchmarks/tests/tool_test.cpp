// The program's arguments, output and exit codes, and the page it draws. Real files of bitnet bench go
// through it in bench_model.cmake.
#include "bitnet/benchmarks/tool.hpp"

#include <sstream>

#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/testing/testing.hpp"

namespace bitnet::benchmarks {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

struct Outcome {
  int code = -1;
  std::string out, err;
};

Outcome call(const std::vector<std::string>& arguments) {
  std::ostringstream out, err;
  const int code = run_tool(arguments, out, err);
  return {code, out.str(), err.str()};
}

class ToolTest : public ::testing::Test {
 protected:
  std::string bench_file(const std::string& name, double speed) {
    std::string results;
    for (const std::string test : {"pp512", "tg128", "tg128@b4", "tg128@b16"}) {
      for (const int threads : {1, 2}) {
        const double rate = speed * threads;
        results += std::string(results.empty() ? "" : ",") + "{\"test\":\"" + test +
                   "\",\"threads\":" + std::to_string(threads) + ",\"samples\":[" + std::to_string(rate) +
                   "," + std::to_string(rate * 1.01) + "," + std::to_string(rate * 0.99) +
                   "],\"limit_tokens_per_second\":" + std::to_string(2 * rate) +
                   ",\"fraction_of_limit\":0.5}";
      }
    }
    write_file(dir_ / name,
               "{\"machine\":{\"cpu\":\"<cpu> & co\",\"isa\":\"avx2\",\"build\":\"b\",\"device\":\"cpu\"},"
               "\"model\":{\"path\":\"m.gguf\"},\"results\":[" +
                   results + "]}");
    return (dir_ / name).string();
  }
  std::string google_file(const std::string& name, const std::string& more = {}) {
    write_file(dir_ / name,
               "{\"context\":{\"isa\":\"avx2\"},\"benchmarks\":[{\"name\":\"gemv/qo\",\"real_time\":1500,"
               "\"time_unit\":\"ns\",\"bytes/s\":3.2e10}" +
                   more + "]}");
    return (dir_ / name).string();
  }
  testing::TempDir dir_;
};

TEST_F(ToolTest, CompareSaysWhatGotSlowerByItsExitCode) {
  const std::string fast = bench_file("fast.json", 100), slow = bench_file("slow.json", 90);
  const Outcome slower = call({"compare", fast, slow});
  EXPECT_EQ(slower.code, 1) << slower.err;
  EXPECT_THAT(slower.out, HasSubstr("| tg128@b16, 2 threads | 200 tokens/s | 180 tokens/s | 0.900 × |"));
  EXPECT_THAT(slower.out, HasSubstr("8 of 8 tests are slower (by more than 5 %, Welch's t-test p < 0.05)"));
  EXPECT_EQ(call({"compare", fast, slow, "--threshold", "15%"}).code, 0);
  EXPECT_EQ(call({"compare", "--threshold=15", fast, slow}).code, 0);
  EXPECT_EQ(call({"compare", "--threshold=99.5", fast, slow}).code, 0);
  EXPECT_EQ(call({"compare", slow, fast}).code, 0);
  const Outcome same = call({"compare", fast, fast});
  EXPECT_EQ(same.code, 0);
  EXPECT_THAT(same.out, HasSubstr("nothing is slower"));
  const Outcome one = call({"compare", google_file("g.json"), google_file("h.json")});
  EXPECT_EQ(one.code, 0);
  EXPECT_THAT(one.out, HasSubstr("| gemv/qo | 1.5 µs | 1.5 µs | 1.000 × | n/a | one sample: no verdict |"));
  EXPECT_THAT(one.out, HasSubstr("\nno verdict: measure with repetitions"));
  EXPECT_THAT(one.out, Not(HasSubstr("nothing is slower")));
  // A test with two samples, and one whose name would end a cell.
  const std::string run = ",{\"name\":\"a|b\",\"real_time\":1,\"time_unit\":\"ns\"}";
  const Outcome some = call({"compare", google_file("g.json", run + run), google_file("h.json", run + run)});
  EXPECT_THAT(some.out, HasSubstr("| a\\|b | 1 ns | 1 ns | 1.000 × | 1 | same |"));
  EXPECT_THAT(some.out, HasSubstr("\nnothing is slower (by more than 5 %, Welch's t-test p < 0.05), "
                                  "no verdict on 1 of 2 tests\n"));
}

TEST_F(ToolTest, SeriesOfOneNameAreToldApart) {
  const std::string page = (dir_ / "page.html").string(), file = bench_file("a.json", 100);
  std::filesystem::create_directory(dir_ / "other");
  const std::string other = bench_file("other/a.json", 90);
  ASSERT_EQ(call({"report", file, file, other, "-o", page}).code, 0);
  const std::string html = read_file(page), stem = (dir_ / "a").string();
  for (const std::string& name : {stem, stem + " (2)", (dir_ / "other" / "a").string()})
    EXPECT_THAT(html, HasSubstr("<td>" + name + "</td>"));
}

TEST_F(ToolTest, ReportDoesNotDestroyWhatItReads) {
  const std::string file = bench_file("a.json", 100), before = read_file(file);
  std::filesystem::create_symlink("a.json", dir_ / "link.html");
  for (const std::string& out : {file, (dir_ / "." / "a.json").string(),
                                 (dir_ / "x" / ".." / "a.json").string(), (dir_ / "link.html").string()}) {
    std::filesystem::create_directory(dir_ / "x");
    const Outcome o = call({"report", file, "-o", out});
    EXPECT_EQ(o.code, 2) << out;
    EXPECT_THAT(o.err, HasSubstr("would overwrite"));
    EXPECT_EQ(read_file(file), before);
  }
}

TEST_F(ToolTest, ReportIsOnePageWithEverything) {
  const std::string page = (dir_ / "page.html").string();
  const Outcome o = call({"report", bench_file("one.json", 100), bench_file("two.json", 90),
                          google_file("micro.json"), "-o", page});
  ASSERT_EQ(o.code, 0) << o.err;
  const std::string html = read_file(page);
  for (const char* text :
       {"&lt;cpu&gt; &amp; co", "Scaling over threads", "Scaling over the batch", "one: tg128, 2 threads",
        "Part of the machine&#39;s limit reached", "gemv/qo", "1.50 µs", "50.0 %", "200.00 ± 2.00"})
    EXPECT_THAT(html, HasSubstr(text));
  EXPECT_THAT(html, Not(HasSubstr("<cpu>")));
  // One file: its limits stand in the chart, too.
  ASSERT_EQ(call({"report", bench_file("one.json", 100), "--output", page}).code, 0);
  EXPECT_THAT(read_file(page), HasSubstr("limit of tg128, 2 threads"));
}

TEST_F(ToolTest, WrongUsageIsTwo) {
  const std::string file = bench_file("a.json", 1);
  const auto fails = [](const std::vector<std::string>& arguments, const char* text) {
    const Outcome o = call(arguments);
    EXPECT_EQ(o.code, 2) << o.out;
    EXPECT_THAT(o.err, HasSubstr(text));
    EXPECT_EQ(o.out, "");
  };
  fails({}, "a command comes first");
  fails({"compares"}, "there are compare and report");
  fails({"compare", file}, "takes two files");
  fails({"compare", file, file, file}, "got 3");
  fails({"compare", file, file, "--treshold", "3"}, "unknown option '--treshold': there is --threshold");
  fails({"compare", file, file, "--threshold"}, "needs a value");
  for (const std::string bad : {"x", "-1%", "100%", "", "%", "5%%", "nan"})
    fails({"compare", file, file, "--threshold", bad}, "expected a percentage of at least 0 and below 100");
  fails({"compare", file, (dir_ / "none.json").string()}, "none.json");
  fails({"report", file}, "needs -o OUT.html");
  fails({"report", "-o", "x.html"}, "at least one file");
  fails({"report", file, "-o", file}, "would overwrite");
  fails({"report", file, "-o", (dir_ / "no" / "x.html").string()}, "x.html");
  for (const std::vector<std::string>& help :
       {std::vector<std::string>{"--help"}, {"help"}, {"compare", "-h"}}) {
    const Outcome o = call(help);
    EXPECT_EQ(o.code, 0);
    EXPECT_THAT(o.out, HasSubstr("\nExample:\n"));
    EXPECT_THAT(o.out, HasSubstr("Exit codes: 0 ok, 1 "));
  }
}

}  // namespace
}  // namespace bitnet::benchmarks
