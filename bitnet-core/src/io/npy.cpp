// .npy: magic, version, a header that is a Python dictionary literal, the elements. The literal is read by a
// small parser of just what numpy.lib.format writes; nothing is evaluated.
#include "bitnet/core/io/npy.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bitnet/core/error.hpp"
#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/core/memory/mapped_file.hpp"

namespace bitnet {
namespace {

static_assert(std::endian::native == std::endian::little);

constexpr std::string_view kMagic = "\x93NUMPY";
constexpr std::size_t kMaxHeader = 1 << 16;  // numpy's own limit for readers is 10,000

[[noreturn]] void corrupt(const std::string& message, SourceLocation where = SourceLocation::current()) {
  throw Error(ErrorCode::kCorruptFile, message, where);
}

/// A string of the file for a message: without what terminals and logs take for commands, and not endless.
std::string shown(std::string_view text) {
  constexpr std::size_t kMost = 40;
  std::string s;
  for (const char c : text.substr(0, kMost)) {
    if (c >= ' ' && c <= '~')
      s += c;
    else
      s += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
  }
  return text.size() > kMost ? s + "…" : s;
}

struct Header {
  std::string descr;
  bool fortran = false;
  std::vector<std::int64_t> shape;
};

/// Reads {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), } with any order and spacing.
class HeaderParser {
 public:
  explicit HeaderParser(std::string_view text) : text_(text) {}

  Header parse() {
    Header h;
    bool descr = false, fortran = false, shape = false;
    expect('{');
    while (!accept('}')) {
      const std::string key = string();
      expect(':');
      const auto once = [&](bool& seen) {
        if (seen) corrupt(fmt::format("key '{}' stands twice in the header", shown(key)));
        seen = true;
      };
      if (key == "descr") {
        once(descr);
        if (peek() == '[') throw Error(ErrorCode::kUnsupported, "arrays of records cannot be read");
        h.descr = string();
      } else if (key == "fortran_order") {
        once(fortran);
        h.fortran = boolean();
      } else if (key == "shape") {
        once(shape);
        h.shape = tuple();
      } else {
        corrupt(fmt::format("key '{}' in the header: descr, fortran_order and shape wanted", shown(key)));
      }
      if (!accept(',')) {
        expect('}');
        break;
      }
    }
    skip_space();
    if (at_ != text_.size()) corrupt(fmt::format("byte {} of the header follows the dictionary", at_));
    if (!descr || !fortran || !shape)
      corrupt(fmt::format("the header lacks '{}'", !descr ? "descr" : !fortran ? "fortran_order" : "shape"));
    return h;
  }

 private:
  void skip_space() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\t')) ++at_;
  }
  char peek() {
    skip_space();
    return at_ < text_.size() ? text_[at_] : '\0';
  }
  bool accept(char c) {
    if (peek() != c) return false;
    ++at_;
    return true;
  }
  void expect(char c) {
    if (!accept(c)) corrupt(fmt::format("'{}' wanted at byte {} of the header", c, at_));
  }
  std::string string() {
    const char quote = peek();
    if (quote != '\'' && quote != '"') corrupt(fmt::format("a string wanted at byte {} of the header", at_));
    const std::size_t end = text_.find(quote, ++at_);
    if (end == std::string_view::npos) corrupt("a string of the header does not end");
    std::string s(text_.substr(at_, end - at_));
    at_ = end + 1;
    return s;
  }
  bool boolean() {
    skip_space();
    for (const bool value : {true, false}) {
      const std::string_view word = value ? "True" : "False";
      if (text_.substr(at_, word.size()) != word) continue;
      at_ += word.size();
      return value;
    }
    corrupt(fmt::format("True or False wanted at byte {} of the header", at_));
  }
  std::vector<std::int64_t> tuple() {
    std::vector<std::int64_t> values;
    expect('(');
    while (!accept(')')) {
      values.push_back(number());
      if (!accept(',')) {
        if (values.size() == 1) corrupt("the shape of one axis lacks its comma");
        expect(')');
        break;
      }
    }
    return values;
  }
  std::int64_t number() {
    skip_space();
    const std::size_t begin = at_;
    std::int64_t v = 0;
    for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_)
      if (__builtin_mul_overflow(v, 10, &v) || __builtin_add_overflow(v, text_[at_] - '0', &v))
        corrupt("an axis of the shape does not fit 64 bits");
    if (at_ == begin) corrupt(fmt::format("a number ≥ 0 wanted at byte {} of the header", at_));
    if (at_ < text_.size() && text_[at_] == 'L') ++at_;  // Python 2's long integers
    return v;
  }

  std::string_view text_;
  std::size_t at_ = 0;
};

/// A type of NumPy: what its elements become, and how they are laid out.
struct Element {
  char kind;         ///< f, i, u or b
  std::size_t size;  ///< bytes
  bool swapped;      ///< big endian
};

