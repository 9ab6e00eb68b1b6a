// The networks' tables.
#include "network.hpp"

#include "bitnet/core/error.hpp"

namespace fashion {
namespace {

using bitnet::Error;
using bitnet::ErrorCode;

struct Row {
  StageKind kind;
  const char* name;
  std::int64_t out;  // channels; 0: the classes
  bool ternary, norm, relu;
};

// What reads pixels or gives answers has few weights and stays in full precision where it can (the MLP's
// first layer cannot: it holds most of the weights).
const std::vector<Row> kMlp = {{StageKind::kDense, "dense1", 512, true, true, true},
                               {StageKind::kDense, "dense2", 512, true, true, true},
                               {StageKind::kDense, "answer", 0, false, true, false}};
const std::vector<Row> kCnn = {{StageKind::kConvolution, "conv1", 32, false, false, true},
                               {StageKind::kMaxPool, "", 0, false, false, false},
                               {StageKind::kConvolution, "conv2", 64, true, true, true},
                               {StageKind::kMaxPool, "", 0, false, false, false},
                               {StageKind::kConvolution, "conv3", 128, true, true, true},
                               {StageKind::kMaxPool, "", 0, false, false, false},
                               {StageKind::kDense, "dense", 256, true, true, true},
                               {StageKind::kDense, "answer", 0, false, true, false}};

}  // namespace

std::vector<Stage> network(std::string_view name, Extent image, std::int64_t classes) {
  const std::vector<Row>* rows = name == "mlp" ? &kMlp : name == "cnn" ? &kCnn : nullptr;
  if (!rows)
    throw Error(ErrorCode::kInvalidArgument,
                "there is no network '" + std::string(name) + "' (there are: mlp, cnn)");
  std::vector<Stage> stages;
  Extent in = image;
  for (const Row& row : *rows) {
    const std::int64_t channels = row.out ? row.out : classes;
    Extent out{1, 1, channels};
    if (row.kind == StageKind::kConvolution) out = {in.height, in.width, channels};
    if (row.kind == StageKind::kMaxPool) out = {in.height / 2, in.width / 2, in.channels};
    if (in.channels < 1 || out.pixels() < 1)
      throw Error(ErrorCode::kInvalidArgument, "images of " + std::to_string(image.height) + " x " +
                                                   std::to_string(image.width) + " are too small for " +
                                                   std::string(name));
    stages.push_back({row.kind, row.name, in, out, row.ternary, row.norm, row.relu});
    in = out;
  }
  return stages;
}

}  // namespace fashion
