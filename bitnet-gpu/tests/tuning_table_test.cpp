// Tables of tile and work-group sizes without a device: what is read and refused, whose row holds, what fits,
// which candidate is chosen.
#include "tuning_table.hpp"

#include <gtest/gtest.h>

#include <cstdlib>
#include <optional>

#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/core/log.hpp"
#include "bitnet/core/rng.hpp"
#include "bitnet/gpu/tuning.hpp"
#include "bitnet/testing/testing.hpp"
#include "tune_choice.hpp"

namespace bitnet::gpu {
namespace {

using ::testing::HasSubstr;

constexpr const char* kHead = "format: bitnet-opencl-tuning-1\ndevices:\n";

/// A row of a device with one value.
std::string row(const std::string& device, int rows) {
  return "  - device: \"" + device +
         "\"\n    wide: {ternary_matmul: {many: {BN_ROWS: " + std::to_string(rows) + "}}}\n";
}

Options with_table(const std::filesystem::path& file) {
  Options options;
  options.tuning_file = file;
  return options;
}

int rows_of(const Tuning& t) { return t.value("ternary_matmul", "many", "BN_ROWS", -1); }

TEST(TuningTable, TheShippedOneSaysEverythingInItsDefaultRow) {
  const TuningTable& table = shipped_tuning();
  ASSERT_FALSE(table.rows.empty());
  ASSERT_EQ(table.rows[0].device, "default");
  for (std::size_t i = 0; i < tunables().size(); ++i) {
    const Tunable& t = tunables()[i];
    EXPECT_NE(table.rows[0].values[i], 0) << t.program << " " << t.rows << " " << t.macro;
    for (const int value : t.candidates) EXPECT_TRUE(is_value(t, value)) << t.macro << " " << value;
    EXPECT_GT(t.candidates.size(), 1u);
  }
}

/// A tunable that no kernel has would be measured in vain.
TEST(TuningTable, EveryTunableIsOneOfItsKernel) {
  for (const Tunable& t : tunables()) {
    const std::string source =
        read_file(testing::source_path("bitnet-gpu/kernels/" + std::string(t.program) + ".cl"));
    EXPECT_THAT(source, HasSubstr("#ifndef " + std::string(t.macro) + "\n")) << t.program;
  }
}

TEST(TuningTable, IsReadAsItIsWritten) {
  TuningTable table = shipped_tuning();
  table.rows.push_back({"a \"b\" \\c\n*", "3.1", "model.gguf", TunableValues(tunables().size(), 0), {}});
  table.rows.back().values[0] = 3;
  table.rows.back().values.back() = 16;
  table.rows.back().record = true;
  const TuningTable again = parse_tuning(to_yaml(table), "again");
  ASSERT_EQ(again.rows.size(), table.rows.size());
  for (std::size_t i = 0; i < table.rows.size(); ++i) {
    EXPECT_EQ(again.rows[i].device, table.rows[i].device);
    EXPECT_EQ(again.rows[i].driver, table.rows[i].driver);
    EXPECT_EQ(again.rows[i].model, table.rows[i].model);
    EXPECT_EQ(again.rows[i].values, table.rows[i].values);
    EXPECT_EQ(again.rows[i].record, table.rows[i].record);
  }
  EXPECT_TRUE(parse_tuning(to_yaml({}), "empty").rows.empty());
}

TEST(TuningTable, MistakesNameFileAndLine) {
  const auto refuses = [](const std::string& text, const std::string& why) {
    BITNET_EXPECT_ERROR(parse_tuning(text, "t.yaml"), ErrorCode::kInvalidArgument, why);
  };
  refuses("", "t.yaml:1: expected 'format: bitnet-opencl-tuning-1'");
  refuses("devices: []\n", "t.yaml:1: expected 'format: bitnet-opencl-tuning-1'");
  refuses("devices: []\nformat: bitnet-opencl-tuning-9\n",
          "t.yaml:2: 'format': expected 'bitnet-opencl-tuning-1'");
  refuses("- a\n", "t.yaml:1: the table must be a mapping");
  refuses("model:\n  path: x\n", "t.yaml:1: unknown key 'model' in the table");
  refuses(std::string(kHead) + "---\na: b\n", "a second document");
  refuses(", a", "t.yaml:1: ");
  refuses("format: [\n", "t.yaml:");
  refuses(std::string(5000, '['), "too deep");
  refuses("format: bitnet-opencl-tuning-1\ndevices: 3\n", "t.yaml:2: 'devices': expected a list");
  const auto refuses_row = [&](const std::string& devices, const std::string& why) {
    refuses(kHead + devices, why);
  };
  refuses_row("  - 3\n", "t.yaml:3: an entry of 'devices' must be a mapping");
  refuses_row("  - driver: x\n", "t.yaml:3: an entry of 'devices' needs the key 'device'");
  refuses_row("  - device: [a]\n", "t.yaml:3: 'device': expected a text");
  refuses_row("  - device: a\n    wdie: {}\n",
              "t.yaml:4: unknown key 'wdie' in an entry of 'devices', did you mean 'wide'?");
  refuses_row("  - device: a\n  - device: a\n", "t.yaml:4: the device 'a' is given twice");
  refuses_row("  - device: a\n    device: b\n", "t.yaml:4: 'device': is given twice");
  refuses_row("  - device: a\n    wide: {attention: {}}\n", "t.yaml:4: unknown key 'attention' in 'wide'");
  refuses_row("  - device: a\n    wide:\n      ternary_matmul: {one: {}}\n",
              "t.yaml:5: unknown key 'one' in 'ternary_matmul' (there are many)");
  refuses_row("  - device: a\n    wide:\n      ternary_matmul:\n        many: {BN_SPLIT: 2}\n",
              "t.yaml:6: unknown key 'BN_SPLIT' in 'many' of 'ternary_matmul' (there are BN_ROWS)");
  for (const char* value : {"1", "perhaps", "[true]", "{}"})
    refuses_row("  - device: a\n    record: " + std::string(value) + "\n",
                "t.yaml:4: 'record': expected true or false");
  for (const char* value : {"0", "17", "-1", "two", "2.5", "[2]", "99999999999"})
    refuses_row("  - device: a\n    wide:\n      ternary_matmul:\n        many: {BN_ROWS: " +
                    std::string(value) + "}\n",
                "t.yaml:6: 'BN_ROWS': expected a whole number from 1 to 16");
  refuses_row("  - device: a\n    groups: {normalize_quantize: {any: {BN_QUANT_WG: 48}}}\n",
              "expected a power of two from 16 to 1024");
  refuses_row("  - device: a\n    groups: {int8_matmul: {one: {BN_OUT_WG: 40}}}\n",
              "expected a multiple of 16");
}

/// Whatever becomes of a table on its way: it is read, or refused with its file and a line.
// As large as a table may be: each name once, and then the last one again.
TEST(TuningTable, ManyNamesAreReadInTimeAndTheSecondOfOneIsFound) {
  std::string text = "format: bitnet-opencl-tuning-1\ndevices:\n";
  constexpr int kDevices = 40'000;
  for (int i = 0; i < kDevices; ++i) text += "  - device: d" + std::to_string(i) + "\n";
  EXPECT_EQ(parse_tuning(text, "t.yaml").rows.size(), std::size_t{kDevices});
  const std::string last = "d" + std::to_string(kDevices - 1);
  BITNET_EXPECT_ERROR(parse_tuning(text + "  - device: " + last + "\n", "t.yaml"),
                      ErrorCode::kInvalidArgument, "the device '" + last + "' is given twice");
}

TEST(TuningTable, DamagedCopiesAreReadOrRefused) {
  const std::string whole = read_file(testing::source_path("bitnet-gpu/tuning/opencl.yaml"));
  Rng rng(11);
  int refused = 0;
  constexpr int kCopies = 1500;
  for (int i = 0; i < kCopies; ++i) {
    std::string copy = whole;
    for (std::uint64_t n = 1 + rng.below(3); n > 0 && !copy.empty(); --n) {
      const std::size_t at = rng.below(copy.size());
      switch (rng.below(4)) {
        case 0:
          copy[at] = static_cast<char>(rng.below(256));
          break;
        case 1:
          copy.erase(at, 1 + rng.below(20));
          break;
        case 2:
          copy.insert(at, copy.substr(rng.below(copy.size()), rng.below(60)));
          break;
        default:
          copy.resize(at + 1);
      }
    }
    try {
      static_cast<void>(parse_tuning(copy, "copy.yaml"));
    } catch (const Error& e) {
      ++refused;
      EXPECT_EQ(e.code(), ErrorCode::kInvalidArgument) << e.what();
      EXPECT_THAT(e.what(), ::testing::MatchesRegex("copy.yaml:[0-9]+: (.|\n)*")) << copy;
    }
  }
  EXPECT_GT(refused, kCopies / 4);
  EXPECT_LT(refused, kCopies);
}

TEST(Tuning, WhetherLaunchesAreRecordedIsSaidByTheFirstRowThatSaysIt) {
  const testing::TempDir dir;
  const auto records = [&](const std::string& device, const std::string& rows) {
    write_file(dir / "t.yaml", kHead + rows);
    return tuning_of(device, 1024, KernelForm::kWide, with_table(dir / "t.yaml")).records();
  };
  EXPECT_TRUE(records("A GPU", row("B", 4)));
  EXPECT_FALSE(records("pthread-anything", row("B", 4)));  // the shipped table's
  EXPECT_FALSE(records("pthread-anything", row("pthread-anything", 4)));
  EXPECT_TRUE(records("pthread-anything", row("pthread-anything", 4) + "    record: true\n"));
  EXPECT_FALSE(records("A GPU", row("A *", 4) + "    record: false\n"));
  EXPECT_FALSE(records("A GPU", "  - device: default\n    record: false\n"));
  EXPECT_TRUE(
      records("A GPU", "  - device: default\n    record: false\n  - device: A GPU\n    record: true\n"));
  for (const TuningRow& shipped : shipped_tuning().rows)
    if (shipped.device.starts_with("pthread")) {
      EXPECT_EQ(shipped.record, false) << shipped.device;
    }
}

TEST(Tuning, TheNearestRowHolds) {
  const testing::TempDir dir;
  write_file(dir / "t.yaml", kHead + row("Some*", 5) + row("Some GPU*", 6) + row("Some GPU 2", 7));
  const Options options = with_table(dir / "t.yaml");
  const auto of = [&](const std::string& name) { return tuning_of(name, 1024, KernelForm::kWide, options); };
  EXPECT_EQ(rows_of(of("Some GPU 2")), 7);
  EXPECT_EQ(rows_of(of("Some GPU 20")), 6);
  EXPECT_EQ(rows_of(of("Somewhere")), 5);
  EXPECT_EQ(rows_of(of("Other")), 8);
  EXPECT_EQ(of("Other").origin(), "default");
  EXPECT_EQ(of("Somewhere").origin(), "Some* of " + (dir / "t.yaml").string());
  // What a row does not say is the default's.
  EXPECT_EQ(of("Some GPU 2").value("int8_matmul", "many", "BN_ROWS", -1), 8);
  write_file(dir / "t.yaml", kHead + row("default", 3) + row("Some*", 5));
  EXPECT_EQ(rows_of(of("Other")), 3);
  EXPECT_EQ(rows_of(of("Some")), 5);
}

TEST(Tuning, FitsTheDeviceAndLeavesWhatBuildOptionsDefine) {
  Options options = with_table("");
  const auto of = [&](std::size_t most) { return tuning_of("x", most, KernelForm::kGroups, options); };
  EXPECT_EQ(of(1024).options("ternary_matmul", "one"), "-DBN_OUT_WG=64 -DBN_SPLIT=4");
  EXPECT_EQ(of(128).options("ternary_matmul", "one"), "-DBN_OUT_WG=64 -DBN_SPLIT=2");
  EXPECT_EQ(of(40).options("ternary_matmul", "one"), "-DBN_OUT_WG=32 -DBN_SPLIT=1");
  EXPECT_EQ(of(40).options("normalize_quantize", "any"), "-DBN_QUANT_WG=32");
  EXPECT_EQ(of(8).options("dense_matmul", "many"), "-DBN_DENSE_WG=8 -DBN_ROWS=8");
  EXPECT_EQ(of(1024).options("rows", "any"), "");
  options.build_options = "-w -DBN_OUT_WG=16 -D BN_QUANT_WG=32 -DBN_DENSE_WG_NOT=1";
  EXPECT_EQ(of(1024).options("ternary_matmul", "one"), "-DBN_SPLIT=4");
  EXPECT_EQ(of(1024).options("normalize_quantize", "any"), "");
  EXPECT_EQ(of(1024).options("dense_matmul", "one"), "-DBN_DENSE_WG=16");
}

/// Sets a variable for the time of a test.
class Variable {
 public:
  Variable(const char* name, const std::string& value) : name_(name) {
    if (const char* before = std::getenv(name)) before_ = before;
    setenv(name, value.c_str(), 1);
  }
  ~Variable() {
    if (before_) {
      setenv(name_, before_->c_str(), 1);
    } else {
      unsetenv(name_);
    }
  }
  Variable(const Variable&) = delete;
  Variable& operator=(const Variable&) = delete;

