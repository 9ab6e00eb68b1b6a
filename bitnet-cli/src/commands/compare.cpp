// `bitnet compare`: how far two models are apart, in what they predict and in their tensors.
#include <algorithm>
#include <nlohmann/json.hpp>
#include <ostream>
#include <utility>

#include "bitnet/quant/model_difference.hpp"
#include "calibrating.hpp"
#include "commands/commands_list.hpp"
#include "common.hpp"
#include "text_stream.hpp"

namespace bitnet::cli {
namespace {

using Json = nlohmann::ordered_json;
using quant::ModelReader;
using quant::TensorDifference;

constexpr std::size_t kShown = 10;  // tensors, without --verbose

/// Both models, opened, with the vocabulary that they share.
struct Pair {
  std::string path, other_path;
  std::unique_ptr<ModelReader> model, other;
  std::shared_ptr<const Tokenizer> tokenizer;
};

[[noreturn]] void refuse_vocabularies(const std::string& why,
                                      SourceLocation where = SourceLocation::current()) {
  throw Error(ErrorCode::kUnsupported,
              "the models have different vocabularies, so that their predictions cannot "
              "be compared: " +
                  why,
              where);
}

/// That of the first model, or the other's where it has none.
std::shared_ptr<const Tokenizer> shared_tokenizer(const Pair& pair, Io& io) {
  const std::int64_t n = pair.model->config().vocab_size, m = pair.other->config().vocab_size;
  if (n != m)
    refuse_vocabularies(grouped(n) + " tokens in '" + pair.path + "', " + grouped(m) + " in '" +
                        pair.other_path + "'");
  auto first = pair.model->tokenizer(), second = pair.other->tokenizer();
  if (first == nullptr && second == nullptr)
    throw Error(ErrorCode::kNotFound,
                "neither model's files carry a tokenizer: a text cannot be read with them");
  if (first == nullptr || second == nullptr) {
    io.err << "note: '" << (first == nullptr ? pair.path : pair.other_path)
           << "' carries no tokenizer; the other's is taken for both\n";
    return first == nullptr ? second : first;
  }
  const std::int64_t tokens = std::min(first->vocab_size(), second->vocab_size());
  for (std::int64_t i = 0; i < tokens; ++i) {
    const auto id = static_cast<TokenId>(i);
    if (first->token(id) != second->token(id))
      refuse_vocabularies("token " + std::to_string(i) + " is " + quoted(first->token(id)) + " in '" +
                          pair.path + "', " + quoted(second->token(id)) + " in '" + pair.other_path + "'");
  }
  return first;
}

/// The text is read once, with both vocabularies where there are two.
std::vector<std::vector<TokenId>> windows_of(const Values& values, const Pair& pair, TextReader& text) {
  std::int64_t window = values.integer(opt::kCompareContext);
  window = std::min({window, pair.model->config().max_position, pair.other->config().max_position});
  return with_context("'" + values.text(opt::kCompareFile) + "'", [&] {
    const auto other = pair.model->tokenizer() != nullptr ? pair.other->tokenizer() : nullptr;
    const std::int64_t tokens = values.integer(opt::kCompareTokens);
    TextWindows windows(*pair.tokenizer, window, tokens);
    TextWindows other_windows(other != nullptr ? *other : *pair.tokenizer, window, tokens);
    stream_tokens({pair.tokenizer, other}, text, [&](std::size_t which, std::span<const TokenId> ids) {
      (which == 0 ? windows : other_windows).add(ids);
    });
    auto taken = windows.take();
    if (other != nullptr && taken != other_windows.take())
      refuse_vocabularies("they cut this text into other tokens");
    return taken;
  });
}

/// A source that tells a progress bar, and stops when the user wants it to.
class Watched final : public quant::LogitSource {
 public:
  Watched(quant::LogitSource& source, std::int64_t total, Io& io)
      : source_(source), total_(total), io_(io), bar_(io, "tokens") {}
  std::int64_t vocab_size() const override { return source_.vocab_size(); }
  bool next(std::vector<float>& rows, std::vector<std::int32_t>& targets) override {
    check_cancelled(io_);
    const bool more = source_.next(rows, targets);
    done_ += static_cast<std::int64_t>(targets.size());
    bar_.update(static_cast<double>(done_), static_cast<double>(total_), "comparing predictions");
    return more;
  }

