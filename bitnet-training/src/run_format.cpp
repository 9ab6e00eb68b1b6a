// Figures of a run as lines of text. Where they come from is trainer.cpp.
#include <cstdio>
#include <string>

#include "bitnet/training/trainer.hpp"

namespace bitnet::training {

std::string format_progress(const Progress& p) {
  const auto eta = static_cast<long long>(p.eta_seconds);
  char line[256];
  const auto used = std::snprintf(
      line, sizeof line, "step %lld/%lld | loss %.4f | lr %.2e | %.0f tok/s | eta %lld:%02lld:%02lld",
      static_cast<long long>(p.step), static_cast<long long>(p.steps), p.loss, p.learning_rate,
      p.tokens_per_second, eta / 3600, eta / 60 % 60, eta % 60);
  if (p.zero_fraction > 0)  // there are trits, and they are trained
    std::snprintf(line + used, sizeof line - static_cast<std::size_t>(used), " | zero %.1f%% | flips %.3f%%",
                  p.zero_fraction * 100, p.flip_rate * 100);
  return line;
}

std::string format_dry_run(const DryRun& d) {
  char text[1024];
  const auto whole = [](auto v) { return static_cast<long long>(v); };
  const LengthStatistics& l = d.corpus.lengths;
  std::snprintf(
      text, sizeof text,
      "parameters\t%lld\nvocabulary\t%lld tokens, %lld of them in the training text, %.3f bits each\n"
      "texts\t%lld tokens of training, %lld of validation, %lld held out\n"
      "documents\t%lld of training, %lld … %lld tokens, median %lld, 99 %% %lld\n"
      "learned\t%lld tokens of training\n"
      "epoch\t%lld sequences, %.1f s\nstep\t%.3f s (measured), micro-batches of %lld\n"
      "run\t%lld steps, %.1f s\nmemory\t%lld bytes%s\ncheckpoint\t%lld bytes\n",
      whole(d.parameters), whole(d.vocab_size), whole(d.corpus.distinct_tokens), d.corpus.entropy_bits,
      whole(l.total), whole(d.validation_tokens), whole(d.held_out_tokens), whole(l.count), whole(l.shortest),
      whole(l.longest), whole(l.median), whole(l.p99), whole(d.learned_tokens), whole(d.sequences_per_epoch),
      d.seconds_per_epoch, d.seconds_per_step, whole(d.micro_batch), whole(d.steps), d.seconds,
      whole(d.memory_bytes),
      d.activation_checkpointing ? ", with the activations of one layer at a time" : "",
      whole(d.checkpoint_bytes));
  return std::string(text) + "result\t" + d.result + '\n';
}

}  // namespace bitnet::training
