#pragma once
// What `quantize` and `plan` read beside the model: the configuration, texts, calibration.
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "bitnet/quant/calibration.hpp"
#include "bitnet/quant/input_report.hpp"
#include "bitnet/quant/quant_config.hpp"
#include "calibrating.hpp"
#include "options.hpp"

namespace bitnet::cli {

/// The file of --plan, or what the other two options say. Throws UsageError where one of those is given
/// beside it.
quant::QuantConfig plan_of(const Values& values, const Option& method, const Option& scales);

/// Windows of the text of `file`, --calibration-tokens in all. Throws Error(kNotFound) for a model without a
/// tokenizer.
std::vector<std::vector<TokenId>> windows_of(const Values& values, const Option& file,
                                             const quant::ModelReader& model, Io& io);
/// The same with as many tokens as `tokens` says.
std::vector<std::vector<TokenId>> windows_of(const Values& values, const Option& file, const Option& tokens,
                                             const quant::ModelReader& model, Io& io);

/// What linears' inputs look like, from a text or a file; the members keep each other alive.
struct Calibration {
  std::unique_ptr<ModelActivations> activations;
  std::unique_ptr<quant::CalibrationSource> source;
  std::unique_ptr<quant::SeenInputs> seen;  ///< `source` for whoever quantises, so that it can be reported
  bool through_quantised = false;
  std::int64_t tokens = 0;  ///< of the text; 0: it comes from a file

  /// What was seen of the inputs so far.
  std::vector<quant::InputReport> inputs() const {
    return seen != nullptr ? seen->inputs() : std::vector<quant::InputReport>();
  }
};

/// Of --calibrate or --calibration, with what goes with them; empty without. `in`: the model's files;
/// `memory`: of quant::StreamOptions. Nothing is run yet.
Calibration calibration_of(const Values& values, const std::filesystem::path& in,
                           const quant::ModelReader& model,
                           const std::shared_ptr<const ExecutionContext>& context, std::uint64_t memory,
                           Io& io);

/// What is done with a calibration before anything else: --save-calibration. Then `seen` is there.
void use_calibration(const Values& values, const quant::ModelReader& model, Calibration& calibration, Io& io);

/// Warnings of linears, to be said to a person: those of several linears with one input in the same words, as
/// of too few tokens, are said once.
class LinearWarnings {
 public:
  void add(TensorId linear, const std::string& text);
  void say(Io& io) const;

 private:
  struct Warning {
    TensorId input;
    std::string text, names;
  };
  std::vector<Warning> all_;
};

/// Refuses a place for a file, which `option` or OUT names, where none can be written: in a directory that is
/// not there, or over something that is no ordinary file. Throws UsageError.
void check_directory_of(const std::filesystem::path& file, const std::string& name);

/// A file or directory as it is now: another one, or a newer one, has another text.
std::string state_of(const std::filesystem::path& path);

}  // namespace bitnet::cli
