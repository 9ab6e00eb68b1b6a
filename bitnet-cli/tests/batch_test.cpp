// `bitnet batch` from files to files: formats, order, failures of single items, seeds, Ctrl-C and --resume.
#include <nlohmann/json.hpp>

#include "batch_records.hpp"
#include "cli_fixture.hpp"

namespace bitnet::cli {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

/// Presses Ctrl-C as soon as something is written to it.
class Interrupting : public std::stringbuf {
 public:
  explicit Interrupting(std::atomic<bool>& flag) : flag_(flag) {}

 protected:
  std::streamsize xsputn(const char* s, std::streamsize n) override {
    flag_ = true;
    return std::stringbuf::xsputn(s, n);
  }

 private:
  std::atomic<bool>& flag_;
};

class BatchTest : public CliTest {
 protected:
  Outcome batch(const std::string& in, const std::string& out, std::vector<std::string> more = {},
                const CallOptions& options = {}) {
    std::vector<std::string> arguments{"batch", "-m", model(), "-i", in, "-o", out, "-n", "6"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return call(arguments, options);
  }
  static std::vector<json> records(const std::string& text) {
    std::vector<json> all;
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) all.push_back(json::parse(line));
    return all;
  }
  std::vector<json> records_of(const std::string& path) { return records(read_file(path)); }
};

TEST_F(BatchTest, DraftsChangeNoRecord) {
  const std::string in = file("in.txt", "abababababababab\nxyzxyzxyzxyzxyz\nno such luck\n");
  const std::vector<std::string> common{"--seed", "1", "--temp", "0.1", "-v"};
  auto drafting = common;
  drafting.insert(drafting.end(), {"--draft", "8", "--draft-ngram", "1"});
  const auto a = batch(in, file("a.jsonl"), common), b = batch(in, file("b.jsonl"), drafting);
  ASSERT_EQ(b.code, kOk) << b.err;
  const auto plain = records_of(file("a.jsonl")), drafted = records_of(file("b.jsonl"));
  ASSERT_EQ(drafted.size(), plain.size());
  for (std::size_t i = 0; i < plain.size(); ++i) EXPECT_EQ(drafted[i]["text"], plain[i]["text"]);
  EXPECT_THAT(b.err, HasSubstr("drafted tokens accepted"));
  EXPECT_THAT(a.err, Not(HasSubstr("drafted")));
}

TEST_F(BatchTest, WatchesThePoolOfALimit) {
  const std::string in = file("in.txt", "one two three four\nfive\n");
  const auto limited = batch(in, file("a.jsonl"), {"--seed", "1", "-v", "--memory-limit", "14MiB"});
  ASSERT_EQ(limited.code, kOk) << limited.err;
  EXPECT_THAT(limited.err, HasSubstr(" of at most 14.0 MiB\n"));
  EXPECT_THAT(limited.err, HasSubstr("memory: pressure was "));
  ASSERT_EQ(batch(in, file("b.jsonl"), {"--seed", "1"}).code, kOk);
  const auto a = records_of(file("a.jsonl")), b = records_of(file("b.jsonl"));
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) EXPECT_EQ(a[i]["text"], b[i]["text"]);
}

TEST_F(BatchTest, KvTypesGiveWhatRunGivesWithThem) {
  const std::string in = file("in.txt", "one two three four\nfive\n");
  for (const std::string type : {"f16", "i8", "f32"}) {
    const auto o = batch(in, file(type + ".jsonl"), {"--kv-type", type, "--seed", "3"});
    ASSERT_EQ(o.code, kOk) << o.err;
    for (const json& r : records_of(file(type + ".jsonl"))) {
      const auto alone =
          call({"run", "-m", model(), "-p", r["prompt"], "-n", "6", "--seed", "3", "--kv-type", type});
      EXPECT_EQ(r["text"], alone.out) << type;
    }
  }
  EXPECT_FAILS(batch(in, file("x.jsonl"), {"--kv-type", "i4"}), kUsage,
               "--kv-type: expected one of f16, i8, f32, got 'i4'");
}

