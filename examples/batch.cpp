// Many prompts in one ragged batch: each joins as soon as there is room, leaves when it is done, and gets the
// text it would get alone. Usage: bitnet_example_batch MODEL PROMPT...
#include <iostream>

#include "bitnet/inference/engine.hpp"

namespace {

using namespace bitnet::inference;

int run(const char* model, int n_prompts, char** prompts) {
  InferenceEngine engine({.model = model});
  const auto scheduler = engine.make_scheduler();
  int failed = 0;
  for (int i = 0; i < n_prompts; ++i) {
    Request request;
    request.prompt = engine.model()->require_tokenizer().encode(prompts[i]);
    request.options.max_tokens = 32;
    request.options.sampling.seed = 42;
    request.on_done = [prompt = prompts[i], &failed](RequestId, const GenerationResult& result) {
      std::cout << "--- " << prompt << " (" << to_string(result.finish_reason) << ")\n"
                << result.text << '\n';
      if (!result.error) return;
      std::cerr << prompt << ": " << result.error->what() << '\n';
      ++failed;
    };
    scheduler->submit(std::move(request));
  }
  scheduler->run();
  const SchedulerStats stats = scheduler->stats();
  std::cout << "=== " << stats.finished << " prompts, at most " << stats.max_running << " at once, "
            << stats.generated_tokens << " tokens in " << stats.step_seconds << " s\n";
  return failed > 0 ? 1 : 0;
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc < 3) throw bitnet::Error(bitnet::ErrorCode::kInvalidArgument, "usage: batch MODEL PROMPT...");
  return run(argv[1], argc - 2, argv + 2);
} catch (const bitnet::Error& e) {
  std::cerr << e.what() << '\n';
  return 1;
}
