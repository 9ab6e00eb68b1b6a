// What is shown of the inputs: remembered while a model is quantised, from files, columns that stand out.
#include "bitnet/quant/input_report.hpp"

#include <nlohmann/json.hpp>

#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/quant/quant_report.hpp"
#include "bitnet/testing/testing.hpp"
#include "contexts.hpp"
#include "memory_reader.hpp"

namespace bitnet::quant {
namespace {

using test::context;
using testing::dense_config;
using testing::RandomActivations;

TEST(InputReportTest, ColumnsThatStandOut) {
  InputStatistics s;
  s.channel_peaks = {1, 9, 1, 0, 2, 20, 1, 4};
  const std::vector<ChannelPeak> found = outlier_columns(s, 4);  // the middle of them is 2
  ASSERT_EQ(found.size(), 2u);
  EXPECT_EQ(found[0].column, 5);
  EXPECT_EQ(found[0].peak, 20);
  EXPECT_EQ(found[0].times, 10);
  EXPECT_EQ(found[1].column, 1);
  EXPECT_EQ(outlier_columns(s, 4, 1).size(), 1u);
  EXPECT_TRUE(outlier_columns(s, 10).empty());
  s.channel_peaks = {0, 0, 0, 5};
  EXPECT_TRUE(outlier_columns(s).empty());
  EXPECT_TRUE(outlier_columns(InputStatistics()).empty());
}

TEST(InputReportTest, WhatIsShownCostsNoPassOfItsOwn) {
  const testing::MemoryReader reader(dense_config(),
                                     testing::MemoryModel(dense_config(), testing::Linears::kFloat, 3));
  RandomActivations source(reader.config(), 200);
  StreamedCalibration calibration(context(), source, reader.config(), {.memory = 1});  // an input a pass
  SeenInputs seen(calibration);
  QuantConfig config;
  config.linears.method = WeightMethod::kGptq;
  Quantizer quantizer(context(), reader, config, {.calibration = &seen});
  for (const PlannedLinear& l : quantizer.plans()) quantizer.read(l.id);
  const std::vector<TensorId> inputs = linear_inputs(reader.config());
  EXPECT_EQ(calibration.passes(), static_cast<std::int64_t>(inputs.size()));
  ASSERT_EQ(seen.inputs().size(), inputs.size());
  const std::string text = describe_inputs(seen.inputs());
  QuantReport report;
  report.linears = quantizer.reports();
  report.inputs = seen.inputs();
  const auto json = nlohmann::json::parse(to_json(report))["inputs"];
  const std::string html = to_html(report);
  EXPECT_EQ(calibration.passes(), static_cast<std::int64_t>(inputs.size()));
  ASSERT_EQ(json.size(), inputs.size());
  EXPECT_EQ(json, nlohmann::json::parse(inputs_to_json(seen.inputs())));
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const std::string name = json[i]["name"];
    EXPECT_EQ(name + ".weight", gguf_name(inputs[i]));
    EXPECT_NE(text.find(name), std::string::npos);
    EXPECT_NE(html.find("<td>" + name + "</td>"), std::string::npos);
    EXPECT_EQ(json[i]["rows"], 200);
    EXPECT_EQ(json[i]["columns"], input_width(inputs[i], reader.config()));
    std::int64_t all = 0;
    for (const auto& n : json[i]["half_octaves"]) all += n.get<std::int64_t>();
    EXPECT_EQ(all, 200 * json[i]["columns"].get<std::int64_t>());
    EXPECT_GT(json[i]["error_int4_absmax"], json[i]["error_int8"]);
  }
  EXPECT_NE(html.find("Inputs whose largest values stand out the most"), std::string::npos);
  EXPECT_EQ(to_html({}).find("The inputs"), std::string::npos);
}

TEST(InputReportTest, OfAFileWithoutItsModel) {
  const bitnet::testing::TempDir dir;
  const auto path = dir / "c.safetensors";
  const ModelConfig model = dense_config();
  RandomActivations source(model, 70);
  StreamedCalibration streamed(context(), source, model);
  SeenInputs seen(streamed);
  save_calibration(path, seen, model);
  const auto read = inputs_of_file(path);
  ASSERT_TRUE(read.has_value());
  EXPECT_EQ(inputs_to_json(*read), inputs_to_json(seen.inputs()));
  EXPECT_EQ(describe_inputs(*read), describe_inputs(seen.inputs()));
  const std::string bytes = read_file(path);
  const auto expect_error = [&](const std::string& from, const std::string& to, ErrorCode code,
                                const char* message) {
    std::string text = bytes;
    text.replace(text.find(from), from.size(), to);
    write_file(path, text);
    BITNET_EXPECT_ERROR(inputs_of_file(path), code, message);
  };
  expect_error("layers 2", "layers 3", ErrorCode::kCorruptFile, "expected a tensor 'checksums'");
  expect_error("layers 2", "layers 0", ErrorCode::kCorruptFile, "no model has these layers");
  expect_error("layers 2 hidden", "layers 99hidden", ErrorCode::kCorruptFile, "no model has these layers");
  expect_error("hidden ", "hiddem ", ErrorCode::kCorruptFile, "no model has these hidden");
  std::string damaged = bytes;
  damaged[damaged.size() / 2] ^= 1;
  write_file(path, damaged);
  BITNET_EXPECT_ERROR(inputs_of_file(path), ErrorCode::kCorruptFile, "its checksum does not agree");
  // Other files, and none.
  write_file(dir / "text.txt", "words");
  for (const char* other : {"text.txt", "missing"}) EXPECT_FALSE(inputs_of_file(dir / other).has_value());
  EXPECT_FALSE(inputs_of_file(dir.path()).has_value());
}

}  // namespace
}  // namespace bitnet::quant
