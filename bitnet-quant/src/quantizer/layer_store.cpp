// Layers to files and back. A file that does not fit is as good as none: its layer is done again.
#include "quantizer/layer_store.hpp"

#include <fmt/format.h>

#include <array>
#include <map>
#include <nlohmann/json.hpp>
#include <tuple>
#include <utility>

#include "bitnet/core/error.hpp"
#include "bitnet/core/hash64.hpp"
#include "model_io/extended.hpp"

namespace bitnet::quant {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

Json json_of(const LinearReport& r) {
  const WeightMetrics& m = r.metrics;
  return Json{{"method", std::string(to_string(r.plan.method))},
              {"scales", std::string(to_string(r.plan.scales))},
              {"bits", r.plan.activation_bits},
              {"rule", std::string(to_string(r.plan.activation_rule))},
              {"kept", r.kept},
              {"bytes", r.bytes},
              {"damping", r.damping},
              {"weights", m.weights},
              {"sums", {m.signal, m.noise, m.product, m.stored, m.output_signal, m.output_noise}},
              {"trits", m.trits},
              {"histogram",
               {{"counts", r.histogram.counts},
                {"ternary", r.histogram.ternary},
                {"largest_zero", r.histogram.largest_zero},
                {"smallest_one", r.histogram.smallest_one}}},
              {"warnings", r.warnings}};
}

LinearReport report_of(const Json& j, TensorId id, const Shape& shape) {
  LinearReport r;
  r.id = id;
  r.out = shape[0];
  r.in = shape[1];
  r.plan.method = weight_method_from_string(j.at("method").get<std::string>());
  r.plan.scales = scale_unit_from_string(j.at("scales").get<std::string>());
  r.plan.activation_bits = j.at("bits").get<int>();
  r.plan.activation_rule = activation_rule_from_string(j.at("rule").get<std::string>());
  r.kept = j.at("kept").get<bool>();
  r.bytes = j.at("bytes").get<std::uint64_t>();
  r.damping = j.at("damping").get<double>();
  WeightMetrics& m = r.metrics;
  m.weights = j.at("weights").get<std::int64_t>();
  const auto sums = j.at("sums").get<std::array<double, 6>>();
  std::tie(m.signal, m.noise, m.product, m.stored, m.output_signal, m.output_noise) =
      std::tie(sums[0], sums[1], sums[2], sums[3], sums[4], sums[5]);
  m.trits = j.at("trits").get<std::array<std::int64_t, 3>>();
  const Json& h = j.at("histogram");
  h.at("counts").get_to(r.histogram.counts);
  h.at("ternary").get_to(r.histogram.ternary);
  h.at("largest_zero").get_to(r.histogram.largest_zero);
  h.at("smallest_one").get_to(r.histogram.smallest_one);
  r.warnings = j.at("warnings").get<std::vector<std::string>>();
  return r;
}

/// Of what is in a file but its checksum; tensors in the order of their names.
template <class ForEach>
std::string checksum_of(const std::string& identity, const std::string& reports, ForEach&& for_each) {
  Hash64 hash;
  hash.add(identity).add(reports);
  for_each([&](const std::string& name, std::span<const std::byte> bytes) { hash.add(name).add(bytes); });
  return fmt::format("{:016x}", hash.value());
}

}  // namespace

LayerStore::LayerStore(fs::path directory, std::string identity)
    : directory_(std::move(directory)), identity_(std::move(identity)) {
  std::error_code error;
  fs::create_directories(directory_, error);
  if (error) throw Error(ErrorCode::kIo, fmt::format("'{}': {}", directory_.string(), error.message()));
}

fs::path LayerStore::file(std::int64_t layer) const {
  return directory_ / fmt::format("layer-{:05}.safetensors", layer);
}

void LayerStore::save(std::int64_t layer, const std::vector<QuantizedLinear>& linears) const {
  std::map<std::string, model_io::NamedBytes> tensors;
  Json reports;
  for (const QuantizedLinear& q : linears) {
    const std::string name = gguf_name(q.report.id);
    reports[name] = json_of(q.report);
    for (model_io::NamedBytes& n : model_io::encode_extended(q.tensor, name, q.tensor.dtype))
      tensors[n.info.name] = std::move(n);
  }
  const std::string text = reports.dump();
  const std::string checksum = checksum_of(identity_, text, [&](auto&& add) {
    for (const auto& [name, n] : tensors) add(name, n.bytes);
  });
  std::vector<model_io::NamedBytes> all;
  for (auto& [unused, n] : tensors) all.push_back(std::move(n));
  model_io::write_named(file(layer), all,
                        {{"identity", identity_}, {"reports", text}, {"checksum", checksum}});
}

std::optional<std::vector<QuantizedLinear>> LayerStore::load(std::int64_t layer,
                                                             const std::vector<TensorId>& ids,
                                                             const ModelConfig& model) const {
  try {
    const auto tensors = SafeTensors::open(file(layer));
    const auto& metadata = tensors->metadata();
    const std::string& reports = metadata.at("reports");
    const std::string checksum = checksum_of(identity_, reports, [&](auto&& add) {
      for (const SafeTensorInfo& info : tensors->tensors()) add(info.name, tensors->data(info));
    });
    if (metadata.at("identity") != identity_ || metadata.at("checksum") != checksum) return std::nullopt;
    const Json all = Json::parse(reports);
    std::vector<QuantizedLinear> out;
    for (const TensorId id : ids) {
      const std::string name = gguf_name(id);
      const Shape shape = tensor_shape(id, model);
      out.push_back(
          {model_io::decode_extended(*tensors, name, id, shape), report_of(all.at(name), id, shape)});
    }
    return out;
  } catch (const Error& e) {
    if (e.code() == ErrorCode::kOutOfMemory) throw;
  } catch (const Json::exception&) {
  } catch (const std::out_of_range&) {  // a key of the metadata that is not there
  }
  return std::nullopt;
}

}  // namespace bitnet::quant
