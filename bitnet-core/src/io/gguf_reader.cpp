// GgufFile: parses and checks a mapped GGUF file. Nothing is reserved, read or multiplied before it has been
// compared with the bytes that remain.
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <numeric>

#include "bitnet/core/error.hpp"
#include "io/gguf_types.hpp"

namespace bitnet {
namespace {

using namespace gguf;

static_assert(std::endian::native == std::endian::little, "GGUF is read by copying little-endian values");

[[noreturn]] void corrupt(std::string message, SourceLocation where = SourceLocation::current()) {
  throw Error(ErrorCode::kCorruptFile, std::move(message), where);
}

/// What all values together may take in memory. The largest vocabularies take some 60 MB; a sparse file backs
/// any count and any length with bytes.
constexpr std::uint64_t kMetadataLimit = std::uint64_t{256} << 20;

/// Reads forward through the file; every error names the byte.
class Cursor {
 public:
  explicit Cursor(std::span<const std::byte> bytes) : bytes_(bytes) {}

  std::uint64_t position() const noexcept { return position_; }
  std::uint64_t remaining() const noexcept { return bytes_.size() - position_; }

  template <class T>
  T read(const char* what) {
    need(sizeof(T), what);
    T value;
    std::memcpy(&value, bytes_.data() + position_, sizeof(T));
    position_ += sizeof(T);
    return value;
  }

  std::string string(const char* what) {
    const auto length = read<std::uint64_t>(what);
    need(length, what);
    charge(length);
    std::string text(reinterpret_cast<const char*>(bytes_.data()) + position_, length);
    position_ += length;
    return text;
  }

  /// A count of things that take at least `least` bytes each.
  std::uint64_t count(std::uint64_t least, const char* what) {
    const std::uint64_t at = position_;
    const auto n = read<std::uint64_t>(what);
    if (n > remaining() / least)
      corrupt(fmt::format("at byte {}: {} is {}, but the {} bytes that remain hold at most {}", at, what, n,
                          remaining(), remaining() / least));
    return n;
  }

  /// Before memory is taken for values: `bytes` more of it, all values together within kMetadataLimit.
  void charge(std::uint64_t bytes) {
    if (bytes > kMetadataLimit - charged_)
      throw Error(ErrorCode::kUnsupported,
                  fmt::format("at byte {}: the metadata exceed {} bytes", position_, kMetadataLimit));
    charged_ += bytes;
  }

