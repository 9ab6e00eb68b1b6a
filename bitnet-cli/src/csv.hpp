#pragma once
// Comma-separated values as in RFC 4180. What the columns mean is the business of batch_input.cpp and
// batch_records.cpp.
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace bitnet::cli {

/// One record. With `error` the record could not be split (its quoting is broken) and `fields` is empty.
struct CsvRow {
  std::size_t line = 0;  ///< where it begins, from 1
  std::vector<std::string> fields;
  std::string error;
};

/// Rows of a whole file: fields in double quotes may hold commas, line breaks and doubled quotes; lines end
/// with LF or CRLF; a byte order mark and empty lines are skipped. After a record with broken quoting reading
/// goes on at the line after the one where that record began.
std::vector<CsvRow> parse_csv(std::string_view text);

/// One line, quoted where needed, ending in LF.
std::string csv_line(const std::vector<std::string>& fields);

}  // namespace bitnet::cli