TEST_F(BatchTest, RecordsAreInTheOrderOfTheInputAndComplete) {
  // Lengths differ, so that items finish in another order than they began.
  const std::string in = file("in.jsonl",
                              "{\"id\": \"long\", \"prompt\": \"first prompt\", \"max_tokens\": 20}\n"
                              "{\"id\": 7, \"prompt\": \"b\", \"max_tokens\": 1}\n\"c\"\n");
  const auto o = batch(in, file("out.jsonl"), {"--seed", "1"});
  ASSERT_EQ(o.code, kOk) << o.err;
  EXPECT_EQ(o.out, "");
  const auto all = records_of(file("out.jsonl"));
  ASSERT_EQ(all.size(), 3u);
  EXPECT_EQ(all[0]["id"], "long");
  EXPECT_EQ(all[1]["id"], 7);
  EXPECT_EQ(all[2]["id"], 3);
  EXPECT_EQ(all[0]["prompt"], "first prompt");
  EXPECT_EQ(all[0]["prompt_tokens"], 13);
  EXPECT_EQ(all[1]["completion_tokens"], 1);
  for (const json& r : all) {
    EXPECT_TRUE(r["finish_reason"] == "length" || r["finish_reason"] == "stop");
    EXPECT_GT(r["milliseconds"], 0.0);
    EXPECT_EQ(r["seed"], 1);
    EXPECT_FALSE(r.contains("error"));
  }
  EXPECT_FALSE(fs::exists(file("out.jsonl.partial")));
  EXPECT_THAT(o.err, HasSubstr("3 items: 3 done"));
}

TEST_F(BatchTest, ASystemMessageWithoutAChatIsAMistake) {
  const std::string plain = file("plain.txt", "one\ntwo\n");
  EXPECT_FAILS(batch(plain, file("out.jsonl"), {"--system", "s"}), kUsage, "--system needs --chat-template");
  EXPECT_FALSE(fs::exists(file("out.jsonl")));
  ASSERT_EQ(batch(plain, file("out.jsonl"), {"--system", "s", "--chat-template", "llama3"}).code, kOk);
  ASSERT_EQ(batch(plain, file("without.jsonl"), {"--chat-template", "llama3"}).code, kOk);
  EXPECT_GT(records_of(file("out.jsonl"))[0]["prompt_tokens"],
            records_of(file("without.jsonl"))[0]["prompt_tokens"]);
}

TEST_F(BatchTest, TheSameSeedGivesWhatRunGives) {
  const std::string in =
      file("in.jsonl", "\"one\"\n{\"prompt\": \"two\", \"seed\": 9}\n\"three\"\n\"four\"\n");
  ASSERT_EQ(batch(in, file("out.jsonl"), {"--seed", "4"}).code, kOk);
  const auto all = records_of(file("out.jsonl"));
  for (const auto& [index, seed] : {std::pair{0, "4"}, {1, "9"}, {2, "4"}}) {
    const json& r = all[static_cast<std::size_t>(index)];
    const auto alone = call({"run", "-m", model(), "-p", r["prompt"], "-n", "6", "--seed", seed});
    EXPECT_EQ(r["text"], alone.out);
    EXPECT_EQ(std::to_string(r["seed"].get<int>()), seed);
  }
  ASSERT_EQ(batch(in, file("again.jsonl"), {"--seed", "4", "--batch-size", "1", "--threads", "1"}).code, kOk);
  const auto again = records_of(file("again.jsonl"));
  for (std::size_t i = 0; i < all.size(); ++i) EXPECT_EQ(again[i]["text"], all[i]["text"]);
}

TEST_F(BatchTest, WithoutASeedEachItemHasItsOwnAndNamesIt) {
  ASSERT_EQ(batch(file("in.txt", "same\nsame\n"), file("out.jsonl")).code, kOk);
  const auto all = records_of(file("out.jsonl"));
  EXPECT_NE(all[0]["seed"], all[1]["seed"]);
  const auto alone = call({"run", "-m", model(), "-p", "same", "-n", "6", "--seed", all[1]["seed"].dump()});
  EXPECT_EQ(all[1]["text"], alone.out);
}

TEST_F(BatchTest, LongPromptsAreCutOnTheSideThatIsAskedFor) {
  const std::string tail = "the end of it", head = "0123456789";
  const std::string in = file("in.txt", head + std::string(200, 'x') + tail + "\nshort\n");
  const std::vector<std::string> common{"--seed", "1", "-c", "32"};
  const auto with = [&](const std::string& side) {
    auto more = common;
    more.insert(more.end(), {"--truncate", side, "-v"});
    return batch(in, file(side + ".jsonl"), more);
  };
  EXPECT_FAILS(with("none"), kFailure, "the context holds 32");
  const auto left = with("left"), right = with("right");
  ASSERT_EQ(left.code, kOk) << left.err;
  EXPECT_THAT(left.err, HasSubstr("tokens of the prompt were cut off"));
  EXPECT_THAT(left.err, HasSubstr("batch: prompts of 6 to 26 tokens"));
  // 32 tokens of context, 6 of them to write; every byte is a token, and BOS stays.
  const auto alone = [&](const std::string& prompt) {
    return call({"run", "-m", model(), "-p", prompt, "-n", "6", "--seed", "1"}).out;
  };
  const std::string text = head + std::string(200, 'x') + tail;
  const auto l = records_of(file("left.jsonl")), r = records_of(file("right.jsonl"));
  EXPECT_EQ(l[0]["prompt_tokens"], 26);
  EXPECT_EQ(l[0]["text"], alone(text.substr(text.size() - 25)));
  EXPECT_EQ(r[0]["text"], alone(text.substr(0, 25)));
  EXPECT_EQ(l[0]["prompt"], text);
  EXPECT_EQ(l[1]["text"], r[1]["text"]);
}