 private:
  void need(std::uint64_t n, const char* what) const {
    if (n > remaining())
      corrupt(
          fmt::format("at byte {}: expected {} bytes of {}, but {} remain", position_, n, what, remaining()));
  }
  std::span<const std::byte> bytes_;
  std::uint64_t position_ = 0, charged_ = 0;
};

bool read_bool(Cursor& in) {
  const std::uint64_t at = in.position();
  const auto b = in.read<std::uint8_t>("a bool");
  if (b > 1) corrupt(fmt::format("at byte {}: expected a bool of 0 or 1, got {}", at, b));
  return b != 0;
}

/// What is reserved ahead for entries whose least size in the file says little: more of them let it grow.
std::size_t first_reserve(std::uint64_t n) {
  return static_cast<std::size_t>(std::min<std::uint64_t>(n, 65536));
}

/// `n` elements, which may be wider here than in the file.
template <class To, class Read>
GgufArray read_elements(Cursor& in, std::uint64_t n, Read&& read) {
  in.charge(n * sizeof(To));  // no overflow: the file has n bytes
  std::vector<To> out;
  out.reserve(n);
  for (std::uint64_t i = 0; i < n; ++i) out.push_back(static_cast<To>(read()));
  return out;
}

GgufArray read_array(Cursor& in, std::int32_t type) {
  if (type == kArray) throw Error(ErrorCode::kUnsupported, "arrays of arrays are not supported");
  const std::uint64_t least = least_bytes(type);
  if (least == 0) corrupt(fmt::format("at byte {}: unknown array element type {}", in.position(), type));
  const std::uint64_t n = in.count(least, "an array's length");
  const char* what = "array elements";
  using I = std::int64_t;
  using U = std::uint64_t;
  switch (type) {
    case kU8:
      return read_elements<U>(in, n, [&] { return in.read<std::uint8_t>(what); });
    case kI8:
      return read_elements<I>(in, n, [&] { return in.read<std::int8_t>(what); });
    case kU16:
      return read_elements<U>(in, n, [&] { return in.read<std::uint16_t>(what); });
    case kI16:
      return read_elements<I>(in, n, [&] { return in.read<std::int16_t>(what); });
    case kU32:
      return read_elements<U>(in, n, [&] { return in.read<std::uint32_t>(what); });
    case kI32:
      return read_elements<I>(in, n, [&] { return in.read<std::int32_t>(what); });
    case kU64:
      return read_elements<U>(in, n, [&] { return in.read<std::uint64_t>(what); });
    case kI64:
      return read_elements<I>(in, n, [&] { return in.read<std::int64_t>(what); });
    case kF32:
      return read_elements<double>(in, n, [&] { return in.read<float>(what); });
    case kF64:
      return read_elements<double>(in, n, [&] { return in.read<double>(what); });
    case kBool:
      return read_elements<bool>(in, n, [&] { return read_bool(in); });
    default:
      return read_elements<std::string>(in, n, [&] { return in.string("a string"); });
  }
}

GgufValue read_value(Cursor& in) {
  GgufValue value;
  const std::uint64_t at = in.position();
  value.type = in.read<std::int32_t>("a value's type");
  value.element_type = 0;
  const char* what = "a value";
  switch (value.type) {
    case kU8:
      value.data = std::uint64_t{in.read<std::uint8_t>(what)};
      break;
    case kI8:
      value.data = std::int64_t{in.read<std::int8_t>(what)};
      break;
    case kU16:
      value.data = std::uint64_t{in.read<std::uint16_t>(what)};
      break;
    case kI16:
      value.data = std::int64_t{in.read<std::int16_t>(what)};
      break;
    case kU32:
      value.data = std::uint64_t{in.read<std::uint32_t>(what)};
      break;
    case kI32:
      value.data = std::int64_t{in.read<std::int32_t>(what)};
      break;
    case kU64:
      value.data = in.read<std::uint64_t>(what);
      break;
    case kI64:
      value.data = in.read<std::int64_t>(what);
      break;
    case kF32:
      value.data = static_cast<double>(in.read<float>(what));
      break;
    case kF64:
      value.data = in.read<double>(what);
      break;
    case kBool:
      value.data = read_bool(in);
      break;
    case kString:
      value.data = in.string("a string");
      break;
    case kArray:
      value.element_type = in.read<std::int32_t>("an array's element type");
      value.data = read_array(in, value.element_type);
      break;
    default:
      corrupt(fmt::format("at byte {}: unknown value type {}", at, value.type));
  }
  return value;
}

GgufMetadata read_metadata(Cursor& in, std::uint64_t n_kv) {
  std::vector<std::pair<std::string, GgufValue>> entries;
  entries.reserve(first_reserve(n_kv));
  for (std::uint64_t i = 0; i < n_kv; ++i) {
    const std::uint64_t at = in.position();
    std::string key = in.string("a key");
    if (key.empty() || key.size() > 65535)
      corrupt(fmt::format("at byte {}: expected a key of 1 to 65535 bytes, got {}", at, key.size()));
    GgufValue value = with_context(fmt::format("key '{}'", key), [&] { return read_value(in); });
    entries.emplace_back(std::move(key), std::move(value));
  }
  try {
    return GgufMetadata(std::move(entries));
  } catch (const Error& e) {
    corrupt(e.what());
  }
}

GgufTensorInfo read_tensor_info(Cursor& in, std::uint64_t alignment) {
  GgufTensorInfo t;
  const std::uint64_t at = in.position();
  t.name = in.string("a tensor's name");
  if (t.name.empty()) corrupt(fmt::format("at byte {}: expected a tensor name, got an empty one", at));
  const auto context = fmt::format("tensor '{}'", t.name);
  return with_context(context, [&] {
    const auto n_dims = in.read<std::uint32_t>("n_dims");
    if (n_dims > kMaxDims) corrupt(fmt::format("expected at most {} dimensions, got {}", kMaxDims, n_dims));
    for (std::uint32_t d = 0; d < n_dims; ++d) t.dims.push_back(in.read<std::int64_t>("a dimension"));
    t.type = static_cast<GgmlType>(in.read<std::int32_t>("a tensor's type"));
    t.offset = in.read<std::uint64_t>("a tensor's offset");
    if (t.offset % alignment != 0)
      corrupt(fmt::format("expected an offset aligned to {}, got {}", alignment, t.offset));
    try {
      t.bytes = ggml_bytes(t.type, t.dims);
    } catch (const Error& e) {
      if (e.code() != ErrorCode::kUnsupported) throw;
      for (const std::int64_t dim : t.dims)
        if (dim < 0) corrupt(fmt::format("expected dimensions of at least 0, got {}", dim));
      t.bytes = 0;  // a type of unknown size: listed, but its data cannot be had
    }
    return std::move(t);
  });
}

/// Data inside the file and no byte in two tensors.
void check_extents(std::span<const GgufTensorInfo> tensors, std::uint64_t data_bytes) {
  std::vector<const GgufTensorInfo*> order;
  order.reserve(tensors.size());
  for (const GgufTensorInfo& t : tensors) {
    if (t.offset > data_bytes || t.bytes > data_bytes - t.offset)
      corrupt(fmt::format("tensor '{}': expected {} bytes at offset {} of the data, which has {} bytes",
                          t.name, t.bytes, t.offset, data_bytes));
    order.push_back(&t);
  }
  std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return a->offset != b->offset ? a->offset < b->offset : a->bytes < b->bytes;
  });
  for (std::size_t i = 1; i < order.size(); ++i)
    if (order[i - 1]->offset + order[i - 1]->bytes > order[i]->offset)
      corrupt(fmt::format("tensors '{}' and '{}' overlap at offset {} of the data", order[i - 1]->name,
                          order[i]->name, order[i]->offset));
}

