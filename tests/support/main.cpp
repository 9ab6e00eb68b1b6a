// main() of every test executable. Exit status 77 (skipped, for ctest) when the ISA that BITNET_ISA names is
// not supported here, or when every test that ran was skipped.
#include <unistd.h>

#include <cstdio>

#include "bitnet/core/isa.hpp"
#include "bitnet/testing/testing.hpp"

#ifndef BITNET_SOURCE_ROOT
#error "BITNET_SOURCE_ROOT is set by tests/support/CMakeLists.txt"
#endif

namespace bitnet::testing {

TempDir::TempDir() {
  std::string name = (std::filesystem::temp_directory_path() / "bitnet-test-XXXXXX").string();
  if (mkdtemp(name.data()) == nullptr) throw Error(ErrorCode::kIo, "mkdtemp failed for " + name);
  path_ = name;
}

TempDir::~TempDir() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::optional<std::filesystem::path> test_data() {
  const char* folder = std::getenv("BITNET_TEST_DATA");
  if (folder == nullptr || *folder == '\0') return std::nullopt;
  return std::filesystem::path(folder);
}

std::filesystem::path source_path(const std::string& relative) {
  return std::filesystem::path(BITNET_SOURCE_ROOT) / relative;
}

}  // namespace bitnet::testing

int main(int argc, char** argv) {
  ::testing::InitGoogleMock(&argc, argv);
  try {
    std::printf("isa: %s\n", std::string(bitnet::to_string(bitnet::default_isa())).c_str());
  } catch (const bitnet::Error& e) {
    std::printf("%s\n", e.what());
    return e.code() == bitnet::ErrorCode::kUnsupported ? 77 : 2;
  }
  const int failed = RUN_ALL_TESTS();
  const auto& all = *::testing::UnitTest::GetInstance();
  if (failed == 0 && all.skipped_test_count() > 0 && all.skipped_test_count() == all.test_to_run_count())
    return 77;
  return failed;
}
