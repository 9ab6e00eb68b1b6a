// `bitnet tokenize`: text → token ids and back.
#include <ostream>

#include "bitnet/core/text/sequences.hpp"
#include "bitnet/core/text/tokenizer.hpp"
#include "bitnet/core/text/utf8.hpp"
#include "commands/commands_list.hpp"
#include "common.hpp"

namespace bitnet::cli {
namespace {

std::vector<TokenId> parse_ids(std::string_view text, std::int64_t vocab_size) {
  std::vector<TokenId> ids;
  while (true) {
    const std::size_t begin = text.find_first_not_of(" \t\r\n,[]");
    if (begin == std::string_view::npos) return ids;
    text.remove_prefix(begin);
    const std::string_view word = text.substr(0, text.find_first_of(" \t\r\n,[]"));
    const auto id = parse_integer(word);
    const std::string where = "id number " + std::to_string(ids.size() + 1);
    if (!id || *id < 0 || *id >= vocab_size)
      throw Error(ErrorCode::kInvalidArgument, where + ": expected a whole number from 0 to " +
                                                   std::to_string(vocab_size - 1) + ", got '" +
                                                   std::string(word.substr(0, 40)) + "'");
    ids.push_back(static_cast<TokenId>(*id));
    text.remove_prefix(word.size());
  }
}

void write_ids(const std::vector<TokenId>& ids, Io& io) {
  for (std::size_t i = 0; i < ids.size(); ++i) io.out << (i == 0 ? "" : " ") << ids[i];
  io.out << '\n';
}

/// Figures of a text as tokens. Lines are encoded alone, as sequences of a corpus are; the whole text's ids
/// count for the rest.
void write_statistics(const Tokenizer& tokenizer, std::string_view text, const std::vector<TokenId>& ids,
                      Io& io) {
  std::vector<std::int64_t> lines;
  for (std::string_view rest = text; !rest.empty();) {
    check_cancelled(io);
    const std::size_t end = rest.find('\n');
    const std::string_view line = rest.substr(0, end);
    rest = end == std::string_view::npos ? std::string_view{} : rest.substr(end + 1);
    if (!line.empty())
      lines.push_back(static_cast<std::int64_t>(tokenizer.encode(line, {.add_bos = false}).size()));
  }
  const CorpusStatistics s = corpus_statistics({&ids, 1}, tokenizer.vocab_size());
  const LengthStatistics l = length_statistics(lines);
  const auto n = static_cast<double>(ids.size());
  io.out << "tokens\t" << ids.size() << "\nbytes\t" << text.size() << "\nbytes a token\t"
         << fixed(ids.empty() ? 0 : static_cast<double>(text.size()) / n, 3) << "\ndistinct tokens\t"
         << s.distinct_tokens << " of " << tokenizer.vocab_size() << "\nentropy of a token\t"
         << fixed(s.entropy_bits, 3) << " bits\nlines\t" << l.count << "\ntokens a line\t" << l.shortest
         << " … " << l.longest << ", mean " << fixed(l.mean, 1) << " ± " << fixed(l.deviation, 1)
         << ", median " << l.median << ", 90 % " << l.p90 << ", 99 % " << l.p99 << '\n';
  for (const TokenCount& t : s.most_frequent)
    io.out << quoted(tokenizer.token(t.id)) << '\t' << t.count << '\n';
}

int tokenize(const Values& values, Io& io) {
  const std::string path = require(values, opt::kTokenizeModel);
  const auto tokenizer = Tokenizer::load(path);
  const bool special = values.flag(opt::kSpecial);
  const auto [text, file] = text_or_file(values, opt::kPrompt, opt::kTokenizeFile, io);
  if (values.flag(opt::kDecode)) {
    const auto ids = parse_ids(text, tokenizer->vocab_size());
    io.out << tokenizer->decode(ids, special);
    if (io.out_is_terminal) io.out << '\n';  // a pipe gets the text and nothing else
    return kOk;
  }
  text::require_utf8(text, file.empty() ? "the text" : "'" + file + "'");
  const auto ids = tokenizer->encode(text, {.add_bos = !values.flag(opt::kNoBos), .parse_special = special});
  if (values.flag(opt::kStats)) {
    write_statistics(*tokenizer, text, ids, io);
    return kOk;
  }
  if (values.flag(opt::kIds)) {
    write_ids(ids, io);
    return kOk;
  }
  for (const TokenId id : ids) {
    check_cancelled(io);
    io.out << id << '\t' << quoted(tokenizer->token(id)) << '\n';
  }
  if (io.out_is_terminal) io.err << grouped(static_cast<std::int64_t>(ids.size())) << " tokens\n";
  return kOk;
}

}  // namespace

const Command kTokenizeCommand{
    .name = "tokenize",
    .summary = "show how a model splits text into tokens, or turn ids into text",
    .usage = "-m MODEL -p TEXT | -f FILE [options]",
    .description =
        "Writes one token a line: its id, a tab, and the token as the vocabulary has it. Text such as "
        "<|eot_id|> is "
        "ordinary text unless --special is given. MODEL may be a directory that holds only a tokenizer.json, "
        "or a "
        "vocabulary-only GGUF. --stats writes figures of the text instead, one a line: a name, a tab, a "
        "value.",
    .example =
        "bitnet tokenize -m models/bitnet-demo-i2_s.gguf -p \"It was a truth\"\n"
        "bitnet tokenize -m models/bitnet-demo-i2_s.gguf --ids -f book.txt > ids.txt\n"
        "bitnet tokenize -m models/bitnet-demo-i2_s.gguf --decode -f ids.txt",
    .arguments = {},
    .options = {&opt::kTokenizeModel, &opt::kPrompt, &opt::kTokenizeFile, &opt::kSpecial, &opt::kNoBos,
                &opt::kDecode, &opt::kIds, &opt::kStats},
    .body = tokenize,
};

}  // namespace bitnet::cli
