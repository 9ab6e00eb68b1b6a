// SafeTensors and SafeTensorsWriter: one file, or shards behind an index, checked whole before anything is
// used.
#include "bitnet/core/io/safetensors.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <unordered_set>

#include "bitnet/core/error.hpp"
#include "io/json.hpp"

namespace bitnet {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

static_assert(std::endian::native == std::endian::little,
              "safetensors is read by copying little-endian values");

constexpr std::uint64_t kMaxHeader = 100'000'000;  // the reference implementation's limit
constexpr const char* kIndexName = "model.safetensors.index.json";

struct DTypeRow {
  SafeDType dtype;
  const char* name;
  std::size_t bytes;
};
constexpr DTypeRow kDTypes[] = {
    {SafeDType::kF64, "F64", 8},   {SafeDType::kF32, "F32", 4}, {SafeDType::kF16, "F16", 2},
    {SafeDType::kBF16, "BF16", 2}, {SafeDType::kI64, "I64", 8}, {SafeDType::kI32, "I32", 4},
    {SafeDType::kI16, "I16", 2},   {SafeDType::kI8, "I8", 1},   {SafeDType::kU8, "U8", 1},
    {SafeDType::kBool, "BOOL", 1},
};

[[noreturn]] void corrupt(std::string message, SourceLocation where = SourceLocation::current()) {
  throw Error(ErrorCode::kCorruptFile, std::move(message), where);
}

SafeDType dtype_of(std::string_view name) noexcept {
  for (const DTypeRow& row : kDTypes)
    if (name == row.name) return row.dtype;
  return SafeDType::kOther;
}

const json& member(const json& object, const char* key) {
  const auto at = object.find(key);
  if (at == object.end()) corrupt(fmt::format("expected the key '{}'", key));
  return *at;
}

std::uint64_t unsigned_of(const json& value, const char* what) {
  if (!value.is_number_unsigned() || value.get<std::uint64_t>() > (std::uint64_t{1} << 62))
    corrupt(fmt::format("{}: expected an integer from 0 to 2^62, got {}", what, value.dump().substr(0, 40)));
  return value.get<std::uint64_t>();
}

/// Elements × size of the shape, checked against 2^62.
std::uint64_t bytes_of_shape(std::span<const std::int64_t> shape, std::uint64_t element) {
  std::uint64_t bytes = element;
  for (const std::int64_t dim : shape) {
    if (dim != 0 && bytes > (std::uint64_t{1} << 62) / static_cast<std::uint64_t>(dim))
      corrupt("the product of the shape exceeds 2^62 bytes");
    bytes *= static_cast<std::uint64_t>(dim);
  }
  return bytes;
}

SafeTensorInfo parse_tensor(const std::string& name, const json& entry, std::uint64_t data_bytes) {
  if (!entry.is_object()) corrupt("expected an object with dtype, shape and data_offsets");
  SafeTensorInfo t;
  t.name = name;
  const json& dtype = member(entry, "dtype");
  if (!dtype.is_string()) corrupt("dtype: expected a string");
  t.dtype = dtype_of(dtype.get_ref<const std::string&>());
  const json& shape = member(entry, "shape");
  if (!shape.is_array()) corrupt("shape: expected an array");
  for (const json& dim : shape) t.shape.push_back(static_cast<std::int64_t>(unsigned_of(dim, "shape")));
  const json& offsets = member(entry, "data_offsets");
  if (!offsets.is_array() || offsets.size() != 2) corrupt("data_offsets: expected [begin, end]");
  t.begin = unsigned_of(offsets[0], "data_offsets");
  t.end = unsigned_of(offsets[1], "data_offsets");
  if (t.begin > t.end || t.end > data_bytes)
    corrupt(fmt::format("data_offsets: expected a range inside the {} bytes of data, got [{}, {}]",
                        data_bytes, t.begin, t.end));
  if (t.dtype != SafeDType::kOther) {
    const std::uint64_t expected = bytes_of_shape(t.shape, bytes_of(t.dtype));
    if (t.end - t.begin != expected)
      corrupt(fmt::format("dtype and shape need {} bytes, data_offsets give {}", expected, t.end - t.begin));
  }
  return t;
}

/// The tensors lie one after the other and fill the data section.
void check_extents(const std::vector<SafeTensorInfo>& tensors, std::uint64_t data_bytes) {
  std::vector<const SafeTensorInfo*> order;
  order.reserve(tensors.size());
  for (const SafeTensorInfo& t : tensors) order.push_back(&t);
  std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return a->begin != b->begin ? a->begin < b->begin : a->end < b->end;
  });
  std::uint64_t at = 0;
  for (const SafeTensorInfo* t : order) {
    if (t->begin != at)
      corrupt(fmt::format("tensor '{}': {} before it: expected data_offsets to begin at {}, got {}", t->name,
                          t->begin < at ? "an overlap" : "a gap", at, t->begin));
    at = t->end;
  }
  if (at != data_bytes)
    corrupt(fmt::format("expected the data to end after {} bytes, but the file has {}", at, data_bytes));
}

