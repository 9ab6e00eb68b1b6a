#pragma once
// Files and directories that are written aside, under STEM.PID.SERIAL.partial, and renamed when they are
// whole: their names, and what becomes of those whose writer was killed. A writer holds a lock on what it
// writes, which ends with its process in whatever way that ends; process ids would not tell, as containers
// share directories but no ids. Thread-safe.
#include <filesystem>
#include <string_view>

namespace bitnet {

/// Whether a file name (no directories in it) is one of what is written aside.
bool is_written_aside(std::string_view name) noexcept;

/// Holds an open file or directory as being written, until `fd` is closed. False where it is being removed by
/// remove_abandoned(), or was: it must be made again under another name. True without a lock on file systems
/// that have none; nothing is removed there.
bool hold_written_aside(int fd) noexcept;

/// Removes what writers of `directory`/`stem` left that do not live any more. What cannot be looked at or
/// removed stays, without an error.
void remove_abandoned(const std::filesystem::path& directory, std::string_view stem) noexcept;

}  // namespace bitnet