 private:
  quant::LogitSource& source_;
  std::int64_t total_, done_ = 0;
  Io& io_;
  ProgressBar bar_;
};

quant::LogitMetrics compare_predictions(const Pair& pair,
                                        const std::shared_ptr<const ExecutionContext>& context,
                                        const std::vector<std::vector<TokenId>>& windows, Io& io) {
  std::int64_t total = 0;
  for (const auto& w : windows) total += static_cast<std::int64_t>(w.size()) - 1;
  const auto floats = quant::FloatLinears::kAsConfigured;
  ModelLogits first(pair.path, floats, context, windows), other(pair.other_path, floats, context, windows);
  Watched watched(first, total, io);
  return quant::compare_logits(watched, other);
}

/// The tensors that differ the most first; those whose shapes differ before all.
std::vector<const TensorDifference*> by_difference(const quant::ModelDifference& d) {
  std::vector<const TensorDifference*> all;
  for (const TensorDifference& t : d.tensors) all.push_back(&t);
  std::stable_sort(all.begin(), all.end(), [](const TensorDifference* a, const TensorDifference* b) {
    if (a->comparable() != b->comparable()) return b->comparable();
    return a->relative() > b->relative();
  });
  return all;
}

double share(std::int64_t part, std::int64_t all) {
  return all > 0 ? static_cast<double>(part) / static_cast<double>(all) : 1;
}

std::string line_of(const TensorDifference& t) {
  const std::string name = "  " + gguf_name(t.id);
  if (!t.comparable())
    return name + ": shapes " + t.shape.to_string() + " and " + t.other_shape.to_string() + ", not compared";
  if (t.noise == 0) return name + ": equal";
  std::string line = name + ": relative difference " + significant(t.relative(), 4) + ", cosine " +
                     fixed(t.cosine(), 4) + ", largest " + significant(t.largest, 6);
  if (t.same_trits)
    line += ", " + fixed(100 * share(*t.same_trits, t.shape.numel()), 1) + " % of the trits equal";
  return line;
}

void write_text(const Pair& pair, const quant::LogitMetrics& l, const quant::ModelDifference& d, bool verbose,
                Io& io) {
  io.out << "perplexity " << fixed(l.perplexity_original(), 4) << " of '" << pair.path << "'\n"
         << "perplexity " << fixed(l.perplexity_other(), 4) << " of '" << pair.other_path << "'\n"
         << "KL divergence " << significant(l.mean_kl(), 6) << " nats a token, at most "
         << significant(l.largest_kl, 4) << '\n'
         << "the same first choice for " << fixed(100 * l.top1_agreement(), 2) << " % of "
         << grouped(l.positions) << " tokens\n";
  const auto all = by_difference(d);
  const auto equal = static_cast<std::size_t>(
      std::count_if(all.begin(), all.end(), [](auto t) { return t->comparable() && t->noise == 0; }));
  io.out << grouped(static_cast<std::int64_t>(all.size())) << " tensors, "
         << grouped(static_cast<std::int64_t>(equal)) << " of them equal";
  const std::size_t shown = verbose ? all.size() : std::min(kShown, all.size() - equal);
  io.out << (shown == 0 ? "" : shown < all.size() - equal ? "; those that differ the most:" : ":") << '\n';
  for (std::size_t i = 0; i < shown; ++i) io.out << line_of(*all[i]) << '\n';
  for (const auto& [ids, path] :
       {std::pair(&d.only_first, &pair.path), std::pair(&d.only_other, &pair.other_path)})
    for (const TensorId id : *ids) io.out << "  " << gguf_name(id) << ": only in '" << *path << "'\n";
}

Json number(double v) { return std::isfinite(v) ? Json(v) : Json(nullptr); }

Json json_of(const TensorDifference& t) {
  const auto dims = [](const Shape& s) {
    return std::vector<std::int64_t>(s.dims().begin(), s.dims().end());
  };
  Json j{{"name", gguf_name(t.id)}, {"shape", dims(t.shape)}};
  j["comparable"] = t.comparable();
  if (!t.comparable()) {
    j["other_shape"] = dims(t.other_shape);
    return j;
  }
  j["relative_difference"] = number(t.relative());
  j["cosine"] = number(t.cosine());
  j["largest_difference"] = number(t.largest);
  j["equal"] = share(t.same, t.shape.numel());
  j["equal_trits"] = t.same_trits ? Json(share(*t.same_trits, t.shape.numel())) : Json(nullptr);
  return j;
}

void write_json(const Pair& pair, const quant::LogitMetrics& l, const quant::ModelDifference& d, Io& io) {
  Json root;
  root["format_version"] = 1;
  root["models"] =
      Json::array({Json{{"path", pair.path}, {"perplexity", number(l.perplexity_original())}},
                   Json{{"path", pair.other_path}, {"perplexity", number(l.perplexity_other())}}});
  root["positions"] = l.positions;
  root["mean_kl"] = number(l.mean_kl());
  root["largest_kl"] = number(l.largest_kl);
  root["top1_agreement"] = number(l.top1_agreement());
  root["tensors"] = Json::array();
  for (const TensorDifference& t : d.tensors) root["tensors"].push_back(json_of(t));
  for (const auto& [ids, key] :
       {std::pair(&d.only_first, "only_first"), std::pair(&d.only_other, "only_other")}) {
    root[key] = Json::array();
    for (const TensorId id : *ids) root[key].push_back(gguf_name(id));
  }
  io.out << root.dump(2, ' ', false, Json::error_handler_t::replace) << '\n';
}

int compare(const Values& values, Io& io) {
  Pair pair;
  pair.path = values.positionals.at(0);
  pair.other_path = values.positionals.at(1);
  TextReader text(require(values, opt::kCompareFile), io);
  pair.model = ModelReader::open(pair.path);
  pair.other = ModelReader::open(pair.other_path);
  pair.tokenizer = shared_tokenizer(pair, io);
  const auto context = make_context(values);
  const auto windows = windows_of(values, pair, text);
  const quant::LogitMetrics logits = compare_predictions(pair, context, windows, io);
  const quant::ModelDifference difference = [&] {
    ProgressBar bar(io, "tensors");
    return quant::compare_tensors(
        *context, *pair.model, *pair.other, [&](std::int64_t done, std::int64_t all) {
          check_cancelled(io);
          bar.update(static_cast<double>(done), static_cast<double>(all), "comparing tensors");
        });
  }();
  if (values.flag(opt::kJson))
    write_json(pair, logits, difference, io);
  else
    write_text(pair, logits, difference, values.flag(opt::kVerbose), io);
  return kOk;
}

}  // namespace

const Command kCompareCommand{
    .name = "compare",
    .summary = "say how far two models are apart",
    .usage = "MODEL_A MODEL_B -f FILE [options]",
    .description =
        "Perplexity of both on a text, the KL divergence of B's predictions from A's, how often both find "
        "the same "
        "token the most likely, and how far the tensors are apart where their shapes agree: a conversion, a "
        "quantisation or a training beside what it came from. Both must have the same vocabulary. FILE is "
        "read in "
        "windows of --ctx-size tokens, each from its beginning. Without --verbose the ten tensors that "
        "differ the "
        "most are listed.",
    .example =
        "bitnet compare float-model/ small.gguf -f book.txt\n"
        "bitnet compare a.gguf b.gguf -f book.txt --json | jq .mean_kl",
    .arguments = {"MODEL_A", "MODEL_B"},
    .options = {&opt::kCompareFile, &opt::kCompareContext, &opt::kCompareTokens, &opt::kJson, &opt::kThreads,
                &opt::kIsa, &opt::kMemoryLimit, &opt::kVerbose},
    .body = compare,
};

}  // namespace bitnet::cli