void parse_metadata(const json& entry, std::map<std::string, std::string>& metadata) {
  if (!entry.is_object()) corrupt("__metadata__: expected an object of strings");
  for (const auto& [key, value] : entry.items()) {
    if (!value.is_string()) corrupt(fmt::format("__metadata__: key '{}': expected a string", key));
    metadata.emplace(key, value.get<std::string>());
  }
}

struct Shard {
  std::shared_ptr<const MappedFile> file;
  std::uint64_t data_start = 0;
  std::vector<SafeTensorInfo> tensors;
};

Shard open_shard(const fs::path& path, std::map<std::string, std::string>& metadata) {
  return with_context(fmt::format("reading safetensors file '{}'", path.string()), [&] {
    Shard shard;
    shard.file = MappedFile::open(path);
    const auto bytes = shard.file->bytes();
    std::uint64_t header = 0;
    if (bytes.size() < sizeof(header))
      corrupt(fmt::format("at byte 0: expected the 8 bytes of the header's length, but the file has {}",
                          bytes.size()));
    std::memcpy(&header, bytes.data(), sizeof(header));
    if (header > kMaxHeader || header > bytes.size() - sizeof(header))
      corrupt(fmt::format("at byte 0: the header's length is {}, expected at most {}", header,
                          std::min<std::uint64_t>(kMaxHeader, bytes.size() - sizeof(header))));
    shard.data_start = sizeof(header) + header;
    const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + sizeof(header), header);
    const json root = with_context("header", [&] { return io::parse_json(text, 8); });
    if (!root.is_object()) corrupt("header: expected a JSON object");
    const std::uint64_t data_bytes = bytes.size() - shard.data_start;
    for (const auto& [name, entry] : root.items()) {
      if (name == "__metadata__") {
        parse_metadata(entry, metadata);
        continue;
      }
      shard.tensors.push_back(with_context(fmt::format("tensor '{}'", name), [&, &n = name, &e = entry] {
        return parse_tensor(n, e, data_bytes);
      }));
    }
    check_extents(shard.tensors, data_bytes);
    return shard;
  });
}

/// tensor name → shard file name
std::map<std::string, std::string> read_index(const fs::path& path) {
  return with_context(fmt::format("reading safetensors index '{}'", path.string()), [&] {
    const json root = io::parse_json(read_file(path, kMaxHeader), 8);
    if (!root.is_object() || !root.contains("weight_map") || !root["weight_map"].is_object())
      corrupt("expected an object 'weight_map'");
    std::map<std::string, std::string> map;
    for (const auto& [name, shard] : root["weight_map"].items()) {
      const std::string file = shard.is_string() ? shard.get<std::string>() : std::string();
      // An index may only name its neighbours, and no other index: so there are no cycles and no way out.
      if (!file.ends_with(".safetensors") || file.find_first_of(std::string("/\\\0", 3)) != std::string::npos)
        corrupt(fmt::format(
            "weight_map: tensor '{}': expected the name of a .safetensors file in the same directory, "
            "got {}",
            name, shard.dump().substr(0, 80)));
      map.emplace(name, file);
    }
    if (map.empty()) corrupt("weight_map: expected at least one tensor");
    return map;
  });
}

fs::path resolve(const fs::path& path) {
  std::error_code ignored;
  if (!fs::is_directory(path, ignored)) return path;
  for (const char* name : {kIndexName, "model.safetensors"})
    if (fs::exists(path / name, ignored)) return path / name;
  std::vector<fs::path> found;
  for (fs::directory_iterator it(path, ignored), end; !ignored && it != end; it.increment(ignored))
    if (it->path().extension() == ".safetensors") found.push_back(it->path());
  if (found.size() == 1) return found[0];
  throw Error(ErrorCode::kNotFound,
              fmt::format("'{}': expected {}, model.safetensors or one .safetensors file, found {}",
                          path.string(), kIndexName, found.size()));
}

}  // namespace

std::string_view to_string(SafeDType dtype) noexcept {
  for (const DTypeRow& row : kDTypes)
    if (row.dtype == dtype) return row.name;
  return "other";
}

std::size_t bytes_of(SafeDType dtype) noexcept {
  for (const DTypeRow& row : kDTypes)
    if (row.dtype == dtype) return row.bytes;
  return 0;
}