TEST_F(BatchTest, OneBadItemNeverStopsTheRest) {
  const std::string in =
      file("in.jsonl",
           "\"good\"\n{\"prompt\": \nnot json\n{\"id\": \"x\", \"prompt\": \"a\", \"top_k\": \"q\"}\n"
           "\"" +
               std::string(400, 'x') +
               "\"\n"
               "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]}\n\"bad \xFF utf\"\n\"good\"\n");
  const auto o = batch(in, file("out.jsonl"), {"--seed", "1"});
  EXPECT_EQ(o.code, kFailure);
  const auto all = records_of(file("out.jsonl"));
  ASSERT_EQ(all.size(), 8u);
  EXPECT_EQ(all[0]["text"], all[7]["text"]);
  for (std::size_t i = 1; i < 7; ++i) {
    EXPECT_EQ(all[i]["finish_reason"], "error") << all[i];
    EXPECT_NE(all[i]["error"], "");
  }
  EXPECT_THAT(all[4]["error"].get<std::string>(), HasSubstr("128"));
  EXPECT_THAT(all[5]["error"].get<std::string>(), HasSubstr("--chat-template"));
  EXPECT_THAT(o.err, HasSubstr("2 done, 6 failed"));
}

TEST_F(BatchTest, MessagesWithAChatTemplate) {
  const std::string in = file("in.json",
                              "[{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]}, \"plain\","
                              " {\"messages\": [{\"role\": \"dog\", \"content\": \"wuff\"}]}]");
  const auto o = batch(in, file("out.json"), {"--chat-template", "bitnet", "--seed", "1"});
  EXPECT_EQ(o.code, kFailure);
  const json all = json::parse(read_file(file("out.json")));
  ASSERT_EQ(all.size(), 3u);
  EXPECT_EQ(all[0]["messages"][0]["content"], "hi");
  EXPECT_EQ(all[0]["prompt"], "hi");
  EXPECT_NE(all[0]["finish_reason"], "error") << all[0];
  EXPECT_EQ(all[2]["finish_reason"], "error");
}

TEST_F(BatchTest, CsvInAndOut) {
  const auto o = batch(file("in.csv", "id,prompt,max_tokens\na,\"one, \"\"two\"\"\",2\nb\n"), file("out.csv"),
                       {"--seed", "1"});
  EXPECT_EQ(o.code, kFailure);
  const std::string text = read_file(file("out.csv"));
  EXPECT_THAT(text, ::testing::StartsWith("id,prompt,text,finish_reason,prompt_tokens,completion_tokens,"));
  EXPECT_THAT(text, HasSubstr("a,\"one, \"\"two\"\"\","));
  EXPECT_THAT(text, HasSubstr("line 3: expected 3 fields"));
}

TEST_F(BatchTest, StandardOutputGetsLines) {
  const auto o = batch(file("in.txt", "a\nb\nc\n"), "-", {"--seed", "1"});
  ASSERT_EQ(o.code, kOk) << o.err;
  EXPECT_EQ(records(o.out).size(), 3u);
  EXPECT_FALSE(fs::exists("-.partial"));
}

TEST_F(BatchTest, CtrlCKeepsEveryItemAndResumeDoesTheRest) {
  const std::string in = file("in.txt", "a\nb\nc\nd\n");
  ASSERT_EQ(batch(in, file("whole.jsonl"), {"--seed", "1"}).code, kOk);
  std::atomic<bool> cancelled{false};
  Interrupting buffer(cancelled);
  std::ostream err(&buffer);
  CallOptions options;
  options.err_is_terminal = false;
  options.cancelled = &cancelled;
  options.out = &err;  // the first finished record presses Ctrl-C
  EXPECT_EQ(batch(in, "-", {"--seed", "1", "--batch-size", "1"}, options).code, kInterrupted);
  const auto lines = records(buffer.str());
  ASSERT_EQ(lines.size(), 4u);
  EXPECT_NE(lines[0]["finish_reason"], "cancelled");
  EXPECT_EQ(lines[3]["finish_reason"], "cancelled");

  write_file(file("out.jsonl"), buffer.str());
  const auto resumed = batch(in, file("out.jsonl"), {"--seed", "1", "--resume"});
  EXPECT_EQ(resumed.code, kOk) << resumed.err;
  EXPECT_THAT(resumed.err, HasSubstr("of them before"));
  const auto all = records_of(file("out.jsonl")), expected = records_of(file("whole.jsonl"));
  ASSERT_EQ(all.size(), expected.size());
  for (std::size_t i = 0; i < all.size(); ++i) EXPECT_EQ(all[i]["text"], expected[i]["text"]);
  EXPECT_EQ(all[0]["milliseconds"], lines[0]["milliseconds"]);  // kept, not made again
}

