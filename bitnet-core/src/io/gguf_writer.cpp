// GgufWriter: the index first, then the tensors' bytes, through an AtomicFile.
#include <fmt/format.h>

#include <cstring>
#include <limits>
#include <unordered_set>

#include "bitnet/core/error.hpp"
#include "io/gguf_types.hpp"

namespace bitnet {
namespace {

using namespace gguf;

[[noreturn]] void invalid(std::string message, SourceLocation where = SourceLocation::current()) {
  throw Error(ErrorCode::kInvalidArgument, std::move(message), where);
}

template <class T>
void put(std::string& out, T value) {
  char bytes[sizeof(T)];
  std::memcpy(bytes, &value, sizeof(T));
  out.append(bytes, sizeof(T));
}

void put_string(std::string& out, std::string_view text) {
  put(out, static_cast<std::uint64_t>(text.size()));
  out.append(text);
}

template <class T, class From>
void put_integer(std::string& out, From value) {
  if (!std::in_range<T>(value)) invalid(fmt::format("value {} does not fit its type", value));
  put(out, static_cast<T>(value));
}

/// One element of a value or an array; the alternative must be the one that the reader makes of `type`.
template <class V>
void put_scalar(std::string& out, std::int32_t type, const V& v) {
  if constexpr (std::is_same_v<V, std::string>) {
    if (type == kString) return put_string(out, v);
  } else if constexpr (std::is_same_v<V, bool>) {
    if (type == kBool) return put(out, static_cast<std::uint8_t>(v));
  } else if constexpr (std::is_same_v<V, double>) {
    if (type == kF32) return put(out, static_cast<float>(v));
    if (type == kF64) return put(out, v);
  } else if constexpr (std::is_same_v<V, std::uint64_t>) {
    if (type == kU8) return put_integer<std::uint8_t>(out, v);
    if (type == kU16) return put_integer<std::uint16_t>(out, v);
    if (type == kU32) return put_integer<std::uint32_t>(out, v);
    if (type == kU64) return put(out, v);
  } else {
    if (type == kI8) return put_integer<std::int8_t>(out, v);
    if (type == kI16) return put_integer<std::int16_t>(out, v);
    if (type == kI32) return put_integer<std::int32_t>(out, v);
    if (type == kI64) return put(out, v);
  }
  invalid(fmt::format("type id {} does not fit the value's kind", type));
}

void put_value(std::string& out, const GgufValue& value) {
  put(out, value.type);
  std::visit(
      [&](const auto& v) {
        using V = std::decay_t<decltype(v)>;
        if constexpr (std::is_same_v<V, GgufArray>) {
          if (value.type != kArray) invalid(fmt::format("type id {} does not fit an array", value.type));
          std::visit(
              [&](const auto& elements) {
                using E = typename std::decay_t<decltype(elements)>::value_type;
                put(out, value.element_type);
                put(out, static_cast<std::uint64_t>(elements.size()));
                for (const E& e : elements) put_scalar<E>(out, value.element_type, e);
              },
              v);
        } else {
          put_scalar<V>(out, value.type, v);
        }
      },
      value.data);
}

void place_tensors(std::vector<GgufTensorInfo>& tensors, std::uint64_t alignment) {
  std::unordered_set<std::string_view> names;
  std::uint64_t offset = 0;
  for (GgufTensorInfo& t : tensors) {
    if (t.name.empty() || !names.insert(t.name).second)
      invalid(fmt::format("expected tensor names that are distinct and not empty, got '{}'", t.name));
    if (t.dims.size() > kMaxDims)
      invalid(fmt::format("tensor '{}': expected at most {} dimensions, got {}", t.name, kMaxDims,
                          t.dims.size()));
    try {
      t.bytes = ggml_bytes(t.type, t.dims);
    } catch (const Error& e) {
      invalid(fmt::format("tensor '{}': {}", t.name, e.what()));
    }
    t.offset = offset;
    if (t.bytes > (std::uint64_t{1} << 62) - offset) invalid("the tensors exceed 2^62 bytes");
    offset += align_up(t.bytes, alignment);
  }
}

void pad(AtomicFile& out, std::uint64_t alignment) {
  out.write(std::string(align_up(out.size(), alignment) - out.size(), '\0'));
}

}  // namespace

GgufWriter::GgufWriter(const std::filesystem::path& path, const GgufMetadata& metadata,
                       std::vector<GgufTensorInfo> tensors)
    : out_(path), tensors_(std::move(tensors)) {
  with_context(fmt::format("writing GGUF file '{}'", path.string()), [&] {
    try {
      alignment_ = alignment_of(metadata);
    } catch (const Error& e) {
      invalid(e.what());
    }
    place_tensors(tensors_, alignment_);
    std::string head;
    put(head, kMagic);
    put(head, kVersion);
    put(head, static_cast<std::uint64_t>(tensors_.size()));
    put(head, static_cast<std::uint64_t>(metadata.entries().size()));
    for (const auto& [key, value] : metadata.entries()) {
      put_string(head, key);
      with_context(fmt::format("key '{}'", key), [&, &v = value] { put_value(head, v); });
    }
    for (const GgufTensorInfo& t : tensors_) {
      put_string(head, t.name);
      put(head, static_cast<std::uint32_t>(t.dims.size()));
      for (const std::int64_t dim : t.dims) put(head, dim);
      put(head, static_cast<std::int32_t>(t.type));
      put(head, t.offset);
    }
    out_.write(head);
    pad(out_, alignment_);
  });
}

void GgufWriter::write(std::string_view name, std::span<const std::byte> bytes) {
  if (next_ == tensors_.size()) invalid(fmt::format("tensor '{}' was not declared", name));
  const GgufTensorInfo& t = tensors_[next_];
  if (name != t.name || bytes.size() != t.bytes)
    invalid(
        fmt::format("expected tensor '{}' of {} bytes, got '{}' of {}", t.name, t.bytes, name, bytes.size()));
  out_.write(bytes);
  pad(out_, alignment_);  // the last tensor too: ggml reads the data section in whole units
  ++next_;
}

void GgufWriter::finish() {
  if (next_ != tensors_.size())
    invalid(fmt::format("tensor '{}' was declared but not written", tensors_[next_].name));
  out_.commit();
}

}  // namespace bitnet
