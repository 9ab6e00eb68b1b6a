#pragma once
// Helpers of every test: temporary directories, the optional folder of real files, expectations about Errors.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <optional>
#include <string>

#include "bitnet/core/error.hpp"

namespace bitnet::testing {

/// A fresh directory, removed with its contents.
class TempDir {
 public:
  TempDir();
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  const std::filesystem::path& path() const noexcept { return path_; }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

/// The folder that BITNET_TEST_DATA names: real files that are not part of the project.
std::optional<std::filesystem::path> test_data();

/// A path inside the source tree, e.g. source_path("tests/data/x.gguf").
std::filesystem::path source_path(const std::string& relative);

}  // namespace bitnet::testing

/// Skips the test when BITNET_TEST_DATA is unset; defines `data` as the folder otherwise.
#define BITNET_REQUIRE_TEST_DATA(data)                              \
  const auto data##_or_none = ::bitnet::testing::test_data();       \
  if (!data##_or_none) GTEST_SKIP() << "BITNET_TEST_DATA is unset"; \
  const std::filesystem::path data = *data##_or_none

/// Expects that `statement` throws bitnet::Error with `error_code` and a message that contains `text`.
#define BITNET_EXPECT_ERROR(statement, error_code, text)             \
  try {                                                              \
    statement;                                                       \
    ADD_FAILURE() << "expected an Error from " #statement;           \
  } catch (const ::bitnet::Error& e_) {                              \
    EXPECT_EQ(e_.code(), error_code) << e_.what();                   \
    EXPECT_THAT(std::string(e_.what()), ::testing::HasSubstr(text)); \
  }