 private:
  const char* name_;
  std::optional<std::string> before_;
};

/// What the library warns of meanwhile.
class Warnings {
 public:
  Warnings() {
    set_log_sink([this](LogLevel, std::string_view line) { all.emplace_back(line); });
  }
  ~Warnings() { set_log_sink({}); }
  Warnings(const Warnings&) = delete;
  Warnings& operator=(const Warnings&) = delete;
  std::vector<std::string> all;
};

TEST(Tuning, FoundTablesAreReadOrPassedOverAndNamedOnesAreReadOrErrors) {
  const testing::TempDir dir;
  const Variable data("XDG_DATA_HOME", dir.path().string());
  const std::filesystem::path found = dir / "bitnet/opencl-tuning.yaml";
  EXPECT_EQ(user_tuning_file(), found);
  Warnings warnings;
  const auto here = [] { return tuning_of("Here", 1024, KernelForm::kWide, {}); };
  EXPECT_EQ(here().origin(), "default");  // there is none
  std::filesystem::create_directories(dir / "bitnet");
  write_file(found, kHead + row("Here", 2));
  EXPECT_EQ(rows_of(here()), 2);
  EXPECT_TRUE(warnings.all.empty());
  write_file(found, kHead + row("Here", 99));
  EXPECT_EQ(here().origin(), "default");
  EXPECT_EQ(rows_of(here()), 8);
  ASSERT_EQ(warnings.all.size(), 2u);
  EXPECT_THAT(warnings.all[0], HasSubstr(found.string() + ":4: 'BN_ROWS': expected"));
  {
    const Variable named("BITNET_OPENCL_TUNING", found.string());
    BITNET_EXPECT_ERROR(here(), ErrorCode::kInvalidArgument, found.string() + ":4: 'BN_ROWS'");
    const Variable missing("BITNET_OPENCL_TUNING", (dir / "none.yaml").string());
    BITNET_EXPECT_ERROR(here(), ErrorCode::kNotFound, "none.yaml");
  }
  BITNET_EXPECT_ERROR(tuning_of("Here", 1024, KernelForm::kWide, with_table(found)),
                      ErrorCode::kInvalidArgument, ":4: ");
  EXPECT_EQ(tuning_of("Here", 1024, KernelForm::kWide, with_table("")).origin(), "default");
  BITNET_EXPECT_ERROR(check_tuning_file(found), ErrorCode::kInvalidArgument, ":4: ");
}

TEST(Tuning, SavedRowsReplaceTheirDevicesAndLeaveOthers) {
  const testing::TempDir dir;
  const auto file = dir / "t.yaml";
  BITNET_EXPECT_ERROR(check_tuning_file(dir / "none/t.yaml"), ErrorCode::kIo, "none");
  EXPECT_FALSE(std::filesystem::exists(dir / "none"));
  const auto save = [&](const std::string& devices) {
    TuneResult result;
    result.yaml = kHead + devices;
    save_tuning(result, file);
  };
  save(row("A", 2));
  save(row("B", 3));
  save("  - device: A\n    groups: {int8_matmul: {one: {BN_OUT_WG: 32}}}\n");
  save(row("B", 6));
  const TuningTable table = parse_tuning(read_file(file), "saved");
  ASSERT_EQ(table.rows.size(), 2u);
  const Options options = with_table(file);
  EXPECT_EQ(rows_of(tuning_of("A", 1024, KernelForm::kWide, options)), 2);
  EXPECT_EQ(tuning_of("A", 1024, KernelForm::kGroups, options).options("int8_matmul", "one"),
            "-DBN_OUT_WG=32");
  EXPECT_EQ(rows_of(tuning_of("B", 1024, KernelForm::kWide, options)), 6);
  write_file(file, "devices: 3\n");
  BITNET_EXPECT_ERROR(save(row("A", 2)), ErrorCode::kInvalidArgument, file.string() + ":1: ");
  EXPECT_EQ(read_file(file), "devices: 3\n");
}

TuneCandidate candidate(std::vector<double> seconds, bool unequal = false, bool refused = false) {
  TuneCandidate c;
  c.seconds = std::move(seconds);
  c.unequal = unequal;
  c.refused = refused;
  return c;
}

TEST(TuneChoice, TakesTheFastestThatIsRight) {
  const std::vector<TuneCandidate> all{candidate({1, 10}), candidate({0.1, 1}, true),
                                       candidate({}, false, true), candidate({0.8, 8}), candidate({0.9, 7})};
  EXPECT_EQ(best_of(all), 4u);  // 1 / 0.9 + 10 / 7 is more than 2 / 0.8
  EXPECT_DOUBLE_EQ(gain_of(all, 3), 1.25);
  EXPECT_EQ(best_of(std::vector{candidate({1}), candidate({0.99})}), 0u);  // within the noise
  EXPECT_EQ(best_of(std::vector{candidate({1}), candidate({0.97})}), 1u);
  EXPECT_EQ(best_of(std::vector{candidate({1}, true), candidate({5})}), 1u);  // however slow
  EXPECT_EQ(best_of(std::vector{candidate({1}, true), candidate({5}, false, true)}), std::nullopt);
}

}  // namespace
}  // namespace bitnet::gpu
