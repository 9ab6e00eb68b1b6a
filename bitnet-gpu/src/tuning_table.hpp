#pragma once
// Tile and work-group sizes as data: which there are, tables of them by device (yaml), and what holds for one
// device. Who measures them is tune.cpp, who builds with them kernel_set.cpp.
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "bitnet/gpu/register.hpp"

namespace bitnet::gpu {

/// BN_WIDE of common.cl: each form has tunables of its own.
enum class KernelForm : std::uint8_t { kWide, kGroups };

/// What a value of a tunable must be, beside lying in a range.
enum class TunableRule : std::uint8_t { kAny, kPowerOfTwo, kMultipleOf16 };

/// A number that a program is built with.
struct Tunable {
  KernelForm form;
  std::string_view program;  ///< a file of kernels/, without ".cl"
  std::string_view rows;     ///< that it is launched for: "one", "many" or "any"
  std::string_view macro;    ///< of static storage; so are the others
  int low, high;             ///< inclusive
  TunableRule rule;
  std::span<const int> candidates;  ///< that tune() tries
};

/// The one list of them.
std::span<const Tunable> tunables() noexcept;
std::string_view to_string(KernelForm form) noexcept;  ///< "wide", "groups"
bool is_value(const Tunable& tunable, int value) noexcept;

/// Values of tunables(), in that order; 0: not said.
using TunableValues = std::vector<int>;

/// What a table says of a device.
struct TuningRow {
  std::string device;         ///< CL_DEVICE_NAME; its beginning where a * follows; or "default"
  std::string driver, model;  ///< what it was measured with, for people
  TunableValues values;
  std::optional<bool> record = {};  ///< whether launches are recorded, where the device can
};

struct TuningTable {
  std::vector<TuningRow> rows;
};

/// Reads a table. `name` begins messages: its file. Throws Error(kInvalidArgument) with name and line on text
/// that is no such table: another format, an unknown key, a value out of its range, a device given twice.
TuningTable parse_tuning(const std::string& text, const std::string& name);
/// Text that parse_tuning() reads.
std::string to_yaml(const TuningTable& table);

/// What the programs of one device are built with.
class Tuning {
 public:
  Tuning(KernelForm form, TunableValues values, bool records, std::string origin)
      : form_(form), values_(std::move(values)), records_(records), origin_(std::move(origin)) {}
  /// The macro's value, or `otherwise` where there is no such tunable.
  int value(std::string_view program, std::string_view rows, std::string_view macro, int otherwise) const;
  /// "-DBN_OUT_WG=64 -DBN_SPLIT=4" of a program for that many rows, perhaps empty.
  std::string options(std::string_view program, std::string_view rows) const;
  KernelForm form() const noexcept { return form_; }
  /// Of tunables(), those of this form.
  const TunableValues& values() const noexcept { return values_; }
  /// Whether launches that come again are recorded.
  bool records() const noexcept { return records_; }
  /// Whose values they are, for people: "default", "pthread-*", "pthread-* of /home/…/opencl-tuning.yaml".
  const std::string& origin() const noexcept { return origin_; }

 private:
  KernelForm form_;
  TunableValues values_;
  bool records_;
  std::string origin_;
};

/// Makes work-groups as small as a device needs them: `most` work-items of a group.
void fit(TunableValues& values, std::size_t most);

/// What holds for a device of CL_DEVICE_NAME `name`: the row of the user's table, or of the shipped one, for
/// it, the default row for what that does not say (and what no row of the user's says of recording, the
/// shipped table's do); within work-groups of `most` work-items, and without what Options::build_options
/// define. Throws what reading the table of Options::tuning_file or of BITNET_OPENCL_TUNING throws; one that
/// is merely found where `bitnet tune` leaves it is passed over with a warning.
Tuning tuning_of(std::string_view name, std::size_t most, KernelForm form, const Options& options);
/// The table in the library.
const TuningTable& shipped_tuning();
/// `row` over the shipped table's default row; without recording unless `row` says so, which would be
/// measured with the kernels.
Tuning tuning_with(const TuningRow& row, std::size_t most, KernelForm form, const Options& options);

}  // namespace bitnet::gpu
