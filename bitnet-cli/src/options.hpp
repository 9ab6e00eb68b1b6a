#pragma once
// The one table of options: name, kind, range, default, environment variable and help of each, and the values
// that a command line, the environment, a yaml file and the defaults add up to. Parsing of command lines is
// command_line.cpp, of yaml files yaml_config.cpp.
#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bitnet/core/error.hpp"

namespace bitnet::cli {

enum class Kind : std::uint8_t {
  kFlag,
  kText,
  kList,  ///< text, may be given several times
  kInteger,
  kReal,
  kChoice,  ///< one of the words that `value` lists, separated by |
};

/// One row of the table. `key` is its name in yaml files and in batch items ("top_k"); empty: not allowed
/// there.
struct Option {
  std::string_view group;
  std::string_view name;
  char letter;  ///< 0: none
  Kind kind;
  std::string_view value;  ///< how help calls its value: "N", "FILE", "f16|f32"
  std::string_view help;
  std::string_view fallback;  ///< default, as text; empty: none
  std::string_view key;
  const char* env = nullptr;
  double low = -std::numeric_limits<double>::infinity();  ///< inclusive
  double high = std::numeric_limits<double>::infinity();  ///< inclusive
};

namespace opt {
extern const Option kModel, kQuantize, kHeadType, kLora, kDevice, kSubDevices, kDeviceOnly, kGpuLayers,
    kThreads, kIsa, kKvType;                                                                        // model
extern const Option kPrompt, kFile, kSystem, kChatTemplate, kSpecial, kEcho, kCtxSize, kBatchSize;  // input
extern const Option kProfile, kStatistics, kDevicePolicy, kMeasure, kMemoryLimit, kDeviceMemoryLimit;
extern const Option kMaxTokens, kTemperature, kTopK, kTopP, kMinP, kRepeatPenalty, kRepeatLastN, kSeed, kStop;
extern const Option kDraft, kDraftNgram;                             // sampling, not for items of a batch
extern const Option kInput, kOutput, kResume, kTruncate, kReplicas;  // batch
extern const Option kPplFile, kPplContext, kPplChunks, kPplLines, kTokenizeModel, kTokenizeFile, kIds, kNoBos,
    kDecode, kStats;
extern const Option kJson, kConvertType, kQuantizeType, kDenseType, kConvertDenseType, kMethod, kScaleForm,
    kTrainResume, kDryRun, kPlot;
extern const Option kScales, kPlan, kCalibrate, kCalibrationTokens, kThroughQuantised, kSaveCalibration,
    kCalibration, kForeignCalibration, kEvaluate, kWork, kQuantReport, kShardSize, kTuningAfter,
    kTuningText;  // quantize
extern const Option kOriginal, kTuningFile, kTuningTokens, kTuningSteps, kTuningRate, kTuningBatch,
    kTuningTemperature, kCrossEntropy, kTuningSeed, kTuningParts, kTuningType;  // tune
extern const Option kPlanMethod, kPlanScales, kBudgetSize, kBudgetPerplexity, kCandidates, kEstimate,
    kSensitivity;  // plan
extern const Option kCompareFile, kCompareContext, kCompareTokens;
extern const Option kSynthConfig, kSynthType, kSynthOutput, kSynthSeed, kSynthLayers;
extern const Option kBenchPrompt, kBenchGen, kBenchBatch, kBenchThreads, kBenchRepetitions, kBenchOutput;
extern const Option kTracking, kProfileOutput;
extern const Option kTuneDevice, kTuneModel, kTuneRounds, kTuneOutput;
extern const Option kConfig, kVerbose, kHelp;  // common
}  // namespace opt

/// A mistake in how the program was called: exit code 2.
class UsageError : public Error {
 public:
  explicit UsageError(std::string message) : Error(ErrorCode::kInvalidArgument, std::move(message)) {}
};

/// Where a value came from. The order is the precedence.
enum class Origin : std::uint8_t { kDefault, kYaml, kEnvironment, kCommandLine };

/// The values of one call, checked against the table.
class Values {
 public:
  /// Adds `text` as `option`'s value if no source of higher precedence gave one; lists grow within one
  /// source. `where` names the source in messages ("--top-k", "BITNET_THREADS", "run.yaml:3: top_k"). Throws
  /// UsageError (command line) or Error(kInvalidArgument) on a value that the table does not allow.
  void set(const Option& option, std::string_view text, Origin origin, std::string_view where);

  bool has(const Option& option) const;       ///< from any source, defaults included
  bool given(const Option& option) const;     ///< from any source but the defaults
  Origin origin(const Option& option) const;  ///< of its value; kDefault when absent
  bool flag(const Option& option) const;
  std::string text(const Option& option) const;  ///< empty when absent
  std::int64_t integer(const Option& option) const;
  double real(const Option& option) const;
  std::vector<std::string> list(const Option& option) const;

  std::vector<std::string> positionals;

 private:
  struct Entry {
    std::vector<std::string> texts;
    Origin origin = Origin::kDefault;
  };
  const Entry& at(const Option& option) const;
  std::map<const Option*, Entry> entries_;
};

/// Throws Error(kInvalidArgument) saying what `option` expects if `text` is not a value of it. `where` begins
/// the message.
void check_value(const Option& option, std::string_view text, std::string_view where);

/// The options of a generation; items of a batch may override them.
const std::vector<const Option*>& sampling_options();

/// Those of speculation, which changes no token.
const std::vector<const Option*>& draft_options();

/// Whole text as a number, or nothing.
std::optional<std::int64_t> parse_integer(std::string_view text);
std::optional<double> parse_real(std::string_view text);

}  // namespace bitnet::cli
