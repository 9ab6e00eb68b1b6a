// `bitnet tune`: a table for a device, which the next run uses, and what is refused before anything is
// measured.
#include <cstdlib>

#include "bitnet/testing/opencl.hpp"
#include "cli_fixture.hpp"

namespace bitnet::cli {
namespace {

class TuneTest : public CliTest {
 protected:
  static bool has_opencl() { return call({"devices"}).out.find("\nopencl:0:0\t") != std::string::npos; }
  static Outcome tune(std::vector<std::string> more) {
    std::vector<std::string> arguments{"tune", "--device", "opencl:0:0", "-m", model(), "-r", "1"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return call(arguments);
  }
};

TEST_F(TuneTest, WritesATableThatTheNextRunUses) {
  BITNET_REQUIRE_OPENCL_DEVICE(has_opencl());
  const std::string table = file("mine.yaml");
  const auto o = tune({"-o", table});
  ASSERT_EQ(o.code, kOk) << o.err;
  EXPECT_THAT(o.out, HasSubstr("ternary_matmul, many rows: BN_"));
  EXPECT_THAT(o.err, HasSubstr("written: " + table));
  EXPECT_THAT(o.err, HasSubstr("BITNET_OPENCL_TUNING"));
  EXPECT_THAT(read_file(table), HasSubstr("model: \"tiny.gguf\""));
  const std::vector<std::string> arguments{"run", "-m",     model(), "-p", "hello",    "-n",
                                           "6",   "--seed", "1",     "-v", "--device", "opencl:0:0"};
  const auto before = call(arguments);
  ASSERT_EQ(setenv("BITNET_OPENCL_TUNING", table.c_str(), 1), 0);
  const auto after = call(arguments);
  write_file(table, "format: bitnet-opencl-tuning-1\ndevices:\n  - 3\n");
  const auto broken = call(arguments), again = tune({"-o", table});
  unsetenv("BITNET_OPENCL_TUNING");
  EXPECT_EQ(after.out, before.out);
  EXPECT_THAT(before.err, HasSubstr("; sizes of work-groups: "));
  EXPECT_THAT(before.err, Not(HasSubstr(table)));
  EXPECT_THAT(after.err, HasSubstr(" of " + table));
  EXPECT_FAILS(broken, kFailure, table + ":3: an entry of 'devices' must be a mapping");
  EXPECT_FAILS(again, kFailure, table + ":3: ");  // what is there is not replaced
}

TEST_F(TuneTest, WritesToStandardOutput) {
  BITNET_REQUIRE_OPENCL_DEVICE(has_opencl());
  const auto o = tune({"-o", "-"});
  ASSERT_EQ(o.code, kOk) << o.err;
  EXPECT_THAT(o.out, ::testing::StartsWith("format: bitnet-opencl-tuning-1\ndevices:\n  - device: "));
  EXPECT_THAT(o.err, HasSubstr("ternary_matmul"));
}

TEST_F(TuneTest, WrongInputsAreErrors) {
#ifdef BITNET_WITH_GPU
  EXPECT_FAILS(call({"tune"}), kUsage, "missing option --device");
  EXPECT_FAILS(call({"tune", "--device", "cpu"}), kUsage,
               "--device: expected one OpenCL device, as opencl:0:0");
  EXPECT_FAILS(call({"tune", "--device", "auto"}), kUsage, "got 'auto'");
  EXPECT_FAILS(call({"tune", "--device", "opencl:0:0,opencl:0:1"}), kUsage, "expected one OpenCL device");
  EXPECT_FAILS(call({"tune", "--device", "opencl:77:0", "-o", file("t.yaml")}), kFailure,
               "there is no OpenCL device 'opencl:77:0'");
  EXPECT_FAILS(tune({"-r", "0"}), kUsage, "--rounds: expected a whole number from 1 to 1000");
  EXPECT_FAILS(call({"tune", "--device", "opencl:0:0", "-m", file("none.gguf")}), kFailure, "none.gguf");
  EXPECT_FAILS(tune({"-o", model()}), kFailure, "the table would replace the model");
  // Before the device is looked for, and so before anything is measured; no folder is made.
  EXPECT_FAILS(call({"tune", "--device", "opencl:77:0", "-o", file("none/t.yaml")}), kFailure, "none/t.yaml");
  EXPECT_FALSE(std::filesystem::exists(file("none")));
  EXPECT_FAILS(tune({"-o", file("t.yaml", "a: b\n")}), kFailure, "t.yaml:1: unknown key 'a' in the table");
  EXPECT_FALSE(std::filesystem::exists(file("none/t.yaml")));
#else
  EXPECT_FAILS(call({"tune", "--device", "opencl:0:0"}), kFailure, "no GPU support");
#endif
}

#ifdef BITNET_WITH_GPU
// The shapes that are measured without -m are written down in commands/tune.cpp.
TEST_F(TuneTest, WithoutAModelTheShapesAreTheShippedOnes) {
  const auto shapes = [&](std::vector<std::string> more) {
    std::vector<std::string> arguments{"tune", "--device", "opencl:77:0", "-v", "-o", "-"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const std::string said = call(arguments).err;
    return said.substr(0, said.find('\n'));
  };
  const std::string own = shapes({});
  EXPECT_THAT(own, ::testing::StartsWith("shapes: 512 x 512 (12 times)"));
  EXPECT_EQ(own, shapes({"-m", testing::source_path("models/bitnet-demo-i2_s.gguf").string()}));
}
#endif

}  // namespace
}  // namespace bitnet::cli
