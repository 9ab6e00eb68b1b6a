// `bitnet run`: text after one prompt.
#include <algorithm>
#include <exception>
#include <optional>
#include <ostream>

#include "bitnet/core/profiler.hpp"
#include "bitnet/core/text/utf8.hpp"
#include "commands/commands_list.hpp"
#include "common.hpp"
#include "device_report.hpp"
#include "loading.hpp"
#include "memory_watch.hpp"
#include "trace_file.hpp"

namespace bitnet::cli {
namespace {

using inference::FinishReason;
using Json = nlohmann::ordered_json;

/// The prompt's text. Files usually end in a line break that is not part of the prompt: one is taken off.
std::string read_prompt(const Values& values, Io& io) {
  auto [text, path] = text_or_file(values, opt::kPrompt, opt::kFile, io);
  if (!path.empty() && text.ends_with('\n')) {
    text.pop_back();
    if (text.ends_with('\r')) text.pop_back();
  }
  text::require_utf8(text, path.empty() ? "the prompt" : "'" + path + "'");
  return text;
}

std::shared_ptr<const ChatTemplate> prompt_format(const Values& values, const inference::Model& model) {
  if (values.text(opt::kChatTemplate) == "auto" && model.require_tokenizer().chat_template().empty()) {
    std::string names;
    for (const std::string_view name : ChatTemplate::names()) names += " " + std::string(name);
    throw Error(ErrorCode::kNotFound,
                "--chat-template auto: this is a base model without a chat template; leave the option out to "
                "continue the prompt, or name one of:" +
                    names);
  }
  return chat_template(values, model);
}

/// The context need not be longer than the text can become: the cache and the tables are made for it.
inference::GenerationResult continue_ids(const std::vector<TokenId>& ids, inference::InferenceEngine& engine,
                                         const inference::GenerationOptions& options,
                                         const inference::TextCallback& write) {
  const auto n = static_cast<std::int64_t>(ids.size());
  if (options.max_tokens >= 0 && n > 0 && n < engine.n_ctx())
    engine.limit_context(n + std::max<std::int64_t>(options.max_tokens, 1));
  return engine.generate(ids, options, write);
}

inference::GenerationResult generate(const Values& values, const std::string& prompt,
                                     inference::InferenceEngine& engine,
                                     inference::GenerationOptions& options, Io& io) {
  const auto write = [&io](std::string_view text) {
    io.out << text << std::flush;
    check_out(io);
  };
  const bool special = values.flag(opt::kSpecial);
  const Tokenizer& tokenizer = engine.model()->require_tokenizer();
  if (!values.has(opt::kChatTemplate)) {
    auto ids = with_context("prompt", [&] { return tokenizer.encode(prompt, {true, special}); });
    if (ids.empty() && tokenizer.bos()) ids.push_back(*tokenizer.bos());
    return continue_ids(ids, engine, options, write);
  }
  const auto format = prompt_format(values, *engine.model());
  std::vector<ChatMessage> messages;
  if (values.has(opt::kSystem)) messages.push_back({"system", values.text(opt::kSystem)});
  messages.push_back({"user", prompt});
  const auto ids = format->encode(tokenizer, messages, true, special);
  options.stop_tokens = format->stop_tokens(tokenizer);
  options.strip_leading_space = true;
  return continue_ids(ids, engine, options, write);
}

/// For --statistics and the trace.
struct RunFigures {
  Json device, pools, run;
};

Json run_json(const inference::InferenceEngine& engine, const inference::GenerationResult& r) {
  return {{"device", engine.selection().device.name},
          {"load_seconds", engine.model()->load_seconds()},
          {"prompt_tokens", r.prompt_tokens},
          {"prompt_seconds", r.timings.prompt_seconds},
          {"completion_tokens", r.completion_tokens},
          {"decode_seconds", r.timings.decode_seconds},
          {"finish_reason", to_string(r.finish_reason)},
          {"peak_rss_bytes", peak_memory_bytes()}};
}

int generate_text(const Values& values, const std::string& prompt, inference::InferenceEngine& engine,
                  inference::GenerationOptions& options, RunFigures& figures, Io& io) {
  if (values.flag(opt::kEcho)) io.out << prompt << std::flush;
  MemoryWatch memory(engine.model());
  const auto result = generate(values, prompt, engine, options, io);
  const Backend& backend = engine.model()->backend();
  const Backend* const backends[] = {&backend};
  if (values.has(opt::kProfile) || values.has(opt::kStatistics))
    figures = {device_json(backend.statistics()), pools_json(backends), run_json(engine, result)};
  if (result.error) throw *result.error;
  if (io.out_is_terminal) io.out << '\n';
  io.out.flush();
  io.err << "load " << fixed(engine.model()->load_seconds(), 2) << " s, " << speed_line(result)
         << ", peak memory " << human_bytes(peak_memory_bytes()) << '\n';
  if (values.flag(opt::kVerbose))
    io.err << "finished: " << to_string(result.finish_reason) << '\n'
           << memory.report() << device_lines(backend.statistics());
  return result.finish_reason == FinishReason::kCancelled ? kInterrupted : kOk;
}

int run_model(const Values& values, Io& io) {
  require(values, opt::kModel);
  if (values.has(opt::kSystem) && !values.has(opt::kChatTemplate))
    throw UsageError("--system needs --chat-template NAME (auto: the model's own)");
  check_chat_template(values);
  auto options = generation_options(values, io);
  const std::string prompt = read_prompt(values, io);
  const std::int64_t seed = choose_seed(values);
  options.sampling.seed = static_cast<std::uint64_t>(seed);
  std::optional<TraceFile> trace;
  if (values.has(opt::kProfile)) trace.emplace(values, "bitnet run");
  StatisticsFile statistics(values);
  RunFigures figures;
  int code = kOk;
  try {
    const auto engine = load_engine(values, io, make_context(values), trace ? trace->profiler() : nullptr,
                                    nullptr, values.flag(opt::kVerbose));
    if (!values.has(opt::kSeed)) io.err << "seed: " << seed << '\n';
    code = generate_text(values, prompt, *engine, options, figures, io);
  } catch (const std::exception&) {  // std::bad_alloc, too
    // Where the time of a run that failed went is worth knowing, too.
    if (trace) trace->write_after_failure(io);
    throw;
  }
  if (trace) trace->write(figures.device, figures.pools, io);
  if (!statistics.wanted()) return code;
  Json all{{"model", values.text(opt::kModel)}};
  all.update(figures.run);
  all["device_statistics"] = std::move(figures.device);
  all["memory_pools"] = std::move(figures.pools);
  statistics.write(all);
  return code;
}

}  // namespace

const Command kRunCommand{
    .name = "run",
    .summary = "write text after a prompt",
    .usage = "-m MODEL -p TEXT | -f FILE [options]",
    .description =
        "The text goes to standard output as it is made, figures (load time, tokens/s, peak memory) go to "
        "standard "
        "error. The same prompt and seed give the same text with any number of threads. One line break at "
        "the end of "
        "FILE is not part of the prompt.",
    .example =
        "bitnet run -m models/bitnet-demo-i2_s.gguf -p \"It was a truth\" -n 64 --seed 1\n"
        "echo \"Once upon a time\" | bitnet run -m models/bitnet-demo-i2_s.gguf -f - --temp 0 > "
        "story.txt",
    .arguments = {},
    .options = concat({{&opt::kPrompt, &opt::kFile, &opt::kChatTemplate, &opt::kSystem, &opt::kSpecial,
                        &opt::kEcho, &opt::kProfile, &opt::kStatistics, &opt::kCtxSize, &opt::kKvType},
                       engine_options(),
                       sampling_options(),
                       draft_options(),
                       {&opt::kConfig, &opt::kVerbose}}),
    .body = run_model,
};

}  // namespace bitnet::cli
