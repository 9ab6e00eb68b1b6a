// Log lines → series → charts.
#include "bitnet/training/curves.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>

#include "bitnet/core/error.hpp"
#include "bitnet/core/report/chart.hpp"

namespace bitnet::training {
namespace {

using Json = nlohmann::json;
using report::LineChart;

constexpr std::size_t kPoints = 400;  // of a curve: more than a screen shows
constexpr std::size_t kLayers = 8;    // with a curve of their own
constexpr std::size_t kSamples = 5;

std::string number(double v, const char* format = "%.4g") {
  char text[32];
  std::snprintf(text, sizeof text, format, v);
  return text;
}

/// A figure of a record; NaN, which charts leave out, where it is not there.
double real(const Json& record, const char* key) {
  const auto it = record.find(key);
  return it != record.end() && it->is_number() ? it->get<double>() : std::nan("");
}

std::int64_t whole(const Json& record, const char* key) {
  const auto it = record.find(key);
  return it != record.end() && it->is_number_integer() ? it->get<std::int64_t>() : 0;
}

std::string word(const Json& record, const char* key) {
  const auto it = record.find(key);
  return it != record.end() && it->is_string() ? it->get<std::string>() : std::string();
}

/// Means of neighbours where there are more than kPoints.
std::vector<LineChart::Point> thinned(const std::vector<LineChart::Point>& all) {
  if (all.size() <= kPoints) return all;
  std::vector<LineChart::Point> points;
  for (std::size_t i = 0; i < kPoints; ++i) {
    const std::size_t begin = all.size() * i / kPoints, end = all.size() * (i + 1) / kPoints;
    LineChart::Point mean;
    for (std::size_t k = begin; k < end; ++k) {
      mean.x += all[k].x;
      mean.y += all[k].y;
    }
    mean.x /= static_cast<double>(end - begin);
    mean.y /= static_cast<double>(end - begin);
    points.push_back(mean);
  }
  return points;
}

template <class Record, class Value>
LineChart::Series series(const std::string& name, const std::vector<Record>& records, Value&& value) {
  LineChart::Series s;
  s.name = name;
  for (const Record& r : records) s.points.push_back({static_cast<double>(r.step), value(r), 0});
  s.points = thinned(s.points);
  return s;
}

LineChart chart(const std::string& title, const std::string& y_label, bool from_zero) {
  LineChart c;
  c.title = title;
  c.x_label = "step";
  c.y_label = y_label;
  c.y_from_zero = from_zero;
  return c;
}

}  // namespace

void Curves::forget_after(std::int64_t step) {
  const auto later = [step](const auto& r) { return r.step > step; };
  std::erase_if(train_, later);
  std::erase_if(evaluations_, later);
  std::erase_if(samples_, later);
  std::erase_if(skipped_, [step](std::int64_t s) { return s >= step; });  // counted before the step is done
  held_out_.reset();
}

void Curves::read_line(std::string_view line) {
  const Json r = Json::parse(line, nullptr, false);
  if (!r.is_object()) return;
  const std::string type = word(r, "type");
  const std::int64_t step = whole(r, "step");
  const Scored scored{step, whole(r, "tokens"), real(r, "nll"), real(r, "perplexity"),
                      real(r, "bits_per_byte")};
  if (type == "start") {
    forget_after(step);
    steps_ = whole(r, "steps");
    parameters_ = whole(r, "parameters");
    quantization_ = word(r, "quantization");
  } else if (type == "train") {
    Step s{step,
           real(r, "loss"),
           real(r, "learning_rate"),
           real(r, "gradient_norm"),
           real(r, "zero_fraction"),
           real(r, "flip_rate"),
           real(r, "tokens_per_second"),
           real(r, "seconds"),
           {}};
    if (const auto it = r.find("layer_scales"); it != r.end() && it->is_array())
      for (const Json& v : *it) s.scales.push_back(v.is_number() ? v.get<double>() : std::nan(""));
    train_.push_back(std::move(s));
  } else if (type == "evaluation") {
    evaluations_.push_back(scored);
  } else if (type == "held_out") {
    held_out_ = scored;
  } else if (type == "sample") {
    samples_.push_back({step, word(r, "prompt") + word(r, "text")});
  } else if (type == "skipped") {
    skipped_.push_back(step);
  }
}

void Curves::update() {
  std::ifstream in(log_, std::ios::binary);
  if (!in) return;
  in.seekg(0, std::ios::end);
  const auto size = static_cast<std::uint64_t>(std::max<std::streamoff>(in.tellg(), 0));
  if (size < read_) *this = Curves(log_);  // another log by now
  std::string text(size - read_, '\0');
  in.seekg(static_cast<std::streamoff>(read_));
  if (!in.read(text.data(), static_cast<std::streamsize>(text.size())))
    throw Error(ErrorCode::kIo, "cannot read '" + log_.string() + "'");
  std::size_t at = 0;
  for (std::size_t end = 0; (end = text.find('\n', at)) != std::string::npos; at = end + 1)
    read_line(std::string_view(text).substr(at, end - at));
  read_ += at;  // the rest is half a line so far
}

/// The first evaluation of each step: of the same tokens every time.
std::vector<Curves::Scored> Curves::comparable() const {
  std::vector<Scored> first;
  for (const Scored& e : evaluations_)
    if (first.empty() || first.back().step != e.step) first.push_back(e);
  return first;
}

std::vector<std::vector<std::string>> Curves::figures() const {
  std::vector<std::vector<std::string>> rows;
  const auto add = [&](const char* name, const std::string& value) { rows.push_back({name, value}); };
  add("parameters", std::to_string(parameters_));
  add("weights", quantization_);
  if (!train_.empty()) {
    const Step& last = train_.back();
    add("step", std::to_string(last.step) + " of " + std::to_string(steps_));
    add("loss", number(last.loss));
    add("tokens/s", number(last.tokens_per_second, "%.0f"));
    add("seconds", number(last.seconds, "%.0f"));
  }
  if (!evaluations_.empty()) {
    const Scored& last = evaluations_.back();
    const std::vector<Scored> all = comparable();
    const Scored& best = *std::min_element(all.begin(), all.end(),
                                           [](const Scored& x, const Scored& y) { return x.nll < y.nll; });
    add("validation perplexity", number(last.perplexity));
    add("validation bits per byte", number(last.bits_per_byte));
    add("best validation loss", number(best.nll) + " at step " + std::to_string(best.step));
  }
  if (held_out_) add("held-out perplexity", number(held_out_->perplexity));
  if (!skipped_.empty())
    add("skipped steps", std::to_string(skipped_.size()) + ", the last " + std::to_string(skipped_.back()));
  return rows;
}

std::string Curves::html(int refresh_seconds) const {
  report::Page page("Training");
  page.refresh_every(refresh_seconds);
  page.table({"", ""}, figures());

  LineChart loss = chart("Loss", "nats per token", false);
  loss.series.push_back(series("training", train_, [](const Step& s) { return s.loss; }));
  loss.series.push_back(series("validation", comparable(), [](const Scored& e) { return e.nll; }));
  page.chart(loss);

  const auto one = [&](const std::string& title, const std::string& unit, auto&& value) {
    LineChart c = chart(title, unit, true);
    c.series.push_back(series(title, train_, value));
    page.chart(c);
  };
  one("Learning rate", "", [](const Step& s) { return s.learning_rate; });
  one("Gradient norm", "before clipping", [](const Step& s) { return s.gradient_norm; });
  const std::size_t layers = train_.empty() ? 0 : train_.back().scales.size();
  if (layers > 0) {
    one("Zeros", "% of trits", [](const Step& s) { return 100 * s.zero_fraction; });
    one("Flips", "% of trits a step", [](const Step& s) { return 100 * s.flip_rate; });
    LineChart scales = chart("Scales by layer", "mean over its linears", false);
    const std::size_t shown = std::min(layers, kLayers);
    for (std::size_t i = 0; i < shown; ++i) {
      const std::size_t layer = shown == 1 ? 0 : i * (layers - 1) / (shown - 1);
      scales.series.push_back(series("layer " + std::to_string(layer), train_, [layer](const Step& s) {
        return layer < s.scales.size() ? s.scales[layer] : std::nan("");
      }));
    }
    page.chart(scales);
  }
  one("Speed", "tokens/s", [](const Step& s) { return s.tokens_per_second; });

  if (!samples_.empty()) page.heading("Samples");
  for (std::size_t i = samples_.size(); i-- > 0 && samples_.size() - i <= kSamples;)
    page.paragraph("Step " + std::to_string(samples_[i].step) + ": " + samples_[i].text);
  return page.html();
}

}  // namespace bitnet::training
