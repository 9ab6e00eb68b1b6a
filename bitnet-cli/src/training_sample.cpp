// A snapshot's file, an engine for it, a greedy generation.
#include "training_sample.hpp"

#include <filesystem>
#include <utility>

#include "bitnet/inference/engine.hpp"

namespace bitnet::cli {
namespace {

namespace fs = std::filesystem;

/// Removes a file or a folder when it ends.
class Removed {
 public:
  explicit Removed(fs::path path) : path_(std::move(path)) {}
  ~Removed() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  Removed(const Removed&) = delete;
  Removed& operator=(const Removed&) = delete;
  const fs::path& path() const noexcept { return path_; }

 private:
  fs::path path_;
};

}  // namespace

std::string sample_text(const training::TrainConfig& config, std::shared_ptr<const ExecutionContext> context,
                        const training::WriteSnapshot& write) {
  const Removed snapshot(config.output / (config.lora ? "sample-adapter" : "sample-model"));
  write(snapshot.path());
  inference::EngineOptions options;
  options.context = std::move(context);
  if (config.lora) {
    options.model = config.lora->base;
    options.adapters.push_back({snapshot.path()});
  } else {
    options.model = snapshot.path();
  }
  inference::InferenceEngine engine(options);
  inference::GenerationOptions generation;
  generation.max_tokens = config.sample_tokens;
  generation.sampling.temperature = 0;
  const inference::GenerationResult result = engine.generate(config.sample_prompt, generation);
  if (result.error) throw *result.error;
  return result.text;
}

}  // namespace bitnet::cli