Element element_of(const std::string& descr) {
  const auto unsupported = [&](const char* why) {
    throw Error(ErrorCode::kUnsupported, fmt::format("elements are '{}': {}", shown(descr), why));
  };
  if (descr.size() != 3 || std::string_view("<>|=").find(descr[0]) == std::string_view::npos)
    unsupported("numbers like '<f4' wanted");
  const Element e{descr[1], static_cast<std::size_t>(descr[2] - '0'), descr[0] == '>'};
  const bool known =
      (e.kind == 'f' && (e.size == 2 || e.size == 4 || e.size == 8)) ||
      ((e.kind == 'i' || e.kind == 'u') && (e.size == 1 || e.size == 2 || e.size == 4 || e.size == 8)) ||
      (e.kind == 'b' && e.size == 1);
  if (!known) unsupported("f2, f4, f8, i1 … i8, u1 … u8 and b1 can be read");
  return e;
}

/// The DType that holds every value; none for those that are wider.
std::optional<DType> exact_dtype(const Element& e) {
  if (e.kind == 'f' && e.size == 4) return DType::kF32;
  if (e.kind == 'f' && e.size == 2) return DType::kF16;
  if ((e.kind == 'i' || e.kind == 'b') && e.size == 1) return DType::kI8;
  if (e.kind == 'i' && e.size == 4) return DType::kI32;
  return std::nullopt;
}

template <class T>
T read_as(const std::byte* p, bool swapped) {
  std::array<std::byte, sizeof(T)> raw;
  for (std::size_t i = 0; i < sizeof(T); ++i) raw[i] = p[swapped ? sizeof(T) - 1 - i : i];
  return std::bit_cast<T>(raw);
}

/// An integer of any of NumPy's types as int64; a uint64 beyond it as the largest, which no i32 holds either.
std::int64_t read_integer(const std::byte* p, const Element& e) {
  const bool s = e.swapped;
  if (e.kind == 'i') {
    switch (e.size) {
      case 1:
        return read_as<std::int8_t>(p, s);
      case 2:
        return read_as<std::int16_t>(p, s);
      case 4:
        return read_as<std::int32_t>(p, s);
      default:
        return read_as<std::int64_t>(p, s);
    }
  }
  switch (e.size) {
    case 1:
      return read_as<std::uint8_t>(p, s);
    case 2:
      return read_as<std::uint16_t>(p, s);
    case 4:
      return read_as<std::uint32_t>(p, s);
    default: {
      const auto v = read_as<std::uint64_t>(p, s);
      return v > 0x7fffffffffffffffu ? std::numeric_limits<std::int64_t>::max()
                                     : static_cast<std::int64_t>(v);
    }
  }
}

Tensor narrowed(const std::byte* data, const Element& e, const Shape& shape) {
  const auto n = static_cast<std::size_t>(shape.numel());
  Tensor out(e.kind == 'f' ? DType::kF32 : DType::kI32, shape);
  for (std::size_t i = 0; i < n; ++i) {
    const std::byte* const p = data + i * e.size;
    if (e.kind == 'f') {
      out.span<float>()[i] = static_cast<float>(read_as<double>(p, e.swapped));
      continue;
    }
    const std::int64_t v = read_integer(p, e);
    if (v != static_cast<std::int32_t>(v))
      throw Error(ErrorCode::kUnsupported, fmt::format("element {} is {}, which i32 does not hold", i, v));
    out.span<std::int32_t>()[i] = static_cast<std::int32_t>(v);
  }
  return out;
}

Tensor copied(const std::byte* data, const Element& e, DType dtype, const Shape& shape) {
  Tensor out(dtype, shape);
  const auto to = out.bytes();
  if (to.empty()) return out;
  std::memcpy(to.data(), data, to.size());
  if (e.swapped)
    for (std::size_t i = 0; i < to.size(); i += e.size)
      for (std::size_t j = 0; j < e.size / 2; ++j) std::swap(to[i + j], to[i + e.size - 1 - j]);
  if (e.kind == 'b')
    for (const std::byte b : to)
      if (b > std::byte{1}) corrupt(fmt::format("a bool is {}", static_cast<int>(b)));
  return out;
}

struct Parts {
  std::string_view header;
  std::span<const std::byte> data;
};

