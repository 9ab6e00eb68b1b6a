// `bitnet chat`: a conversation in the terminal. The words of the commands inside it (/help …) are here, too.
#include <istream>
#include <nlohmann/json.hpp>
#include <ostream>

#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/core/text/suggest.hpp"
#include "bitnet/core/text/utf8.hpp"
#include "commands/commands_list.hpp"
#include "common.hpp"
#include "loading.hpp"
#include "memory_watch.hpp"

namespace bitnet::cli {
namespace {

using inference::FinishReason;
using inference::GenerationResult;

class Chat {
 public:
  Chat(const Values& values, Io& io)
      : io_(io),
        options_(generation_options(values, io)),
        seed_(choose_seed(values)),
        special_(values.flag(opt::kSpecial)),
        engine_(load_engine(values, io)),
        memory_(engine_->model()),
        format_(chat_template(values, *engine_->model())) {
    options_.stop_tokens = format_->stop_tokens(tokenizer());
    options_.strip_leading_space = true;
    if (values.has(opt::kSystem)) {
      text::require_utf8(values.text(opt::kSystem), "--system");
      system_.push_back({"system", values.text(opt::kSystem)});
    }
    if (!values.has(opt::kSeed)) io_.err << "seed: " << seed_ << '\n';
    if (io_.in_is_terminal)
      io_.err << "chat format " << format_->name() << ", context of " << grouped(engine_->n_ctx())
              << " tokens; /help lists the commands\n";
  }

  int run();

 private:
  const Tokenizer& tokenizer() const { return engine_->model()->require_tokenizer(); }
  bool command(const std::string& line);
  void say(const std::string& text);
  std::vector<TokenId> fit();
  void drop_oldest_turn(std::size_t& dropped);
  void save(const std::string& path);
  void show_stats();

