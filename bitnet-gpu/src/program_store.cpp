// The files: "BNPROG1\n", three numbers (bytes of the key, bytes of the binary, hash of both), the key, the
// binary. Numbers are u64, little-endian, as the devices are.
#include "program_store.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <span>
#include <system_error>

#include "bitnet/core/env.hpp"
#include "bitnet/core/error.hpp"
#include "bitnet/core/io/atomic_file.hpp"

namespace bitnet::gpu {
namespace {

constexpr std::string_view kMagic = "BNPROG1\n";
constexpr std::uint64_t kMostOfAFile = std::uint64_t{1} << 28;  // no program is nearly as large

struct Sizes {
  std::uint64_t key, binary, hash;
};

/// FNV-1a, 64 bits: against accidents, not against malice, since who can write here can write anywhere.
std::uint64_t hash(std::string_view bytes, std::uint64_t h = 0xcbf29ce484222325u) noexcept {
  for (const char c : bytes) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return h;
}

/// A file of a key, or one on its way to become that.
bool is_ours(const std::filesystem::path& path) {
  const std::string name = path.filename().string();
  return name.find_first_not_of("0123456789abcdef") == 32 && name.compare(32, 4, ".bin") == 0;
}

std::string_view text_of(const ProgramStore::Binary& binary) {
  return {reinterpret_cast<const char*>(binary.data()), binary.size()};
}

}  // namespace

std::filesystem::path default_program_folder() {
  if (const auto cache = env("XDG_CACHE_HOME")) return std::filesystem::path(*cache) / "bitnet" / "opencl";
  if (const auto home = env("HOME")) return std::filesystem::path(*home) / ".cache" / "bitnet" / "opencl";
  return {};
}

std::filesystem::path ProgramStore::path_of(std::string_view key) const {
  // Two hashes, so that a name stands for one key; what is in the file decides.
  return folder_ / fmt::format("{:016x}{:016x}.bin", hash(key), hash(key, 0x9ae16a3b2f90404fu));
}

std::optional<ProgramStore::Binary> ProgramStore::load(std::string_view key) const {
  if (folder_.empty()) return std::nullopt;
  std::string file;
  try {
    file = read_file(path_of(key), kMostOfAFile);
  } catch (const Error&) {
    return std::nullopt;
  }
  Sizes sizes{};
  constexpr std::size_t kHead = kMagic.size() + sizeof sizes;
  if (file.size() < kHead || !file.starts_with(kMagic)) return std::nullopt;
  std::memcpy(&sizes, file.data() + kMagic.size(), sizeof sizes);
  const std::string_view rest = std::string_view(file).substr(kHead);
  if (sizes.key != key.size() || sizes.binary == 0 || sizes.binary > rest.size() ||
      rest.size() - sizes.binary != sizes.key || !rest.starts_with(key) || hash(rest) != sizes.hash)
    return std::nullopt;
  std::error_code ignored;
  std::filesystem::last_write_time(path_of(key), std::filesystem::file_time_type::clock::now(), ignored);
  const std::string_view binary = rest.substr(key.size());
  return Binary(binary.begin(), binary.end());
}

void ProgramStore::store(std::string_view key, const Binary& binary) const {
  if (folder_.empty() || binary.empty()) return;
  try {
    std::error_code ignored;
    std::filesystem::create_directories(folder_, ignored);
    const Sizes sizes{key.size(), binary.size(), hash(text_of(binary), hash(key))};
    AtomicFile file(path_of(key));
    file.write(kMagic);
    file.write(std::as_bytes(std::span<const Sizes>(&sizes, 1)));
    file.write(key);
    file.write(text_of(binary));
    file.commit();
    forget_oldest(path_of(key));
  } catch (const Error&) {  // a folder that cannot be written costs time, nothing else
  }
}

void ProgramStore::forget_oldest(const std::filesystem::path& but) const {
  struct File {
    std::filesystem::file_time_type used;
    std::filesystem::path path;
    std::uintmax_t bytes;
    bool operator<(const File& other) const { return used < other.used; }
  };
  std::vector<File> files;
  std::uintmax_t all = 0;
  std::error_code error;
  // What goes meanwhile by another process's hand has no size or no time.
  for (std::filesystem::directory_iterator at(folder_, error), end; !error && at != end;
       at.increment(error)) {
    if (!is_ours(at->path())) continue;
    std::error_code gone;
    const std::uintmax_t bytes = at->file_size(gone);
    if (gone) continue;
    const auto used = at->last_write_time(gone);
    if (gone) continue;
    all += bytes;
    if (at->path() != but) files.push_back({used, at->path(), bytes});
  }
  std::sort(files.begin(), files.end());
  for (const File& file : files) {
    if (all <= most_bytes_) return;
    std::filesystem::remove(file.path, error);
    all -= file.bytes;
  }
}

}  // namespace bitnet::gpu
