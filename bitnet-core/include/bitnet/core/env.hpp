#pragma once
// The environment variables the libraries know, each read in one place (src/env.cpp). docs/environment.md
// lists them with their meaning. Thread-safe as long as nobody changes the environment (setenv) meanwhile.
#include <optional>
#include <span>
#include <string>

namespace bitnet {

/// A variable that is read somewhere in the workspace.
struct EnvVariable {
  const char* name;
  const char* meaning;  ///< one line for docs and `--help`
};

/// Every variable, for documentation and for a test that compares it with docs/environment.md.
std::span<const EnvVariable> env_variables() noexcept;

/// Value of a listed variable; empty when unset or "". Throws Error(kInternal) for one that is not listed.
std::optional<std::string> env(const char* name);

}  // namespace bitnet
