// Trains a ternary network, or its twin in full precision, on Fashion-MNIST, exports it, and runs the file on
// bitnet-quant's kernels. usage: see kUsage.
#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <exception>
#include <string>
#include <utility>

#include "bitnet/core/error.hpp"
#include "bitnet/core/io/atomic_file.hpp"
#include "classifier.hpp"
#include "predictor.hpp"

using namespace fashion;
using bitnet::Error;
using bitnet::ErrorCode;

namespace {

constexpr const char* kUsage = R"(usage: bitnet_example_fashion_mnist [option value]…
  --model mlp|cnn           the network (cnn)
  --precision ternary|full  of its hidden layers (ternary)
  --data DIRECTORY          (/usr/share/datasets/fashion-mnist, Debian's dataset-fashion-mnist)
  --epochs N                (mlp 15, cnn 8)
  --rate R                  peak of the learning rate (0.002)
  --seed N                  (1)
  --images N                train with the first N images only (all)
  --validate N              choose settings: score the last N training images, not the test images (0)
  --export FILE             write the trained network, run it and compare
  --at-least PERCENT        end with status 1 where fewer of the scored images are right (0)
  --run FILE                train nothing: score the test images with an exported network
)";

struct Options {
  std::string model = "cnn", precision = "ternary", data = "/usr/share/datasets/fashion-mnist", save, run;
  std::int64_t images = 0, validate = 0;
  double at_least = 0;  // percent
  TrainingOptions training{.epochs = 0};
};

template <class T>
T number(const std::string& option, const char* text, T least) {
  T value{};
  const char* end = text + std::strlen(text);
  const auto result = std::from_chars(text, end, value);
  if (result.ec != std::errc{} || result.ptr != end || !(value >= least))
    throw Error(ErrorCode::kInvalidArgument,
                option + " '" + text + "': expected a number of at least " + std::to_string(least));
  return value;
}

Options parse(int argc, char** argv) {
  Options o;
  for (int i = 1; i < argc; i += 2) {
    const std::string option = argv[i];
    if (i + 1 == argc) throw Error(ErrorCode::kInvalidArgument, option + " has no value\n" + kUsage);
    const char* value = argv[i + 1];
    if (option == "--model")
      o.model = value;
    else if (option == "--precision")
      o.precision = value;
    else if (option == "--data")
      o.data = value;
    else if (option == "--epochs")
      o.training.epochs = number<std::int64_t>(option, value, 1);
    else if (option == "--rate")
      o.training.rate = number(option, value, 0.0);
    else if (option == "--seed")
      o.training.seed = number<std::uint64_t>(option, value, 0);
    else if (option == "--images")
      o.images = number<std::int64_t>(option, value, 1);
    else if (option == "--validate")
      o.validate = number<std::int64_t>(option, value, 1);
    else if (option == "--export")
      o.save = value;
    else if (option == "--at-least")
      o.at_least = number(option, value, 0.0);
    else if (option == "--run")
      o.run = value;
    else
      throw Error(ErrorCode::kInvalidArgument, "unknown option " + option + "\n" + kUsage);
  }
  if (o.precision != "ternary" && o.precision != "full")
    throw Error(ErrorCode::kInvalidArgument, "--precision '" + o.precision + "': expected ternary or full");
  if (o.at_least > 100)
    throw Error(ErrorCode::kInvalidArgument, "--at-least: expected a percentage, at most 100");
  if (o.training.epochs == 0) o.training.epochs = o.model == "mlp" ? 15 : 8;
  return o;
}

double percent_right(const std::vector<std::int32_t>& answers, const Dataset& data) {
  std::size_t right = 0;
  for (std::size_t i = 0; i < answers.size(); ++i) right += answers[i] == data.labels[i];
  return 100.0 * static_cast<double>(right) / static_cast<double>(answers.size());
}

/// The status that a network with so many right ends with.
int status_of(double percent, const Options& o) {
  if (percent >= o.at_least) return 0;
  std::fprintf(stderr, "%.2f %% right is less than the %g %% that --at-least asks for\n", percent,
               o.at_least);
  return 1;
}

/// Logits of all images from the exported file.
std::vector<float> run(const bitnet::ExecutionContext& context, const Predictor& predictor,
                       const Dataset& data) {
  constexpr std::int64_t kBatch = 100;
  if (predictor.image().height != data.height || predictor.image().width != data.width)
    throw Error(ErrorCode::kInvalidArgument, "the network is for images of another size");
  std::vector<float> logits;
  for (std::int64_t begin = 0; begin < data.count(); begin += kBatch) {
    const std::vector<float> part =
        predictor.logits(context, data.images(begin, std::min(data.count(), begin + kBatch)));
    logits.insert(logits.end(), part.begin(), part.end());
  }
  return logits;
}

/// What to train with and what to score.
std::pair<Dataset, Dataset> read_images(const Options& o) {
  Dataset training = read_dataset(o.data, "train"), scored;
  if (o.validate) {
    const std::int64_t left = training.count() - o.validate;
    if (left < 1) throw Error(ErrorCode::kInvalidArgument, "--validate leaves no image to train with");
    scored = training.part(left, training.count());
    training = training.part(0, left);
  } else {
    scored = read_dataset(o.data, "t10k");
  }
  if (o.images) training = training.part(0, std::min(o.images, training.count()));
  return {std::move(training), std::move(scored)};
}

int train_and_export(const Options& o) {
  if (!o.save.empty()) bitnet::AtomicFile probe(o.save);  // an error now, not after the training
  const std::pair<Dataset, Dataset> images = read_images(o);
  const Dataset &training = images.first, &test = images.second;
  const bitnet::ExecutionContext context;
  Classifier classifier(context, o.model, {training.height, training.width, 1}, o.precision == "ternary",
                        o.training.seed);
  std::int64_t parameters = 0;
  for (const auto* p : classifier.parameters()) parameters += p->rows() * p->cols();
  std::printf("%s, %s: %lld parameters, %lld of them ternary; %lld images, %lld to score; %s, threads: %zu\n",
              o.model.c_str(), o.precision.c_str(), static_cast<long long>(parameters),
              static_cast<long long>(classifier.ternary_weights()), static_cast<long long>(training.count()),
              static_cast<long long>(test.count()), std::string(to_string(context.isa())).c_str(),
              context.threads());
  const auto start = std::chrono::steady_clock::now();
  std::vector<float> logits;
  train(context, classifier, training, o.training, [&](std::int64_t epoch, double loss) {
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    logits = evaluate(context, classifier, test);
    std::printf("epoch %lld of %lld: loss %.4f, %.2f %% right, %.0f s\n", static_cast<long long>(epoch + 1),
                static_cast<long long>(o.training.epochs), loss, percent_right(answers(logits), test),
                seconds.count());
    std::fflush(stdout);
  });
  const int status = status_of(percent_right(answers(logits), test), o);
  if (o.save.empty()) return status;
  classifier.save(o.save);
  const std::vector<float> again = run(context, Predictor::load(context, o.save), test);
  const auto ours = answers(logits), theirs = answers(again);
  std::size_t same = 0;
  for (std::size_t i = 0; i < ours.size(); ++i) same += ours[i] == theirs[i];
  std::printf(
      "%s: %llu bytes; run by bitnet-quant: %.2f %% right, %zu of %zu predictions the same, logits %s\n",
      o.save.c_str(), static_cast<unsigned long long>(std::filesystem::file_size(o.save)),
      percent_right(theirs, test), same, ours.size(), logits == again ? "to the bit" : "differ");
  return same == ours.size() ? status : 1;
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc == 2 && std::strcmp(argv[1], "--help") == 0) {
    std::fputs(kUsage, stdout);
    return 0;
  }
  const Options options = parse(argc, argv);
  if (options.run.empty()) return train_and_export(options);
  const bitnet::ExecutionContext context;
  const Predictor predictor = Predictor::load(context, options.run);
  const Dataset test = read_dataset(options.data, "t10k");
  const auto start = std::chrono::steady_clock::now();
  const std::vector<float> logits = run(context, predictor, test);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  const double percent = percent_right(answers(logits), test);
  std::printf("%.2f %% of %lld right, %.0f images/s\n", percent, static_cast<long long>(test.count()),
              static_cast<double>(test.count()) / seconds.count());
  return status_of(percent, options);
} catch (const std::exception& e) {
  std::fprintf(stderr, "%s\n", e.what());
  return 1;
}
