// Checkpoints: one safetensors file, weights and moments as they are and the state as exact text in the
// metadata.
#include "bitnet/training/checkpoint.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <map>
#include <string>

#include "bitnet/core/error.hpp"
#include "bitnet/core/hash64.hpp"
#include "bitnet/core/io/safetensors.hpp"
#include "checkpoint_file.hpp"

namespace bitnet::training {
namespace {

using Fields = std::map<std::string, std::string>;

const std::string kIdentity = "identity.", kSetting = "setting.", kChecksum = "checksum";

std::string exact(double v) {
  char text[64];
  const auto end = std::to_chars(text, text + sizeof text, v).ptr;
  return {text, end};
}

std::vector<OptimizerState> entries_of(TextModel& model, Optimizer& optimizer) {
  std::vector<OptimizerState> all;
  for (Parameter* p : model.parameters())
    all.push_back({"weights/" + p->name(), std::as_writable_bytes(p->value()), true, {p->rows(), p->cols()}});
  for (OptimizerState& state : optimizer.state()) all.push_back(std::move(state));
  return all;
}

SafeDType dtype_of(const OptimizerState& e) { return e.floats ? SafeDType::kF32 : SafeDType::kU8; }

/// Throws unless the file has every entry in its type and shape.
void check_entries(const SafeTensors& file, const std::vector<OptimizerState>& entries) {
  for (const OptimizerState& e : entries) {
    const SafeTensorInfo* info = file.find(e.name);
    if (!info) throw Error(ErrorCode::kCorruptFile, "tensor '" + e.name + "' is missing");
    if (info->dtype == dtype_of(e) && info->shape == e.shape) continue;
    std::string shape;
    for (const std::int64_t n : e.shape) shape += (shape.empty() ? "" : ", ") + std::to_string(n);
    throw Error(ErrorCode::kCorruptFile, "tensor '" + e.name + "' has another type or shape than " +
                                             (e.floats ? "F32 [" : "U8 [") + shape + "]");
  }
}

/// A tensor as checksum_of() wants it.
struct Summed {
  std::string_view name;
  SafeDType dtype;
  std::span<const std::int64_t> shape;
  std::span<const std::byte> bytes;
};

/// Of every field but itself, and of the tensors, which are put in the order of their names.
std::string checksum_of(const Fields& fields, std::vector<Summed> tensors) {
  std::sort(tensors.begin(), tensors.end(), [](const Summed& a, const Summed& b) { return a.name < b.name; });
  Hash64 hash;
  for (const auto& [key, value] : fields)
    if (key != kChecksum) hash.add(key).add(value);
  for (const Summed& t : tensors)
    hash.add(t.name).add(to_string(t.dtype)).add(std::as_bytes(t.shape)).add(t.bytes);
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(hash.value()));
  return text;
}

/// Throws unless the file's bytes are those that were written.
void check_sum(const SafeTensors& file) {
  const Fields& fields = file.metadata();
  const auto theirs = fields.find(kChecksum);
  if (theirs == fields.end()) throw Error(ErrorCode::kCorruptFile, "the checkpoint lacks its checksum");
  std::vector<Summed> tensors;
  for (const SafeTensorInfo& t : file.tensors()) tensors.push_back({t.name, t.dtype, t.shape, file.data(t)});
  const std::string ours = checksum_of(fields, std::move(tensors));
  if (ours != theirs->second)
    throw Error(ErrorCode::kCorruptFile,
                "the checksum is " + theirs->second + " and should be " + ours + ": the file is damaged");
}

void require_range(bool holds, const char* what) {
  if (!holds) throw Error(ErrorCode::kCorruptFile, std::string("no run has such a value of ") + what);
}

/// Throws naming the first of what makes up a model that differs.
void check_identity(const Fields& fields, const Fields& ours) {
  const auto refuse = [](const std::string& key, const std::string& there, const std::string& here) {
    throw Error(ErrorCode::kInvalidArgument, "it is of another model: " + key + " is " + there +
                                                 " there and " + here + " in the configuration");
  };
  for (const auto& [key, here] : ours) {
    const auto it = fields.find(key);
    const std::string there = it == fields.end() ? "nothing" : it->second;
    if (there != here) refuse(key, there, here);
  }
  for (const auto& [key, there] : fields)
    if ((key.starts_with("model.") || key.starts_with("lora.")) && !ours.contains(key))
      refuse(key, there, "nothing");
}

}  // namespace

int check_checkpoint(const SafeTensors& file) {
  const Fields& fields = file.metadata();
  const auto format = fields.find("format");
  if (format == fields.end() || format->second != kCheckpointFormat)
    throw Error(
        ErrorCode::kCorruptFile,
        std::string("this is not a training checkpoint (no metadata format=") + kCheckpointFormat + ")");
  const int version = checkpoint_field<int>(fields, "version");
  if (version != kCheckpointVersion && version != kUnsummedCheckpoint)
    throw Error(ErrorCode::kUnsupported, "checkpoint version " + std::to_string(version) +
                                             "; this build reads " + std::to_string(kUnsummedCheckpoint) +
                                             " and " + std::to_string(kCheckpointVersion));
  if (version != kUnsummedCheckpoint || fields.contains(kChecksum)) check_sum(file);
  return version;
}