  Io& io_;
  inference::GenerationOptions options_;
  std::int64_t seed_;
  bool special_;
  std::unique_ptr<inference::InferenceEngine> engine_;
  MemoryWatch memory_;
  std::shared_ptr<const ChatTemplate> format_;
  std::vector<ChatMessage> system_;   // none or one
  std::vector<ChatMessage> history_;  // user, assistant, user, …
  std::optional<GenerationResult> last_;
  std::uint64_t turns_ = 0;
  bool failed_ = false;
  bool done_ = false;
};

constexpr std::string_view kChatHelp =
    "/help        this list\n"
    "/clear       forget the conversation, keep the system prompt\n"
    "/history     show the conversation\n"
    "/save FILE   write the conversation as JSON\n"
    "/stats       tokens and speed of the last reply, and how full the context is\n"
    "/exit        leave\n";

/// Takes the first question and everything up to the next one off the history.
void Chat::drop_oldest_turn(std::size_t& dropped) {
  history_.erase(history_.begin());
  while (!history_.empty() && history_.front().role != "user") history_.erase(history_.begin());
  ++dropped;
}

/// Ids of the conversation with room for a reply; drops the oldest turns when there is none. The last message
/// stays: when it alone is too long, the engine says so.
std::vector<TokenId> Chat::fit() {
  const std::int64_t context = engine_->n_ctx();
  const std::int64_t wanted = options_.max_tokens < 0 ? context / 4 : options_.max_tokens;
  const std::int64_t room = std::max<std::int64_t>(1, std::min(wanted, context / 2));
  std::size_t dropped = 0;
  while (true) {
    std::vector<ChatMessage> messages = system_;
    messages.insert(messages.end(), history_.begin(), history_.end());
    auto ids = format_->encode(tokenizer(), messages, true, special_);
    if (static_cast<std::int64_t>(ids.size()) + room <= context || history_.size() <= 1) {
      if (dropped > 0)
        io_.err << "note: the context of " << context << " tokens is full: forgot the oldest " << dropped
                << (dropped == 1 ? " turn" : " turns") << '\n';
      return ids;
    }
    drop_oldest_turn(dropped);
  }
}

void Chat::say(const std::string& text) {
  history_.push_back({"user", text});
  const std::vector<ChatMessage> before = history_;
  try {
    text::require_utf8(text, "the message");
    const auto ids = fit();
    options_.sampling.seed = static_cast<std::uint64_t>(seed_) + turns_;
    last_ = engine_->generate(ids, options_, [this](std::string_view piece) {
      io_.out << piece << std::flush;
      check_out(io_);
    });
    if (last_->error) throw *last_->error;
  } catch (const Error& e) {
    if (e.code() != ErrorCode::kInvalidArgument) throw;
    io_.err << "error: " << e.what() << '\n';
    history_ = before;
    history_.pop_back();
    failed_ = true;
    return;
  }
  ++turns_;
  history_.push_back({"assistant", last_->text});
  io_.out << '\n' << std::flush;
  if (last_->finish_reason == FinishReason::kLength && io_.in_is_terminal)
    io_.err << "note: the reply was cut off after " << last_->completion_tokens << " tokens (-n)\n";
}

void Chat::save(const std::string& path) {
  if (path.empty()) {
    io_.err << "/save needs a file name\n";
    return;
  }
  auto messages = nlohmann::ordered_json::array();
  for (const auto* part : {&system_, &history_})
    for (const ChatMessage& m : *part) messages.push_back({{"role", m.role}, {"content", m.content}});
  try {
    write_file(path, nlohmann::ordered_json{{"messages", messages}}.dump(2) + "\n");
    io_.err << "wrote '" << path << "'\n";
  } catch (const Error& e) {
    io_.err << "error: " << e.what() << '\n';
    failed_ = true;
  }
}

void Chat::show_stats() {
  if (last_) io_.out << speed_line(*last_) << '\n';
  io_.out << "context: " << grouped(static_cast<std::int64_t>(engine_->session().tokens().size())) << " of "
          << grouped(engine_->n_ctx()) << " tokens, " << history_.size() << " messages; peak memory "
          << human_bytes(peak_memory_bytes()) << '\n';
}

/// True when `line` was a command.
bool Chat::command(const std::string& line) {
  if (!line.starts_with('/')) return false;
  const std::size_t space = line.find(' ');
  const std::string word = line.substr(0, space);
  const std::string argument = space == std::string::npos ? "" : line.substr(space + 1);
  if (word == "/help") {
    io_.out << kChatHelp;
  } else if (word == "/clear") {
    history_.clear();
    last_.reset();
    io_.err << "forgot the conversation\n";
  } else if (word == "/history") {
    for (const auto* part : {&system_, &history_})
      for (const ChatMessage& m : *part) io_.out << m.role << ": " << m.content << '\n';
  } else if (word == "/save") {
    save(argument);
  } else if (word == "/stats") {
    show_stats();
  } else if (word == "/exit" || word == "/quit") {
    done_ = true;
  } else {
    io_.err << "unknown command '" << word << "'"
            << suggestion(word, {"/help", "/clear", "/history", "/save", "/stats", "/exit"}) << '\n';
  }
  return true;
}

int Chat::run() {
  std::string line;
  while (!done_) {
    if (io_.in_is_terminal) io_.err << "> " << std::flush;
    if (!std::getline(io_.in, line)) break;
    if (line.ends_with('\r')) line.pop_back();
    if (line.find_first_not_of(" \t") == std::string::npos || command(line)) continue;
    say(line);
    if (io_.is_cancelled()) {
      if (!io_.in_is_terminal) return kInterrupted;
      io_.cancelled->store(false);  // Ctrl-C ended the reply, not the conversation
      io_.err << "(stopped)\n";
    }
  }
  if (io_.in_is_terminal && !done_) io_.err << '\n';
  if (io_.is_cancelled()) return kInterrupted;
  return failed_ && !io_.in_is_terminal ? kFailure : kOk;
}

int chat(const Values& values, Io& io) {
  check_chat_template(values);
  return Chat(values, io).run();
}

}  // namespace

const Command kChatCommand{
    .name = "chat",
    .summary = "talk with a model",
    .usage = "-m MODEL [--system TEXT] [options]",
    .description =
        "Reads messages line by line from standard input and writes the replies to standard output. Needs a "
        "model "
        "with a chat template that is known, or --chat-template NAME. When the context is full the oldest "
        "turns are "
        "dropped whole; the system message stays. Inside: /help /clear /history /save FILE /stats /exit. "
        "Ctrl-C stops "
        "a reply.",
    .example =
        "bitnet chat -m bitnet-2b-4t.gguf --system \"You are terse.\"\n"
        "printf 'Hello\\nAnd you?\\n' | bitnet chat -m bitnet-2b-4t.gguf --chat-template bitnet > "
        "replies.txt",
    .arguments = {},
    .options = concat({{&opt::kSystem, &opt::kChatTemplate, &opt::kSpecial, &opt::kCtxSize, &opt::kKvType},
                       engine_options(),
                       sampling_options(),
                       draft_options(),
                       {&opt::kConfig, &opt::kVerbose}}),
    .body = chat,
};

}  // namespace bitnet::cli
