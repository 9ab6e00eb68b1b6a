#pragma once
// Charts as SVG and pages as HTML: the one writer that every report uses. Plain text out, nothing fetched:
// a page is one file with its charts inside. All text given is escaped here. Pure functions, thread-safe; a
// Page is used by one thread at a time.
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace bitnet::report {

/// `text` for XML and HTML, in elements and in quoted attributes. Bytes that no XML may hold (control
/// characters, broken UTF-8) become U+FFFD.
std::string escape(std::string_view text);

/// A value and how far it spreads to either side (a standard deviation, say; 0 draws none). A value that is
/// not finite is left out.
struct Bar {
  double value = 0;
  double spread = 0;
};

/// Horizontal bars in groups: one group a label, one bar in it a series. The axis begins at 0; negative
/// values are drawn as 0.
struct BarChart {
  std::string title;
  std::string unit;                 ///< under the axis: "tokens/s"
  std::vector<std::string> series;  ///< one name: no legend
  struct Group {
    std::string label;
    std::vector<std::optional<Bar>> bars;  // [series], or fewer
  };
  std::vector<Group> groups;
  /// Where the axis ends; absent: a round number beyond the largest value.
  std::optional<double> axis_end;
};

/// Points joined by lines, over one x axis. Points need not be sorted; those that are not finite are left
/// out.
struct LineChart {
  std::string title;
  std::string x_label, y_label;
  struct Point {
    double x = 0, y = 0;
    double spread = 0;  ///< of y, to either side
  };
  struct Series {
    std::string name;
    std::vector<Point> points;
    bool dashed = false;  ///< a limit, a model's prediction
  };
  std::vector<Series> series;
  bool y_from_zero = true;
  bool whole_x = false;  ///< x are numbers of things: no ticks between whole ones
};

/// Small histograms over one x axis, side by side: each a label, and columns of stacked series.
struct HistogramGrid {
  std::string title;
  std::string x_label;
  double low = 0, high = 1;         ///< ends of the axis, whose bins are equally wide
  std::vector<std::string> series;  ///< stacked from the axis up; one name: no legend
  std::string marks_name;           ///< of the dashed lines, in the legend; empty: not there
  struct Panel {
    std::string label;
    std::vector<std::vector<double>> counts;  // [series][bins], at least 0
    std::vector<double> marks;                ///< dashed lines at these x
  };
  std::vector<Panel> panels;  ///< each is drawn as high as its highest column allows
};

/// A whole <svg> element, 760 wide, with a namespace, so that it is a file of its own, too. Charts without
/// anything to draw say so.
std::string svg(const BarChart& chart);
std::string svg(const LineChart& chart);
std::string svg(const HistogramGrid& chart);

/// A page of headings, paragraphs, tables and charts, in the order of the calls.
class Page {
 public:
  explicit Page(std::string title);
  /// Lets a browser load the page again after so many seconds, for a file that is written anew; 0: never.
  void refresh_every(int seconds) noexcept { refresh_seconds_ = seconds; }
  void heading(std::string_view text);
  void paragraph(std::string_view text);
  void list(const std::vector<std::string>& items);
  /// Lines as they are, in letters of one width.
  void preformatted(std::string_view text);
  /// Cells that are numbers (with ± or %, or "n/a") are set right.
  void table(const std::vector<std::string>& header, const std::vector<std::vector<std::string>>& rows);
  void chart(const BarChart& chart) { figure(svg(chart)); }
  void chart(const LineChart& chart) { figure(svg(chart)); }
  void chart(const HistogramGrid& chart) { figure(svg(chart)); }
  /// What comes until end_details() is hidden until a reader opens `summary`.
  void begin_details(std::string_view summary);
  void end_details();
  /// The whole file.
  std::string html() const;

 private:
  void figure(const std::string& svg);
  std::string title_, body_;
  int refresh_seconds_ = 0;
};

}  // namespace bitnet::report
