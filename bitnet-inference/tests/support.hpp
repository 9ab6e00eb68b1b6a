#pragma once
// What the tests of bitnet-inference share: tiny models ready to run, a tokenizer that knows every byte, the
// plain loop that scheduler and engine are compared with.
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bitnet/core/text/bpe_trainer.hpp"
#include "bitnet/inference/model.hpp"
#include "bitnet/inference/register.hpp"
#include "bitnet/inference/sampler.hpp"
#include "bitnet/inference/session.hpp"
#include "bitnet/testing/reference_forward.hpp"
#include "bitnet/testing/testing.hpp"

namespace bitnet::inference {

inline std::shared_ptr<const ExecutionContext> make_context(std::size_t threads) {
  ExecutionContext::Options options;
  options.threads = threads;
  return std::make_shared<const ExecutionContext>(options);
}

inline std::shared_ptr<const Model> make_model(const testing::TensorModel& tensors, std::size_t threads = 1,
                                               std::shared_ptr<const Tokenizer> tokenizer = nullptr,
                                               HeadType head = HeadType::kAuto) {
  LoadOptions options;
  options.head = head;
  return Model::build(tensors.config, std::move(tokenizer), make_cpu_backend(make_context(threads)), tensors,
                      options);
}

/// Byte-level, 300 tokens at most: two special ones, 256 bytes, some merges.
inline std::shared_ptr<const Tokenizer> byte_tokenizer() {
  BpeTrainerOptions options;
  options.vocab_size = 300;
  BpeTrainer trainer(options);
  trainer.feed("the cat and the hat and the rat sat on the mat, the end. the cat and the hat");
  return Tokenizer::from_json(trainer.train());
}

/// The tiny model with a vocabulary for byte_tokenizer().
inline ModelConfig text_config() {
  ModelConfig c = testing::tiny_config();
  c.vocab_size = 304;
  return c;
}

/// Sampling with nothing but Session and Sampler: what every other way of generating must equal.
inline std::vector<TokenId> plain_generate(const std::shared_ptr<const Model>& model,
                                           const std::vector<TokenId>& prompt, const SamplerOptions& sampling,
                                           std::size_t n) {
  SessionOptions options;
  options.n_ctx = 128;
  Session session(model, options);
  Sampler sampler(sampling, model->config().vocab_size);
  for (const TokenId id : prompt) sampler.accept(id);
  std::vector<TokenId> out;
  std::span<const float> logits = session.evaluate(prompt);
  while (out.size() < n) {
    const TokenId token = sampler.sample(logits);
    if (model->is_eos(token)) break;
    sampler.accept(token);
    out.push_back(token);
    if (out.size() < n) logits = session.evaluate({&token, 1});
  }
  return out;
}

}  // namespace bitnet::inference