TEST_F(BatchTest, AKilledRunsJournalIsNotLost) {
  const std::string in = file("in.txt", "a\nb\n");
  ASSERT_EQ(batch(in, file("out.jsonl"), {"--seed", "1"}).code, kOk);
  const std::string lines = read_file(file("out.jsonl"));
  fs::remove(file("out.jsonl"));
  // As after a kill: the first record whole, the second cut off.
  write_file(file("out.jsonl.partial"), lines.substr(0, lines.size() - 5));
  EXPECT_FAILS(batch(in, file("out.jsonl"), {"--seed", "1"}), kFailure, "--resume");
  const auto o = batch(in, file("out.jsonl"), {"--seed", "1", "--resume"});
  EXPECT_EQ(o.code, kOk) << o.err;
  EXPECT_THAT(o.err, HasSubstr("2 done (1 of them before)"));
  const auto all = records_of(file("out.jsonl")), before = records(lines);
  EXPECT_EQ(all[0], before[0]);
  EXPECT_EQ(all[1]["text"], before[1]["text"]);
  EXPECT_FALSE(fs::exists(file("out.jsonl.partial")));
}

TEST_F(BatchTest, ResumeDoesChangedItemsAgain) {
  ASSERT_EQ(batch(file("in.txt", "a\nb\n"), file("out.jsonl"), {"--seed", "1"}).code, kOk);
  const auto before = records_of(file("out.jsonl"));
  const auto o = batch(file("in.txt", "a\nc\n"), file("out.jsonl"), {"--seed", "1", "--resume"});
  EXPECT_THAT(o.err, HasSubstr("1 of them before"));
  const auto all = records_of(file("out.jsonl"));
  EXPECT_EQ(all[0], before[0]);
  EXPECT_EQ(all[1]["prompt"], "c");
}

TEST_F(BatchTest, ResumeComparesMessagesAndTheItemsOwnOptions) {
  const auto chat = [](const std::string& first) {
    return "{\"messages\": [{\"role\": \"user\", \"content\": \"" + first +
           "\"}, {\"role\": \"assistant\", \"content\": \"ok\"}, {\"role\": \"user\", \"content\": \"hi\"}]}";
  };
  const auto input = [](const std::string& a, const std::string& b, const std::string& c) {
    return "[" + a + ", {\"prompt\": \"p\", \"seed\": 3, " + b + "}, {\"prompt\": \"q\", " + c + "}]";
  };
  const std::string same = "\"stop\": [\"x\"]";
  for (const std::string out : {"out.jsonl", "out.json", "out.csv"}) {
    SCOPED_TRACE(out);
    const std::vector<std::string> more{"--seed", "1", "--chat-template", "bitnet"};
    const std::vector<std::string> resume{"--seed", "1", "--chat-template", "bitnet", "--resume"};
    const std::string first = input(chat("one"), "\"max_tokens\": 3", same);
    ASSERT_EQ(batch(file("in.json", first), file(out), more).code, kOk);
    const std::string before = read_file(file(out));
    EXPECT_THAT(batch(file("in.json", first), file(out), resume).err, HasSubstr("3 of them before"));
    EXPECT_EQ(read_file(file(out)), before);
    // Another conversation with the same last message, and another limit: only the third item is kept.
    const std::string changed = input(chat("two"), "\"max_tokens\": 5", same);
    EXPECT_THAT(batch(file("in.json", changed), file(out), resume).err, HasSubstr("1 of them before"));
    ASSERT_EQ(batch(file("in.json", changed), file("whole-" + out), more).code, kOk);
    const auto records = parse_records(read_file(file(out)), record_format(out));
    const auto whole = parse_records(read_file(file("whole-" + out)), record_format(out));
    ASSERT_EQ(records.size(), whole.size());
    for (std::size_t i = 0; i < whole.size(); ++i) {
      EXPECT_EQ(input_key(records[i]), input_key(whole[i]));
      EXPECT_EQ(records[i].text, whole[i].text);
      EXPECT_EQ(records[i].prompt_tokens, whole[i].prompt_tokens);
      EXPECT_EQ(records[i].completion_tokens, whole[i].completion_tokens);
    }
    // An item that has become wrong takes over nothing.
    const std::string wrong = input(chat("two"), "\"max_tokens\": \"many\"", same);
    EXPECT_THAT(batch(file("in.json", wrong), file(out), resume).err,
                HasSubstr("2 done (2 of them before), 1 failed"));
  }
}