void check_header(Cursor& in) {
  const auto magic = in.read<std::uint32_t>("the magic");
  if (magic != kMagic) corrupt("at byte 0: expected the magic \"GGUF\": this is no GGUF file");
  const auto version = in.read<std::uint32_t>("the version");
  if (version == 2 || version == kVersion) return;  // version 2 has the same layout
  if (version != 0 && (version & 0xffffu) == 0)
    throw Error(ErrorCode::kUnsupported, "at byte 4: the file is big-endian; expected little-endian");
  throw Error(ErrorCode::kUnsupported,
              fmt::format("at byte 4: expected GGUF version 2 or 3, got {}", version));
}

}  // namespace

std::uint64_t gguf::alignment_of(const GgufMetadata& metadata) {
  const auto alignment = metadata.integer(kAlignmentKey);
  if (!alignment) return kDefaultAlignment;
  if (*alignment <= 0 || *alignment > (1 << 20) ||
      !std::has_single_bit(static_cast<std::uint64_t>(*alignment)))
    corrupt(fmt::format("key '{}': expected a power of two up to 2^20, got {}", kAlignmentKey, *alignment));
  return static_cast<std::uint64_t>(*alignment);
}

std::shared_ptr<const GgufFile> GgufFile::open(const std::filesystem::path& path) {
  return with_context(fmt::format("reading GGUF file '{}'", path.string()), [&] {
    std::shared_ptr<GgufFile> file(new GgufFile);
    file->file_ = MappedFile::open(path);
    Cursor in(file->file_->bytes());
    check_header(in);
    // A tensor info takes at least 8 + 4 + 4 + 8 bytes, a key-value at least 8 + 4 + 1.
    const std::uint64_t n_tensors = in.count(24, "the number of tensors");
    const std::uint64_t n_kv = in.count(13, "the number of key-values");
    file->metadata_ = read_metadata(in, n_kv);
    const std::uint64_t alignment = alignment_of(file->metadata_);
    if (n_tensors > in.remaining() / 24)
      corrupt(fmt::format("expected {} tensors, but {} bytes remain at byte {}", n_tensors, in.remaining(),
                          in.position()));
    file->tensors_.reserve(first_reserve(n_tensors));
    for (std::uint64_t i = 0; i < n_tensors; ++i) file->tensors_.push_back(read_tensor_info(in, alignment));

    const std::uint64_t size = file->file_->bytes().size();
    file->data_start_ =
        std::min(size, align_up(in.position(), alignment));  // vocabulary-only files may lack padding
    check_extents(file->tensors_, size - file->data_start_);

    file->by_name_.resize(file->tensors_.size());
    std::iota(file->by_name_.begin(), file->by_name_.end(), std::uint32_t{0});
    const auto& tensors = file->tensors_;
    std::sort(file->by_name_.begin(), file->by_name_.end(),
              [&](auto a, auto b) { return tensors[a].name < tensors[b].name; });
    for (std::size_t i = 1; i < file->by_name_.size(); ++i)
      if (tensors[file->by_name_[i - 1]].name == tensors[file->by_name_[i]].name)
        corrupt(fmt::format("tensor '{}' occurs twice", tensors[file->by_name_[i]].name));
    return std::shared_ptr<const GgufFile>(std::move(file));
  });
}

const GgufTensorInfo* GgufFile::find(std::string_view name) const noexcept {
  const auto at = std::lower_bound(by_name_.begin(), by_name_.end(), name,
                                   [&](std::uint32_t i, std::string_view n) { return tensors_[i].name < n; });
  return at != by_name_.end() && tensors_[*at].name == name ? &tensors_[*at] : nullptr;
}

std::span<const std::byte> GgufFile::data(const GgufTensorInfo& tensor) const noexcept {
  return file_->bytes().subspan(data_start_ + tensor.offset, tensor.bytes);
}

}  // namespace bitnet
