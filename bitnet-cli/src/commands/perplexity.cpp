// `bitnet perplexity`: how well a model predicts a text.
#include <nlohmann/json.hpp>
#include <ostream>

#include "bitnet/inference/perplexity.hpp"
#include "commands/commands_list.hpp"
#include "common.hpp"
#include "loading.hpp"
#include "memory_watch.hpp"
#include "text_stream.hpp"
#ifdef BITNET_WITH_TRAINING
#include <optional>

#include "bitnet/training/checkpoint_model.hpp"
#include "training_checkpoint.hpp"
#endif

namespace bitnet::cli {
namespace {

void write_result(const inference::PerplexityResult& r, const Values& values, Io& io) {
  const std::int64_t n_ctx = values.integer(opt::kPplContext);
  const bool lines = values.flag(opt::kPplLines);
  if (values.flag(opt::kJson)) {
    const nlohmann::ordered_json j{{"perplexity", r.perplexity},
                                   {"standard_error", r.standard_error},
                                   {"nll", r.nll},
                                   {"bits_per_byte", r.bits_per_byte},
                                   {"scored_tokens", r.scored_tokens},
                                   {"scored_bytes", r.scored_bytes},
                                   {"chunks", r.chunks},
                                   {"total_tokens", r.total_tokens},
                                   {"ctx_size", n_ctx},
                                   {"lines", lines},
                                   {"seconds", r.seconds}};
    io.out << j.dump(2) << '\n';
    return;
  }
  io.out << "perplexity " << fixed(r.perplexity, 4) << " ± " << fixed(r.standard_error, 4)
         << ", bits per byte " << fixed(r.bits_per_byte, 4) << " (" << grouped(r.scored_tokens)
         << " tokens scored in " << grouped(r.chunks);
  if (lines) {
    io.out << (r.chunks == 1 ? " text)\n" : " texts)\n");
  } else {
    io.out << (r.chunks == 1 ? " chunk of " : " chunks of ") << n_ctx << ")\n";
  }
}

/// The ids of the text: of each line that is not blank with --lines, else of all of it.
std::vector<std::vector<TokenId>> encode(const Values& values,
                                         const std::shared_ptr<const Tokenizer>& tokenizer,
                                         TextReader& text) {
  std::vector<std::vector<TokenId>> ids;
  if (values.flag(opt::kPplLines)) {
    std::int64_t n = 0;
    stream_lines(text, [&](std::string_view line) {
      ++n;
      with_context("line " + std::to_string(n), [&] {
        if (!line.empty()) ids.push_back(tokenizer->encode(line));
      });
    });
  } else {
    ids.emplace_back();
    stream_tokens(tokenizer, text, [&](std::span<const TokenId> more) {
      ids.front().insert(ids.front().end(), more.begin(), more.end());
    });
  }
  return ids;
}

int measure(const Values& values, Io& io) {
  require(values, opt::kModel);
  TextReader text(require(values, opt::kPplFile), io);
  const auto context = make_context(values);
  const ModelFile* instead = nullptr;
#ifdef BITNET_WITH_TRAINING
  std::optional<CheckpointAsModel> made;
  if (const std::string model = values.text(opt::kModel); training::is_checkpoint(model)) {
    if (values.has(opt::kQuantize)) throw UsageError("--quantize cannot be used with a training checkpoint");
    made.emplace(model, *context);
    instead = &made->file();
  }
#endif
  const auto engine = load_engine(values, io, context, nullptr, instead);
  inference::PerplexityOptions options;
  options.n_ctx = values.integer(opt::kPplContext);
  options.max_chunks = values.integer(opt::kPplChunks);
  options.kv_type = kv_type(values);
  options.adapters = engine->adapters();
  if (io.cancelled != nullptr) options.cancellation = inference::CancellationToken(*io.cancelled);
  if (const std::int64_t trained = engine->model()->config().max_position; options.n_ctx > trained)
    io.err << "warning: chunks of " << options.n_ctx << " tokens: the model was trained for " << trained
           << '\n';
  static_cast<void>(engine->model()->require_tokenizer());
  const std::vector<std::vector<TokenId>> ids = with_context(
      "'" + text.path() + "'", [&] { return encode(values, engine->model()->tokenizer(), text); });
  inference::PerplexityResult result;
  MemoryWatch memory(engine->model());
  {
    ProgressBar bar(io, "chunks");
    options.progress = [&](std::int64_t chunk, std::int64_t n_chunks, double so_far) {
      bar.update(static_cast<double>(chunk), static_cast<double>(n_chunks), "perplexity " + fixed(so_far, 4));
    };
    result = with_context("'" + text.path() + "'", [&] {
      if (values.flag(opt::kPplLines)) return inference::perplexity_of_texts(engine->model(), ids, options);
      return inference::perplexity(engine->model(), std::span<const TokenId>(ids.front()), options);
    });
  }
  write_result(result, values, io);
  const std::int64_t tokens =
      values.flag(opt::kPplLines) ? result.scored_tokens : result.chunks * options.n_ctx;
  io.err << fixed(result.seconds, 1) << " s, " << rate(static_cast<double>(tokens), result.seconds)
         << " tokens/s, peak memory " << human_bytes(peak_memory_bytes()) << '\n';
  if (values.flag(opt::kVerbose)) io.err << memory.report();
  return kOk;
}

}  // namespace

const Command kPerplexityCommand{
    .name = "perplexity",
    .summary = "measure how well a model predicts a text",
    .usage = "-m MODEL -f FILE [options]",
    .description =
        "As llama.cpp does it: chunks of --ctx-size tokens, the first token of each replaced by the "
        "begin-of-text "
        "token where the model adds one, the second half of each chunk scored. Bits per byte compares models "
        "with "
        "different vocabularies. MODEL may be a checkpoint of bitnet train. With --lines FILE holds many "
        "texts, one a line.",
    .example =
        "bitnet perplexity -m models/bitnet-demo-i2_s.gguf -f book.txt -c 512\n"
        "bitnet perplexity -m models/bitnet-demo-i2_s.gguf -f book.txt --json | jq .perplexity",
    .arguments = {},
    .options = concat({{&opt::kPplFile, &opt::kPplContext, &opt::kPplChunks, &opt::kPplLines, &opt::kKvType},
                       engine_options(),
                       {&opt::kJson, &opt::kConfig, &opt::kVerbose}}),
    .body = measure,
};

}  // namespace bitnet::cli