std::shared_ptr<const SafeTensors> SafeTensors::open(const fs::path& path) {
  const fs::path file = resolve(path);
  std::shared_ptr<SafeTensors> out(new SafeTensors);
  const auto add = [&](Shard shard) {
    for (SafeTensorInfo& t : shard.tensors) {
      t.shard = out->shards_.size();
      out->tensors_.push_back(std::move(t));
    }
    out->shards_.push_back(std::move(shard.file));
    out->data_starts_.push_back(shard.data_start);
  };
  if (file.extension() != ".json") {
    add(open_shard(file, out->metadata_));
  } else {
    const auto map = read_index(file);
    std::map<std::string, std::size_t> shards;
    for (const auto& [name, shard] : map) {
      if (!shards.emplace(shard, shards.size()).second) continue;
      add(open_shard(file.parent_path() / shard, out->metadata_));
    }
    const auto context = fmt::format("reading safetensors index '{}'", file.string());
    with_context(context, [&] {
      for (const SafeTensorInfo& t : out->tensors_) {
        const auto entry = map.find(t.name);
        if (entry == map.end() || shards.at(entry->second) != t.shard)
          corrupt(fmt::format("tensor '{}' is in '{}', but the index says {}", t.name,
                              out->shards_[t.shard]->path().filename().string(),
                              entry == map.end() ? "nothing" : "'" + entry->second + "'"));
      }
      // Each tensor found is in the map, at its shard, and names in a shard are distinct: equal counts mean
      // all.
      if (out->tensors_.size() == map.size()) return;
      std::unordered_set<std::string_view> found;
      for (const SafeTensorInfo& t : out->tensors_) found.insert(t.name);
      for (const auto& [name, shard] : map)
        if (!found.contains(name)) corrupt(fmt::format("tensor '{}' is not in '{}'", name, shard));
    });
  }
  std::sort(out->tensors_.begin(), out->tensors_.end(),
            [](const auto& a, const auto& b) { return a.name < b.name; });
  return out;
}

const SafeTensorInfo* SafeTensors::find(std::string_view name) const noexcept {
  const auto at = std::lower_bound(tensors_.begin(), tensors_.end(), name,
                                   [](const SafeTensorInfo& t, std::string_view n) { return t.name < n; });
  return at != tensors_.end() && at->name == name ? &*at : nullptr;
}

std::span<const std::byte> SafeTensors::data(const SafeTensorInfo& tensor) const noexcept {
  return shards_[tensor.shard]->bytes().subspan(data_starts_[tensor.shard] + tensor.begin,
                                                tensor.end - tensor.begin);
}

std::vector<fs::path> SafeTensors::files() const {
  std::vector<fs::path> out;
  for (const auto& shard : shards_) out.push_back(shard->path());
  return out;
}

SafeTensorsWriter::SafeTensorsWriter(const fs::path& path, std::vector<SafeTensorInfo> tensors,
                                     const std::map<std::string, std::string>& metadata)
    : out_(path), tensors_(std::move(tensors)) {
  const auto invalid = [&](std::string_view message) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("writing safetensors file '{}': {}", path.string(), message));
  };
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::unordered_set<std::string_view> names;
  std::uint64_t at = 0;
  for (SafeTensorInfo& t : tensors_) {
    if (t.name == "__metadata__" || !names.insert(t.name).second)
      invalid(fmt::format("expected distinct tensor names, got '{}' twice", t.name));
    if (t.dtype == SafeDType::kOther)
      invalid(fmt::format("tensor '{}': expected a dtype that has a name", t.name));
    for (const std::int64_t dim : t.shape)
      if (dim < 0)
        invalid(fmt::format("tensor '{}': expected dimensions of at least 0, got {}", t.name, dim));
    std::uint64_t bytes = 0;
    try {
      bytes = bytes_of_shape(t.shape, bytes_of(t.dtype));
    } catch (const Error& e) {
      invalid(fmt::format("tensor '{}': {}", t.name, e.what()));
    }
    if (bytes > (std::uint64_t{1} << 62) - at) invalid("the tensors exceed 2^62 bytes");
    t.begin = at;
    t.end = at += bytes;
    t.shard = 0;
    header[t.name] = {{"dtype", to_string(t.dtype)}, {"shape", t.shape}, {"data_offsets", {t.begin, t.end}}};
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const json::exception& e) {
    invalid(e.what());  // a name that is no UTF-8
  }
  text.append((8 - text.size() % 8) % 8, ' ');  // the data begin aligned
  const auto length = static_cast<std::uint64_t>(text.size());
  out_.write(std::as_bytes(std::span(&length, 1)));
  out_.write(text);
}

void SafeTensorsWriter::write(std::string_view name, std::span<const std::byte> bytes) {
  if (next_ == tensors_.size())
    throw Error(ErrorCode::kInvalidArgument, fmt::format("tensor '{}' was not declared", name));
  const SafeTensorInfo& t = tensors_[next_];
  if (name != t.name || bytes.size() != t.end - t.begin)
    throw Error(ErrorCode::kInvalidArgument, fmt::format("expected tensor '{}' of {} bytes, got '{}' of {}",
                                                         t.name, t.end - t.begin, name, bytes.size()));
  out_.write(bytes);
  ++next_;
}

void SafeTensorsWriter::finish() {
  if (next_ != tensors_.size())
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("tensor '{}' was declared but not written", tensors_[next_].name));
  out_.commit();
}

}  // namespace bitnet
