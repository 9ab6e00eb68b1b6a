// `bitnet tune`: the tile and work-group sizes that suit an OpenCL device, kept in a table that devices read.
// The search is bitnet-gpu's tuning.hpp.
#include <filesystem>
#include <ostream>

#include "bitnet/core/model/model_config.hpp"
#include "bitnet/quant/model_io.hpp"
#include "commands/commands_list.hpp"
#include "common.hpp"
#include "loading.hpp"
#ifdef BITNET_WITH_GPU
#include "bitnet/gpu/tuning.hpp"
#endif

namespace bitnet::cli {
namespace {

#ifdef BITNET_WITH_GPU
namespace fs = std::filesystem;

constexpr std::string_view kShippedName = "bitnet-demo-i2_s.gguf";

/// What of models/bitnet-demo-i2_s.gguf its linears' shapes come from.
ModelConfig shipped_shape() {
  ModelConfig c;
  c.vocab_size = 4096;
  c.hidden_size = 512;
  c.intermediate_size = 1024;
  c.n_layers = 6;
  c.n_heads = 8;
  c.n_kv_heads = 4;
  c.head_dim = 64;
  return c;
}

std::string device_of(const Values& values) {
  require(values, opt::kTuneDevice);
  return checked(values, opt::kTuneDevice, [](const std::string& name) {
    if (!name.starts_with("opencl:") || name.find(',') != std::string::npos)
      throw Error(
          ErrorCode::kInvalidArgument,
          "expected one OpenCL device, as opencl:0:0 (`bitnet devices` lists them), got '" + name + "'");
    return name;
  });
}

/// Where the table goes; empty: to standard output.
fs::path table_of(const Values& values) {
  if (!values.has(opt::kTuneOutput)) {
    const fs::path own = gpu::user_tuning_file();
    if (own.empty())
      throw UsageError("neither XDG_DATA_HOME nor HOME says where the table goes: give --output FILE");
    std::error_code ignored;  // a folder that is missing then is an error of the table
    if (own.has_parent_path()) fs::create_directories(own.parent_path(), ignored);
    return own;
  }
  const fs::path path = values.text(opt::kTuneOutput);
  if (path.empty()) throw UsageError("--output: expected a file, or -");
  if (path == "-") return {};
  const fs::path model = values.text(opt::kTuneModel);
  if (!model.empty() && would_replace(path, model))
    throw Error(ErrorCode::kInvalidArgument,
                "--output '" + path.string() + "': the table would replace the model");
  return path;
}

gpu::TuneOptions options_of(const Values& values, ProgressBar& bar, Io& io) {
  gpu::TuneOptions options;
  const std::string model = values.text(opt::kTuneModel);
  options.shapes =
      gpu::tune_shapes(model.empty() ? shipped_shape() : quant::ModelReader::open(model)->config());
  options.model = model.empty() ? std::string(kShippedName) : fs::path(model).filename().string();
  options.rounds = static_cast<int>(values.integer(opt::kTuneRounds));
  options.progress = [&bar, &io](const gpu::TuneProgress& p) {
    check_cancelled(io);
    bar.update(static_cast<double>(p.done), static_cast<double>(p.total), p.what);
  };
  return options;
}

void write_report(const gpu::TuneResult& result, std::ostream& out) {
  for (const gpu::TunedProgram& p : result.programs) {
    out << p.program << ", " << p.rows << (p.rows == "one" ? " row: " : " rows: ") << p.chosen;
    if (p.chosen != p.before) out << ", " << fixed(p.gain, 2) << " times as fast as " << p.before;
    out << " (of " << p.candidates << " candidates";
    if (p.refused > 0) out << "; the device refused " << p.refused;
    if (p.unequal > 0) out << "; " << p.unequal << " gave wrong results";
    out << ")\n";
  }
}

int tune(const Values& values, Io& io) {
  const std::string device = device_of(values);
  const fs::path path = table_of(values);
  if (!path.empty()) gpu::check_tuning_file(path);
  ProgressBar bar(io, "candidates");
  gpu::TuneOptions options = options_of(values, bar, io);
  options.device.sub_devices = sub_devices(values, device);
  options.device.memory_limit = device_memory_limit(values);
  if (values.flag(opt::kVerbose)) {
    io.err << "shapes:";
    for (const gpu::TuneShape& s : options.shapes)
      io.err << ' ' << s.out << " x " << s.in << " (" << s.count << " times)";
    io.err << '\n';
  }
  const gpu::TuneResult result = gpu::tune(device, options, make_context(values));
  bar.clear();
  write_report(result, path.empty() ? io.err : io.out);
  if (path.empty()) {
    io.out << result.yaml;
    return kOk;
  }
  gpu::save_tuning(result, path);
  io.err << "written: " << path.string() << '\n';
  if (path != gpu::user_tuning_file()) io.err << "note: devices use it when BITNET_OPENCL_TUNING names it\n";
  return kOk;
}
#else
int tune(const Values&, Io&) {
  throw Error(ErrorCode::kUnsupported, "this build has no GPU support (BITNET_BUILD_GPU)");
}
#endif

}  // namespace

const Command kTuneCommand{
    .name = "tune",
    .summary = "find the work-group sizes that suit an OpenCL device",
    .usage = "--device NAME [-m MODEL] [-o FILE]",
    .description =
        "Measures tile and work-group sizes of the device's programs on the shapes of a model's linears, one "
        "row (a "
        "token) and several (prompts, batches), all candidates in turn, and writes those that are fastest "
        "into a table "
        "that devices read when they are opened. A size never changes a result: candidates whose results are "
        "not the "
        "definition's to the bit are left out. Devices without a row in that table use the one in the "
        "library, and "
        "without one there its default. -v of other commands says whose sizes a device uses.",
    .example =
        "bitnet tune --device opencl:0:0\n"
        "bitnet tune --device opencl:0:0 -m model.gguf -o - > table.yaml",
    .arguments = {},
    .options = {&opt::kTuneDevice, &opt::kTuneModel, &opt::kSubDevices, &opt::kTuneRounds, &opt::kThreads,
                &opt::kIsa, &opt::kDeviceMemoryLimit, &opt::kTuneOutput, &opt::kVerbose},
    .body = tune,
};

}  // namespace bitnet::cli