TEST_F(BatchTest, TheProgressBarIsForTerminals) {
  const auto o =
      batch(file("in.txt", "a\nb\n"), file("out.jsonl"), {"--seed", "1"}, {.err_is_terminal = true});
  EXPECT_THAT(o.err, HasSubstr("/2 items"));
  EXPECT_THAT(o.err, HasSubstr("at a time"));
}

TEST_F(BatchTest, AnEmptyInputIsAnEmptyOutputAndSaysSo) {
  const auto o = batch(file("in.txt", "\n\n"), file("out.jsonl"));
  EXPECT_EQ(o.code, kOk);
  EXPECT_THAT(o.err, HasSubstr("in.txt' holds no prompts"));
  EXPECT_EQ(read_file(file("out.jsonl")), "");
}

TEST_F(BatchTest, AnItemThatFailsNamesItsLine) {
  const auto o = batch(file("in.txt", "a\n\nb\xFF\n" + std::string(500, 'x') + "\n"), "-");
  EXPECT_EQ(o.code, kFailure);
  EXPECT_THAT(o.err, HasSubstr("item \"2\": line 3: the prompt: invalid UTF-8 at byte 1"));
  EXPECT_THAT(o.err, HasSubstr("item \"3\": line 4: the prompt has 501 tokens"));
  EXPECT_THAT(batch(file("one.txt", "a\n"), "-").err, HasSubstr("1 item: 1 done"));
}

TEST_F(BatchTest, WrongInput) {
  const std::string in = file("in.txt", "a\n");
  EXPECT_FAILS(call({"batch", "-m", model(), "-o", file("o.jsonl")}), kUsage, "missing option -i (--input)");
  EXPECT_FAILS(call({"batch", "-m", model(), "-i", in}), kUsage, "missing option -o (--output)");
  EXPECT_FAILS(batch(in, file("out.txt")), kUsage, ".jsonl, .json or .csv");
  EXPECT_FAILS(batch(file("in.xml", "a"), file("out.jsonl")), kUsage, ".txt, .json, .jsonl or .csv");
  EXPECT_FAILS(batch(in, file("out.jsonl"), {"--chat-template", "nope"}), kUsage,
               "Try 'bitnet batch --help'");
  EXPECT_FAILS(batch(in, file("out.jsonl"), {"--config", file("t.yaml", "chat_template: nope\n")}), kFailure,
               "no chat template is called 'nope'");
  EXPECT_FAILS(batch(file("none.txt"), file("out.jsonl")), kFailure, "none.txt");
  EXPECT_FAILS(batch(file("in.csv", "text\nx\n"), file("out.jsonl")), kFailure, "expected a column 'prompt'");
  EXPECT_FAILS(batch(in, file("no/out.jsonl")), kFailure, "there is no directory");
  EXPECT_FAILS(batch(file("same.jsonl", "\"a\"\n"), file("same.jsonl")), kFailure,
               "input and output are the same");
  const std::string other = file("model.jsonl", read_file(model()));  // whatever it is called
  EXPECT_FAILS(call({"batch", "-m", other, "-i", in, "-o", other}), kFailure,
               "the records would replace the model");
  const std::string options = file("options.json", "{}");
  EXPECT_FAILS(batch(in, options, {"--config", options}), kFailure,
               "the records would replace the file of --config");
  EXPECT_EQ(read_file(other), read_file(model()));
  EXPECT_FAILS(batch(in, file("out.jsonl"), {"--top-p", "7"}), kUsage, "--top-p");
  EXPECT_FAILS(batch(in, "-", {"--resume"}), kUsage, "--resume needs an output file");
  EXPECT_FAILS(call({"batch", "-m", file("none.gguf"), "-i", in, "-o", file("o.jsonl")}), kFailure,
               "none.gguf");
  EXPECT_FALSE(fs::exists(file("o.jsonl.partial")));
  file("torn.jsonl", "{\"id\":");
  EXPECT_FAILS(batch(in, file("torn.jsonl"), {"--resume"}), kFailure, "torn.jsonl': line 1");
}

}  // namespace
}  // namespace bitnet::cli
