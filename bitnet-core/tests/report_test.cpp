// Charts and pages: well-formed whatever the text, every value drawn where it belongs.
#include <cmath>
#include <limits>
#include <regex>

#include "bitnet/core/report/chart.hpp"
#include "bitnet/testing/testing.hpp"
#include "report/svg.hpp"

namespace bitnet::report {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr const char* kNasty = "a<b> & \"c\" 'd' </svg><script>";

/// Fails unless every element is closed in order and every & begins an entity.
void expect_well_formed(const std::string& xml) {
  std::vector<std::string> open;
  for (std::size_t at = 0; (at = xml.find('<', at)) != std::string::npos; ++at) {
    const std::size_t end = xml.find('>', at);
    ASSERT_NE(end, std::string::npos);
    const std::string tag = xml.substr(at + 1, end - at - 1);
    const std::string name = tag.substr(0, tag.find_first_of(" \n/", 1));
    if (tag[0] == '!' || tag.starts_with("meta ")) continue;
    if (tag[0] == '/') {
      ASSERT_FALSE(open.empty()) << tag;
      ASSERT_EQ("/" + open.back(), tag);
      open.pop_back();
    } else if (!tag.ends_with("/")) {
      open.push_back(name);
    }
  }
  EXPECT_TRUE(open.empty());
  const std::regex entity("&(amp|lt|gt|quot|#39);");
  for (std::size_t at = 0; (at = xml.find('&', at)) != std::string::npos; ++at)
    EXPECT_TRUE(std::regex_search(xml.substr(at, 8), entity, std::regex_constants::match_continuous))
        << xml.substr(at, 20);
}

std::vector<double> attributes(const std::string& xml, const std::string& element, const std::string& name) {
  std::vector<double> values;
  const std::regex pattern("<" + element + " [^>]*?\\b" + name + "=\"([-0-9.]+)\"");
  for (std::sregex_iterator i(xml.begin(), xml.end(), pattern), end; i != end; ++i)
    values.push_back(std::stod((*i)[1]));
  return values;
}

TEST(Escape, LeavesNothingThatIsMarkup) {
  EXPECT_EQ(escape("a<b> & \"c\" 'd'"), "a&lt;b&gt; &amp; &quot;c&quot; &#39;d&#39;");
  EXPECT_EQ(escape("± é 漢 😀\t\n"), "± é 漢 😀\t\n");
  EXPECT_EQ(escape(std::string("a\0b\x1F", 4)), "a\uFFFDb\uFFFD");
  EXPECT_EQ(escape("\xC3(\xE2\x82"), "\uFFFD(\uFFFD\uFFFD");
  EXPECT_EQ(escape("\xEF\xBF\xBE"), "\uFFFD");  // U+FFFE
}

TEST(Number, IsShortAndRight) {
  EXPECT_EQ(number(0), "0");
  EXPECT_EQ(number(1234567), "1234567");
  EXPECT_EQ(number(12.3456), "12.35");
  EXPECT_EQ(number(0.00123456), "0.001235");
  EXPECT_EQ(number(-2.5), "-2.5");
  EXPECT_EQ(number(100), "100");
  EXPECT_EQ(number(NAN), "n/a");
}

TEST(Axis, HasRoundTicksThatHoldTheData) {
  for (const auto& [low, high] :
       {std::pair{0.0, 1.0}, {0.0, 97.3}, {0.0, 3e-5}, {-4.0, 7.0}, {3.1, 3.4}, {0.0, 6e9}}) {
    const Axis axis = round_axis(low, high, 6);
    const auto ticks = axis.ticks();
    EXPECT_LE(axis.begin, low + 1e-9 * axis.step);
    EXPECT_GE(axis.end, high - 1e-9 * axis.step);
    EXPECT_GE(ticks.size(), 3u);
    EXPECT_LE(ticks.size(), 9u);
    const double digits = axis.step / std::pow(10, std::floor(std::log10(axis.step) + 1e-9));
    EXPECT_TRUE(std::abs(digits - 1) < 1e-6 || std::abs(digits - 2) < 1e-6 || std::abs(digits - 5) < 1e-6)
        << digits;
  }
}

TEST(BarChart, BarsAreAsLongAsTheirValues) {
  BarChart chart{"speed", "tokens/s", {"one"}, {{"a", {Bar{50, 5}}}, {"b", {Bar{100, 0}}}}, {}};
  const std::string text = svg(chart);
  expect_well_formed(text);
  auto widths = attributes(text, "rect", "width");
  ASSERT_EQ(widths.size(), 3u);  // background, two bars
  EXPECT_NEAR(widths[1] * 2, widths[2], 0.21);
  EXPECT_THAT(text, HasSubstr(">50 ± 5<"));
  EXPECT_THAT(text, HasSubstr(">100<"));
  EXPECT_THAT(text, HasSubstr(">tokens/s<"));
  chart.axis_end = 200;
  EXPECT_NEAR(attributes(svg(chart), "rect", "width")[2] * 2, widths[2], 0.21);
}

TEST(BarChart, SkipsWhatIsNotThere) {
  const BarChart chart{
      "t", "u", {"x", "y"}, {{"a", {Bar{1, 0}, std::nullopt}}, {"b", {std::nullopt, Bar{NAN, 0}}}}, {}};
  const std::string text = svg(chart);
  expect_well_formed(text);
  EXPECT_EQ(attributes(text, "rect", "width").size(), 2u);
  EXPECT_THAT(text, Not(HasSubstr("nan")));
  const std::string none = svg(BarChart{kNasty, "", {}, {{"a", {}}}, {}});
  EXPECT_THAT(none, HasSubstr("nothing to draw"));
  expect_well_formed(none);
}

TEST(LineChart, PointsLieWhereTheyBelong) {
  LineChart chart{
      "scaling",
      "threads",
      "tokens/s",
      {{"run", {{4, 40, 1}, {0, 0, 0}, {2, 20, 0}}, false}, {"limit", {{0, 50, 0}, {4, 50, 0}}, true}},
      true};
  const std::string text = svg(chart);
  expect_well_formed(text);
  const auto x = attributes(text, "circle", "cx"), y = attributes(text, "circle", "cy");
  ASSERT_EQ(x.size(), 3u);  // none on the dashed line
  EXPECT_NEAR(x[2] - x[1], x[1] - x[0], 0.11);
  EXPECT_NEAR(y[1] - y[2], y[0] - y[1], 0.11);
  EXPECT_GT(x[1], x[0]);  // sorted
  EXPECT_LT(y[1], y[0]);  // upwards
  EXPECT_THAT(text, HasSubstr("stroke-dasharray"));
  EXPECT_THAT(text, HasSubstr(">limit<"));
}

TEST(LineChart, TakesAnyNumbers) {
  const double inf = std::numeric_limits<double>::infinity();
  LineChart chart{kNasty, kNasty, kNasty, {{kNasty, {{1, 5, inf}, {NAN, 1, 0}, {1, -inf, 0}}, false}}, false};
  std::string text = svg(chart);
  expect_well_formed(text);
  EXPECT_EQ(attributes(text, "circle", "cx").size(), 1u);
  for (const char* bad : {"nan", "inf"}) EXPECT_THAT(text, Not(HasSubstr(bad)));
  chart.series.clear();
  EXPECT_THAT(svg(chart), HasSubstr("nothing to draw"));
  for (int i = 0; i < 1000; ++i) {
    if (i == 0) chart.series.push_back({"curve", {}, false});
    chart.series[0].points.push_back({static_cast<double>(i), std::sin(i * 0.1), 0});
  }
  text = svg(chart);
  expect_well_formed(text);
  EXPECT_THAT(text, Not(HasSubstr("<circle")));  // a curve
}

TEST(LineChart, WholeXHasWholeTicks) {
  LineChart chart{"t", "layer", "", {{"s", {{0, 1, 0}, {1, 2, 0}}, false}}, true, true};
  const std::string whole = svg(chart);
  EXPECT_THAT(whole, Not(HasSubstr(">0.2</text>")));
  EXPECT_THAT(whole, HasSubstr(">1</text>"));
  EXPECT_EQ(attributes(whole, "circle", "cx"), (std::vector<double>{70, 736}));
  chart.whole_x = false;
  EXPECT_THAT(svg(chart), HasSubstr(">0.2</text>"));
  chart.series[0].points = {{3, 1, 0}};
  chart.whole_x = true;
  const std::string one = svg(chart);
  EXPECT_THAT(one, HasSubstr(">3</text>"));
  EXPECT_THAT(one, Not(HasSubstr(">2.8</text>")));
}

TEST(HistogramGrid, StacksColumnsAndDrawsMarks) {
  HistogramGrid chart;
  chart.title = kNasty;
  chart.x_label = "x";
  chart.low = -2;
  chart.high = 2;
  chart.series = {"a", "b"};
  chart.marks_name = "limit";
  chart.panels = {{kNasty, {{1, 0, 0, 3}, {1, 2, 0, 0}}, {-1, 1, 7}},
                  {"empty", {{0, 0}}, {}},
                  {"none", {}, {}},
                  {"odd", {{NAN, -1, 5}}, {}}};
  const std::string text = svg(chart);
  expect_well_formed(text);
  const auto heights = attributes(text, "rect", "height"), x = attributes(text, "rect", "x"),
             y = attributes(text, "rect", "y");
  ASSERT_EQ(heights.size(), 6u);  // background, four parts of columns, one of the odd panel
  EXPECT_NEAR(heights[1], heights[4] / 3, 0.11);
  EXPECT_EQ(heights[1], heights[2]);
  EXPECT_NEAR(y[1], y[0] - heights[2], 0.11);  // the second is above the first
  EXPECT_EQ(x[0], x[1]);
  EXPECT_EQ(heights[5], heights[4]);  // as high as each panel allows
  EXPECT_EQ(std::regex_search(text, std::regex("dasharray")), true);
  EXPECT_EQ(attributes(text, "line", "stroke-width").size(), attributes(text, "line", "x1").size());
  std::size_t dashed = 0;
  for (std::size_t at = 0; (at = text.find("dasharray", at)) != std::string::npos; ++at) ++dashed;
  EXPECT_EQ(dashed, 3u);  // the legend's and two of three marks: 7 is beyond the axis
  for (const char* bad : {"nan", "inf"}) EXPECT_THAT(text, Not(HasSubstr(bad)));
  chart.panels.clear();
  EXPECT_THAT(svg(chart), HasSubstr("nothing to draw"));
  chart.panels.resize(1);
  chart.high = chart.low;
  EXPECT_THAT(svg(chart), HasSubstr("nothing to draw"));
}

TEST(Page, HoldsEverythingInOneFile) {
  Page page(kNasty);
  page.heading(kNasty);
  page.paragraph(kNasty);
  page.table({"test", kNasty}, {{"pp512", "1,234.5 ± 0.3"}, {"tg", "91.2 %"}, {kNasty, "n/a"}, {"x", "no"}});
  page.list({kNasty, "two"});
  page.preformatted(kNasty);
  page.begin_details(kNasty);
  page.paragraph("hidden");
  page.end_details();
  page.chart(BarChart{"bars", "", {"s"}, {{"a", {Bar{1, 0}}}}, {}});
  page.chart(LineChart{"lines", "", "", {{"s", {{1, 1, 0}, {2, 2, 0}}, false}}, true});
  const std::string html = page.html();
  expect_well_formed(html);
  EXPECT_THAT(html, Not(HasSubstr("<script>")));
  EXPECT_THAT(html, Not(HasSubstr("http-equiv")));
  EXPECT_EQ(std::regex_replace(html, std::regex("http://www.w3.org/2000/svg"), "").find("http"),
            std::string::npos);
  for (const char* cell : {"1,234.5 ± 0.3", "91.2 %", "n/a"})
    EXPECT_THAT(html, HasSubstr("<td class=\"n\">" + std::string(cell) + "</td>"));
  EXPECT_THAT(html, HasSubstr("<td>no</td>"));
  EXPECT_THAT(html, HasSubstr("<td>pp512</td>"));
}

}  // namespace
}  // namespace bitnet::report