Parts split(std::span<const std::byte> bytes) {
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (text.substr(0, kMagic.size()) != kMagic) corrupt("no .npy file: it does not begin with \\x93NUMPY");
  if (text.size() < 10) corrupt(fmt::format("{} bytes: cut off within the first ten", text.size()));
  const auto major = static_cast<unsigned char>(text[6]), minor = static_cast<unsigned char>(text[7]);
  if (major < 1 || major > 3 || minor != 0)
    throw Error(ErrorCode::kUnsupported,
                fmt::format("version {}.{}: 1.0, 2.0 and 3.0 can be read", major, minor));
  const std::size_t start = major == 1 ? 10 : 12;
  if (text.size() < start) corrupt(fmt::format("{} bytes: cut off within the header's length", text.size()));
  const std::size_t length = major == 1 ? read_as<std::uint16_t>(bytes.data() + 8, false)
                                        : read_as<std::uint32_t>(bytes.data() + 8, false);
  if (length > kMaxHeader) corrupt(fmt::format("a header of {} bytes, more than {}", length, kMaxHeader));
  if (text.size() - start < length)
    corrupt(fmt::format("a header of {} bytes in a file of {}", length, text.size()));
  return {text.substr(start, length), bytes.subspan(start + length)};
}

Tensor parse(std::span<const std::byte> bytes, NpyWide wide) {
  const Parts parts = split(bytes);
  const Header h = HeaderParser(parts.header).parse();
  const Element e = element_of(h.descr);
  if (h.shape.size() > Shape::kMaxRank)
    throw Error(ErrorCode::kUnsupported,
                fmt::format("{} axes, at most {} are supported", h.shape.size(), Shape::kMaxRank));
  auto need = static_cast<std::int64_t>(e.size);  // as Shape counts: signed, and axes of no size left out
  bool empty = false;
  for (const std::int64_t d : h.shape) {
    empty = empty || d == 0;
    if (d != 0 && __builtin_mul_overflow(need, d, &need))
      corrupt(fmt::format("shape ({}) of '{}' overflows 64 bits", fmt::join(h.shape, ", "), h.descr));
  }
  if (empty) need = 0;
  if (parts.data.size() != static_cast<std::size_t>(need))
    corrupt(fmt::format("shape ({}) of '{}' takes {} bytes, {} follow the header", fmt::join(h.shape, ", "),
                        h.descr, need, parts.data.size()));
  // The elements of Fortran order are those of the reversed shape in C order.
  const Shape stored(h.fortran ? std::vector<std::int64_t>(h.shape.rbegin(), h.shape.rend()) : h.shape);
  const auto dtype = exact_dtype(e);
  if (!dtype && wide == NpyWide::kRefuse)
    throw Error(
        ErrorCode::kUnsupported,
        fmt::format(
            "elements are '{}': no dtype here holds them; narrow them when reading (NpyWide::kNarrow) "
            "or write float32, float16, int32 or int8",
            h.descr));
  const Tensor t =
      dtype ? copied(parts.data.data(), e, *dtype, stored) : narrowed(parts.data.data(), e, stored);
  if (!h.fortran) return t;
  std::vector<std::int64_t> axes;
  for (std::size_t d = h.shape.size(); d-- > 0;) axes.push_back(static_cast<std::int64_t>(d));
  return t.permute(axes);
}

/// What stands before the elements.
std::string start_of(const Tensor& tensor) {
  std::string_view descr;
  switch (tensor.dtype()) {
    case DType::kF32:
      descr = "<f4";
      break;
    case DType::kF16:
      descr = "<f2";
      break;
    case DType::kI8:
      descr = "|i1";
      break;
    case DType::kI32:
      descr = "<i4";
      break;
    default:
      throw Error(
          ErrorCode::kUnsupported,
          fmt::format("NumPy has no {}: convert the tensor to f32 or i8 first", to_string(tensor.dtype())));
  }
  const auto dims = tensor.shape().dims();
  std::string header = fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': ({}{}), }}", descr,
                                   fmt::join(dims, ", "), dims.size() == 1 ? "," : "");
  // Magic, version, length, header and a line feed fill a multiple of 64 bytes; at most 8 axes of 19 digits.
  header.append((64 - (10 + header.size() + 1) % 64) % 64, ' ').push_back('\n');
  std::string start(kMagic);
  start.append(
      {'\x01', '\x00', static_cast<char>(header.size() & 0xff), static_cast<char>(header.size() >> 8)});
  return start + header;
}

}  // namespace

Tensor parse_npy(std::span<const std::byte> bytes, std::string_view name, NpyWide wide) {
  return with_context(fmt::format("reading '{}'", name), [&] { return parse(bytes, wide); });
}

Tensor read_npy(const std::filesystem::path& path, NpyWide wide) {
  const auto file = MappedFile::open(path);
  return parse_npy(file->bytes(), path.string(), wide);
}

void write_npy(const std::filesystem::path& path, const Tensor& tensor) {
  // Beside the file, whose errors name it themselves.
  const auto [start, elements] = with_context(fmt::format("writing '{}'", path.string()), [&] {
    return std::pair(start_of(tensor), tensor.contiguous());
  });
  AtomicFile file(path);
  file.write(start);
  file.write(elements.bytes());
  file.commit();
}

}  // namespace bitnet