void save_checkpoint(const std::filesystem::path& path, TextModel& model, Optimizer& optimizer,
                     const TrainState& state) {
  with_context("writing checkpoint '" + path.string() + "'", [&] {
    Fields fields = model.identity();
    fields["format"] = kCheckpointFormat;
    fields["version"] = std::to_string(kCheckpointVersion);
    fields["config.rope_theta"] = exact(model.config().rope_theta);
    fields["config.rms_norm_eps"] = exact(model.config().rms_norm_eps);
    fields["step"] = std::to_string(state.step);
    fields["tokens"] = std::to_string(state.tokens);
    fields["seconds"] = exact(state.seconds);
    for (const auto& [key, value] : state.identity) fields[kIdentity + key] = value;
    for (const auto& [key, value] : state.settings) fields[kSetting + key] = value;
    fields["optimizer"] = optimizer.name();
    fields["optimizer_steps"] = std::to_string(optimizer.steps());
    fields["micro_batch"] = std::to_string(state.micro_batch);
    if (state.loss.steps > 0) {
      fields["loss.mean"] = exact(state.loss.mean);
      fields["loss.variance"] = exact(state.loss.variance);
      fields["loss.steps"] = std::to_string(state.loss.steps);
      fields["loss.spikes"] = std::to_string(state.loss.spikes);
    }
    if (state.best.step > 0) {
      fields["best.nll"] = exact(state.best.nll);
      fields["best.step"] = std::to_string(state.best.step);
      fields["best.since"] = std::to_string(state.best.since);
    }
    fields["data.position"] = std::to_string(state.data.position);
    fields["data.epoch"] = std::to_string(state.data.epoch);
    for (std::size_t i = 0; i < state.data.epoch_rng.size(); ++i)
      fields["data.rng" + std::to_string(i)] = std::to_string(state.data.epoch_rng[i]);
    const std::vector<OptimizerState> entries = entries_of(model, optimizer);
    std::vector<SafeTensorInfo> infos;
    std::vector<Summed> tensors;
    for (const OptimizerState& e : entries) {
      infos.push_back({e.name, dtype_of(e), e.shape});
      tensors.push_back({e.name, dtype_of(e), e.shape, e.bytes});
    }
    fields[kChecksum] = checksum_of(fields, std::move(tensors));
    SafeTensorsWriter writer(path, infos, fields);
    for (const OptimizerState& e : entries) writer.write(e.name, e.bytes);
    writer.finish();
  });
}

TrainState load_checkpoint(const std::filesystem::path& path, TextModel& model, Optimizer& optimizer) {
  return with_context("reading checkpoint '" + path.string() + "'", [&] {
    const auto file = SafeTensors::open(path);
    const Fields& fields = file->metadata();
    check_checkpoint(*file);
    check_identity(fields, model.identity());
    TrainState state;
    state.step = checkpoint_field<std::int64_t>(fields, "step");
    state.tokens = checkpoint_field<std::int64_t>(fields, "tokens");
    constexpr std::int64_t kMost = std::int64_t{1} << 62;  // the sum of two is still one
    require_range(state.step >= 0 && state.step <= kMost, "step");
    require_range(state.tokens >= 0 && state.tokens <= kMost, "tokens");
    state.seconds = checkpoint_field<double>(fields, "seconds");
    require_range(state.seconds >= 0 && state.seconds < 1e12, "seconds");
    for (const auto& [key, value] : fields) {
      if (key.starts_with(kIdentity)) state.identity[key.substr(kIdentity.size())] = value;
      if (key.starts_with(kSetting)) state.settings[key.substr(kSetting.size())] = value;
    }
    if (fields.contains("micro_batch"))
      state.micro_batch = checkpoint_field<std::int64_t>(fields, "micro_batch");
    if (fields.contains("loss.steps"))
      state.loss = {checkpoint_field<double>(fields, "loss.mean"),
                    checkpoint_field<double>(fields, "loss.variance"),
                    checkpoint_field<std::int64_t>(fields, "loss.steps"),
                    checkpoint_field<std::int64_t>(fields, "loss.spikes")};
    if (fields.contains("best.step"))
      state.best = {checkpoint_field<double>(fields, "best.nll"),
                    checkpoint_field<std::int64_t>(fields, "best.step"),
                    checkpoint_field<std::int64_t>(fields, "best.since")};
    state.data.position = checkpoint_field<std::uint64_t>(fields, "data.position");
    state.data.epoch = checkpoint_field<std::uint64_t>(fields, "data.epoch");
    for (std::size_t i = 0; i < state.data.epoch_rng.size(); ++i)
      state.data.epoch_rng[i] = checkpoint_field<std::uint64_t>(fields, "data.rng" + std::to_string(i));
    // The generator never leaves a state of zeros.
    require_range(std::any_of(state.data.epoch_rng.begin(), state.data.epoch_rng.end(),
                              [](std::uint64_t word) { return word != 0; }),
                  "data.rng");
    const auto of = fields.find("optimizer");
    const std::string theirs = of == fields.end() ? "adamw" : of->second;  // older ones had no other
    if (theirs != optimizer.name())
      throw Error(ErrorCode::kInvalidArgument,
                  "training.optimizer is " + theirs + " there and " + std::string(optimizer.name()) + " now");
    const auto optimizer_steps = checkpoint_field<std::int64_t>(fields, "optimizer_steps");
    require_range(optimizer_steps >= 0 && optimizer_steps <= state.step, "optimizer_steps");

    const std::vector<OptimizerState> entries = entries_of(model, optimizer);
    check_entries(*file, entries);
    for (const OptimizerState& e : entries)
      std::memcpy(e.bytes.data(), file->data(*file->find(e.name)).data(), e.bytes.size());
    optimizer.set_steps(optimizer_steps);
    return state;
  });
}

std::int64_t checkpoint_step(const std::filesystem::path& path) {
  return with_context("reading checkpoint '" + path.string() + "'", [&] {
    const auto file = SafeTensors::open(path);
    check_checkpoint(*file);
    return checkpoint_field<std::int64_t>(file->metadata(), "step");
  });
}

}  // namespace bitnet::training
