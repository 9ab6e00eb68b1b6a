// A device that makes zero of a subnormal number as soon as it is a float, which OpenCL allows: nothing of a
// step may be kept in such numbers. Sources are changed on their way to the driver, so that every as_float()
// does.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "bitnet/core/execution.hpp"
#include "bitnet/gpu/register.hpp"
#include "bitnet/inference/model.hpp"
#include "bitnet/inference/register.hpp"
#include "bitnet/inference/session.hpp"
#include "bitnet/testing/failing_queue.hpp"
#include "bitnet/testing/opencl.hpp"
#include "bitnet/testing/testing.hpp"

namespace bitnet {
namespace {

bool flushes = false;
int flushed_places = 0;

constexpr std::string_view kFlush =
    "float bn_flushed(uint bits) { return (bits & 0x7f800000u) == 0u ? 0.0f : as_float(bits); }\n";

std::string with_flushes(std::string_view source) {
  std::string text(kFlush);
  constexpr std::string_view kCall = "as_float(";
  for (std::size_t at = 0; at < source.size();) {
    const std::size_t call = std::min(source.find(kCall, at), source.size());
    text += source.substr(at, call - at);
    at = call;
    if (call == source.size()) break;
    text += "bn_flushed(";
    at += kCall.size();
    ++flushed_places;
  }
  return text;
}

std::vector<float> logits_on(std::shared_ptr<Backend> backend, DType kv_type) {
  const auto model =
      inference::Model::load(testing::source_path("tests/data/models/bitnet-25-packed"), std::move(backend));
  inference::Session session(model, {.n_ctx = 32, .kv_type = kv_type});
  std::vector<float> all;
  for (const std::vector<TokenId>& ids : {std::vector<TokenId>{3, 1, 4, 1, 5, 9, 2, 6}, {5}, {3}}) {
    const auto logits = session.evaluate(ids);
    all.insert(all.end(), logits.begin(), logits.end());
  }
  return all;
}

class ADeviceThatFlushesSubnormals : public ::testing::TestWithParam<std::tuple<bool, DType>> {};

TEST_P(ADeviceThatFlushesSubnormals, GivesTheLogitsOfTheCpu) {
  const auto [wide, kv_type] = GetParam();
  gpu::Options options;
  options.kernels.wide = wide;
  options.program_folder = "";
  BackendRegistry devices;
  gpu::register_backends(devices, options);
  BITNET_REQUIRE_OPENCL_DEVICE(!devices.devices().empty());
  const auto context =
      std::make_shared<const ExecutionContext>(ExecutionContext::Options{.threads = 1, .isa = {}});
  flushes = true;
  flushed_places = 0;
  const auto logits = logits_on(devices.create(devices.devices()[0].name, context), kv_type);
  flushes = false;
  EXPECT_GT(flushed_places, 0);
  EXPECT_EQ(logits, logits_on(inference::make_cpu_backend(context), kv_type));
}

INSTANTIATE_TEST_SUITE_P(Kernels, ADeviceThatFlushesSubnormals,
                         ::testing::Combine(::testing::Bool(), ::testing::Values(DType::kF16, DType::kI8)));

}  // namespace
}  // namespace bitnet

BITNET_CL_STANDS_BEFORE cl_program CL_API_CALL clCreateProgramWithSource(cl_context context, cl_uint n,
                                                                         const char** texts,
                                                                         const size_t* lengths,
                                                                         cl_int* status) {
  static const auto real = bitnet::testing::driver(&clCreateProgramWithSource, "clCreateProgramWithSource");
  if (!bitnet::flushes || n != 1 || lengths == nullptr) return real(context, n, texts, lengths, status);
  const std::string changed = bitnet::with_flushes({texts[0], lengths[0]});
  const char* text = changed.data();
  const size_t length = changed.size();
  return real(context, 1, &text, &length, status);
}
