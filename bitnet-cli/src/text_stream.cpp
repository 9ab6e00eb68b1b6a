// See text_stream.hpp.
#include "text_stream.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <istream>
#include <utility>

#include "bitnet/core/error.hpp"
#include "bitnet/core/text/stream_encoder.hpp"
#include "common.hpp"

namespace bitnet::cli {
namespace {

constexpr std::size_t kBlock = std::size_t{64} << 10;  // bytes

}  // namespace

TextReader::TextReader(std::string path, Io& io) : path_(std::move(path)), io_(io) {
  if (path_ == "-") return;
  fd_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd_ >= 0) return;
  const bool absent = errno == ENOENT || errno == ENOTDIR;
  throw Error(absent ? ErrorCode::kNotFound : ErrorCode::kIo,
              "opening '" + path_ + "': " + std::strerror(errno));
}

TextReader::~TextReader() {
  if (fd_ >= 0) ::close(fd_);
}

bool TextReader::next(std::string& block) {
  check_cancelled(io_);
  block.resize(kBlock);
  std::size_t n = 0;
  if (fd_ < 0) {
    io_.in.read(block.data(), static_cast<std::streamsize>(kBlock));
    n = static_cast<std::size_t>(io_.in.gcount());
    check_cancelled(io_);
    if (io_.in.bad()) throw Error(ErrorCode::kIo, "cannot read standard input");
  } else {
    ssize_t got = -1;
    do {
      got = ::read(fd_, block.data(), kBlock);
      check_cancelled(io_);
    } while (got < 0 && errno == EINTR);
    if (got < 0) throw Error(ErrorCode::kIo, "reading '" + path_ + "': " + std::strerror(errno));
    n = static_cast<std::size_t>(got);
  }
  block.resize(n);
  return n > 0;
}

void stream_tokens(const std::vector<std::shared_ptr<const Tokenizer>>& tokenizers, TextReader& text,
                   const std::function<void(std::size_t which, std::span<const TokenId>)>& sink) {
  std::vector<std::unique_ptr<StreamEncoder>> encoders;
  for (const auto& tokenizer : tokenizers)
    encoders.push_back(tokenizer != nullptr ? std::make_unique<StreamEncoder>(tokenizer) : nullptr);
  std::vector<TokenId> ids;
  const auto for_each = [&](const auto& step) {
    for (std::size_t i = 0; i < encoders.size(); ++i) {
      if (encoders[i] == nullptr) continue;
      ids.clear();
      step(*encoders[i]);
      if (!ids.empty()) sink(i, ids);
    }
  };
  std::string block;
  while (text.next(block)) for_each([&](StreamEncoder& e) { e.push(block, ids); });
  for_each([&](StreamEncoder& e) { e.finish(ids); });
}

void stream_tokens(const std::shared_ptr<const Tokenizer>& tokenizer, TextReader& text,
                   const std::function<void(std::span<const TokenId>)>& sink) {
  stream_tokens({tokenizer}, text, [&](std::size_t, std::span<const TokenId> ids) { sink(ids); });
}

void stream_lines(TextReader& text, const std::function<void(std::string_view line)>& sink) {
  std::string block, line;
  const auto hand_on = [&] {
    if (line.ends_with('\r')) line.pop_back();
    sink(line);
    line.clear();
  };
  while (text.next(block)) {
    std::string_view rest = block;
    for (std::size_t end; (end = rest.find('\n')) != std::string_view::npos; rest.remove_prefix(end + 1)) {
      line += rest.substr(0, end);
      hand_on();
    }
    line += rest;
  }
  if (!line.empty()) hand_on();
}

}  // namespace bitnet::cli
