// The option table and the checks of values against it; see options.hpp.
#include "options.hpp"

#include <charconv>
#include <cmath>

#include "bitnet/inference/generation.hpp"
#include "bitnet/inference/sampler.hpp"

namespace bitnet::cli {

namespace opt {
namespace {
constexpr std::string_view kModelGroup = "Model and machine", kInputGroup = "Input",
                           kSamplingGroup = "Sampling", kOutputGroup = "Output", kCommonGroup = "Common";
}  // namespace

// clang-format off
const Option kModel{kModelGroup, "model", 'm', Kind::kText, "MODEL", "GGUF file or Hugging Face directory", "", "model", "BITNET_MODEL"};
const Option kQuantize{kModelGroup, "quantize", 0, Kind::kChoice, "absmean", "make the linear weights of a float model ternary while loading; this destroys a model that was not trained for it", "", "quantize"};
const Option kHeadType{kModelGroup, "head-type", 0, Kind::kChoice, "auto|int8|f16|stored", "type of the output head and the embeddings while running: int8 with a scale a row, f16, or as they are stored; auto: int8 where the linear weights are ternary, else as stored", "auto", "head_type"};
const Option kLora{kModelGroup, "lora", 0, Kind::kList, "PATH[:WEIGHT]", "LoRA adapter (a directory as PEFT writes it) to run beside the weights, WEIGHT times as strongly as it was trained; several add up", "", "lora"};
const Option kDevice{kModelGroup, "device", 0, Kind::kText, "NAME", "device to run on: cpu, auto, or a name that `bitnet devices` lists; several with commas between them divide the layers; opencl:0:0/1 is a part of opencl:0:0 (--sub-devices)", "cpu", "device", "BITNET_DEVICE"};
const Option kSubDevices{kModelGroup, "sub-devices", 0, Kind::kInteger, "N", "into how many equal parts a device is divided whose part --device names, as in opencl:0:0/1; without it: 2", "", "sub_devices", nullptr, 2, 1024};
const Option kDevicePolicy{kModelGroup, "device-policy", 0, Kind::kChoice, "latency|throughput|memory", "what --device auto looks for: one sequence fast, many at a time, or room for large ones", "latency", "device_policy"};
const Option kMeasure{kOutputGroup, "measure", 0, Kind::kFlag, "", "measure how fast each device reads its memory, too (a second or two)", "", ""};
const Option kDeviceOnly{kModelGroup, "device-only", 0, Kind::kFlag, "", "fail when an operation would have to run on the CPU instead of the device", "", "device_only"};
const Option kGpuLayers{kModelGroup, "gpu-layers", 0, Kind::kText, "N|auto|all", "how many of the model's layers, the last ones, run on the device, the others on the CPU; auto: as many as the device has memory for", "all", "gpu_layers"};
const Option kThreads{kModelGroup, "threads", 't', Kind::kInteger, "N", "worker threads; 0: as many as this process may use", "0", "threads", "BITNET_THREADS", 0, 1024};
const Option kIsa{kModelGroup, "isa", 0, Kind::kText, "NAME", "instruction set to use instead of the best one", "", "isa", "BITNET_ISA"};
const Option kMemoryLimit{kModelGroup, "memory-limit", 0, Kind::kText, "SIZE", "most memory of the host for weights, caches and buffers, e.g. 4GiB; of a device: --device-memory-limit", "", "memory_limit", "BITNET_MEMORY_LIMIT"};
const Option kDeviceMemoryLimit{kModelGroup, "device-memory-limit", 0, Kind::kText, "SIZE", "most memory for weights, caches and buffers on each device of --device, e.g. 4GiB; without it: all that the device has, though others may use it", "", "device_memory_limit"};
const Option kKvType{kModelGroup, "kv-type", 0, Kind::kChoice, "f16|i8|f32", "type of the KV cache: i8 takes half the memory of f16 and costs a little accuracy", "f16", "kv_type"};

const Option kPrompt{kInputGroup, "prompt", 'p', Kind::kText, "TEXT", "the prompt", "", "prompt"};
const Option kFile{kInputGroup, "file", 'f', Kind::kText, "FILE", "read the prompt from FILE; - is standard input", "", "file"};
const Option kSystem{kInputGroup, "system", 0, Kind::kText, "TEXT", "system message", "", "system"};
const Option kChatTemplate{kInputGroup, "chat-template", 0, Kind::kText, "NAME", "chat format to use instead of the model's own", "", "chat_template"};
const Option kSpecial{kInputGroup, "special", 0, Kind::kFlag, "", "turn text such as <|eot_id|> into the special token, and show special tokens", "", "special"};
const Option kEcho{kInputGroup, "echo", 0, Kind::kFlag, "", "write the prompt before the text", "", "echo"};
const Option kCtxSize{kInputGroup, "ctx-size", 'c', Kind::kInteger, "N", "tokens of context; 0: what the model was trained for, at most 4096", "0", "ctx_size", nullptr, 0, 1 << 22};
const Option kBatchSize{kInputGroup, "batch-size", 'b', Kind::kInteger, "N", "sequences at a time; 0: as many as memory allows", "0", "batch_size", nullptr, 0, 4096};

const Option kMaxTokens{kSamplingGroup, "max-tokens", 'n', Kind::kInteger, "N", "tokens to write at most; -1: until the context is full", "128", "max_tokens", nullptr, -1, 1 << 24};
const Option kTemperature{kSamplingGroup, "temp", 0, Kind::kReal, "X", "temperature; 0: always the most likely token", "0.8", "temperature", nullptr, 0, 100};
const Option kTopK{kSamplingGroup, "top-k", 0, Kind::kInteger, "N", "choose among the N most likely tokens; 0: all", "40", "top_k", nullptr, 0, 1 << 24};
const Option kTopP{kSamplingGroup, "top-p", 0, Kind::kReal, "X", "choose among the most likely tokens that reach this probability together; 1: all", "0.95", "top_p", nullptr, 0.001, 1};
const Option kMinP{kSamplingGroup, "min-p", 0, Kind::kReal, "X", "leave out tokens less likely than X times the most likely one; 0: none", "0.05", "min_p", nullptr, 0, 1};
const Option kRepeatPenalty{kSamplingGroup, "repeat-penalty", 0, Kind::kReal, "X", "make tokens of the recent text less likely; 1: off", "1.0", "repeat_penalty", nullptr, 0.01, 100};
const Option kRepeatLastN{kSamplingGroup, "repeat-last-n", 0, Kind::kInteger, "N", "how many tokens count as recent", "64", "repeat_last_n", nullptr, 0, inference::SamplerOptions::kMaxRepeatLastN};
const Option kSeed{kSamplingGroup, "seed", 's', Kind::kInteger, "N", "seed of the random choices; without one it is random and printed", "", "seed", nullptr, 0};
const Option kStop{kSamplingGroup, "stop", 0, Kind::kList, "TEXT", "end before this text; may be given several times", "", "stop"};
const Option kDraft{kSamplingGroup, "draft", 0, Kind::kInteger, "N", "guess up to N tokens at a time from what followed the same words before, and check them in one pass: the same text, sooner where it repeats itself; 0: off", "0", "draft", nullptr, 0, inference::GenerationOptions::kMaxDraft};
const Option kDraftNgram{kSamplingGroup, "draft-ngram", 0, Kind::kInteger, "N", "how many tokens must agree for a guess of --draft", "3", "draft_ngram", nullptr, 1, inference::GenerationOptions::kMaxDraftNgram};

const Option kInput{kInputGroup, "input", 'i', Kind::kText, "FILE", "prompts: .txt (one a line), .json, .jsonl or .csv", "", "input"};
const Option kOutput{kOutputGroup, "output", 'o', Kind::kText, "FILE", "records: .jsonl, .json or .csv; - writes jsonl to standard output", "", "output"};
const Option kResume{kOutputGroup, "resume", 0, Kind::kFlag, "", "keep the records of FILE that are complete and do the others", "", "resume"};
const Option kTruncate{kInputGroup, "truncate", 0, Kind::kChoice, "none|left|right", "cut prompts that leave no room for --max-tokens in the context: their beginning (left; the begin-of-text token stays) or their end; of a chat the longest messages, each there; none: too long a prompt is that item's error", "none", "truncate"};

const Option kReplicas{kModelGroup, "replicas", 0, Kind::kFlag, "", "load the whole model on each of the devices of --device, which share the items, instead of dividing its layers among them", "", "replicas"};

const Option kPplFile{kInputGroup, "file", 'f', Kind::kText, "FILE", "text to measure on; - is standard input", "", "file"};
const Option kPplContext{kInputGroup, "ctx-size", 'c', Kind::kInteger, "N", "tokens a chunk; the second half of each is scored", "512", "ctx_size", nullptr, 8, 1 << 22};
const Option kPplChunks{kInputGroup, "chunks", 0, Kind::kInteger, "N", "chunks to measure at most; 0: all", "0", "chunks", nullptr, 0};
const Option kPplLines{kInputGroup, "lines", 0, Kind::kFlag, "", "each line is a text of its own, read from its beginning and scored whole but for its first token; short ones are evaluated together", "", "lines"};
const Option kProfile{kOutputGroup, "profile", 0, Kind::kText, "FILE", "write where the time goes: FILE is a trace for chrome://tracing or ui.perfetto.dev, and a table goes to standard error", "", "profile"};
const Option kStatistics{kOutputGroup, "statistics", 0, Kind::kText, "FILE", "write what the run took and did as JSON: tokens, seconds, pools of memory, and of a device launches and copies, with --verbose or --profile their bandwidth and the time of each kernel", "", ""};
const Option kTokenizeModel{kModelGroup, "model", 'm', Kind::kText, "MODEL", "GGUF file (vocabulary-only will do), directory with a tokenizer.json, or a tokenizer file", "", "", "BITNET_MODEL"};
const Option kTokenizeFile{kInputGroup, "file", 'f', Kind::kText, "FILE", "read the text (with --decode: the ids) from FILE; - is standard input", "", ""};
const Option kIds{kOutputGroup, "ids", 0, Kind::kFlag, "", "write only the ids, separated by spaces", "", ""};
const Option kNoBos{kInputGroup, "no-bos", 0, Kind::kFlag, "", "do not put the begin-of-text token first", "", ""};
const Option kStats{kOutputGroup, "stats", 0, Kind::kFlag, "", "write figures of the text: tokens, bytes a token, lengths of its lines, entropy, the most frequent tokens", "", ""};
const Option kDecode{kInputGroup, "decode", 0, Kind::kFlag, "", "the input is ids separated by spaces or commas: write their text", "", ""};

const Option kJson{kOutputGroup, "json", 0, Kind::kFlag, "", "write JSON", "", ""};
const Option kConvertType{kOutputGroup, "type", 0, Kind::kChoice, "hf|i2_s|tq1_0|tq2_0|extended|f16|bf16|f32", "type of the linear weights; hf and extended (linears of any kind, docs/formats/extended.md) are Hugging Face directories, the others GGUF files; f16, bf16 and f32 are for models that are not ternary. Without it: what IN has, in the container that OUT's name says", "", ""};
const Option kQuantizeType{kOutputGroup, "type", 0, Kind::kChoice, "hf|i2_s|tq1_0|tq2_0|extended", "type to write; hf is a Hugging Face directory, extended one of our own that holds linears of any kind (docs/formats/extended.md), the others are GGUF files", "i2_s", ""};
const Option kDenseType{kOutputGroup, "dense-type", 0, Kind::kChoice, "f16|bf16|f32", "type of embeddings and of the output head", "f16", ""};
const Option kConvertDenseType{kOutputGroup, "dense-type", 0, Kind::kChoice, "f16|bf16|f32", "type of embeddings, of the output head and of float linears. Without it: the narrowest that holds those of IN exactly", "", ""};
const Option kMethod{kInputGroup, "method", 0, Kind::kChoice, "absmean|ls|ls+refit|gptq", "how weights become ternary; ls+refit and gptq need --calibrate or --calibration; --plan knows more methods", "absmean", ""};
const Option kScales{kInputGroup, "scales", 0, Kind::kChoice, "tensor|row|group32|group64|group128|group256", "how many scales: one a tensor, a row (tq1_0, tq2_0 and extended) or a group of columns (extended; group256 tq1_0 and tq2_0 too)", "tensor", ""};
const Option kPlan{kInputGroup, "plan", 0, Kind::kText, "FILE", "yaml that says what becomes of which linear, as in configs/quant/", "", ""};
const Option kCalibrate{kInputGroup, "calibrate", 0, Kind::kText, "TEXT", "file of text whose activations in the model say which errors matter; - is standard input", "", ""};
const Option kCalibrationTokens{kInputGroup, "calibration-tokens", 0, Kind::kInteger, "N", "tokens of --calibrate and --evaluate to read at most, in windows of 512 spread over the text", "16384", "", nullptr, 2, 1e9};
const Option kThroughQuantised{kInputGroup, "through-quantised", 0, Kind::kFlag, "", "calibrate each layer on what the quantised layers before it give; reads the text once a layer", "", ""};
const Option kSaveCalibration{kOutputGroup, "save-calibration", 0, Kind::kText, "FILE", "keep what --calibrate found, for --calibration", "", ""};
const Option kCalibration{kInputGroup, "calibration", 0, Kind::kText, "FILE", "what --save-calibration kept", "", ""};
const Option kForeignCalibration{kInputGroup, "foreign-calibration", 0, Kind::kFlag, "", "take --calibration though another model of the same sizes was calibrated", "", ""};
const Option kEvaluate{kInputGroup, "evaluate", 0, Kind::kText, "TEXT", "file of text to measure on: quantize compares both models on it at the end (perplexity, KL divergence, first choices), plan runs its trials on it instead of on that of --calibrate", "", ""};
const Option kPlanMethod{kInputGroup, "method", 0, Kind::kChoice, "absmean|ls|ls+refit|gptq|two-plane|int8", "what linears become where nothing else is chosen", "gptq", ""};
const Option kPlanScales{kInputGroup, "scales", 0, Kind::kChoice, "tensor|row|group32|group64|group128|group256", "how many scales those get", "row", ""};
const Option kBudgetSize{kInputGroup, "budget-size", 0, Kind::kText, "SIZE", "most bytes for all tensors of the model, e.g. 40MiB", "", ""};
const Option kBudgetPerplexity{kInputGroup, "budget-perplexity", 0, Kind::kReal, "X", "most times the original's perplexity on the text, e.g. 1.05", "", "", nullptr, 0.001, 1000};
const Option kCandidates{kInputGroup, "candidates", 0, Kind::kText, "LIST", "what each linear may become beside --method or --plan: methods, each perhaps with scales as in gptq:group64", "two-plane,int8", ""};
const Option kEstimate{kInputGroup, "estimate", 0, Kind::kFlag, "", "judge candidates by the error of the linear's own output and not by running the model", "", ""};
const Option kSensitivity{kOutputGroup, "sensitivity", 0, Kind::kText, "FILE", "keep what was measured of each linear; a FILE that is there is not measured again, and gone on with where it ends", "", ""};
const Option kWork{kOutputGroup, "work", 0, Kind::kText, "DIR", "keep finished layers in DIR, so that the same call goes on after a crash; to be removed by hand", "", ""};
const Option kQuantReport{kOutputGroup, "report", 0, Kind::kText, "FILE", "write what was lost, for each linear and in all: as JSON, and where FILE ends in .html as a page with charts, the JSON beside it", "", ""};
const Option kShardSize{kOutputGroup, "shard-size", 0, Kind::kText, "SIZE", "with --type hf: several files of at most SIZE (as in 4GiB) and their index, where one would be larger", "", ""};
const Option kTuningAfter{kInputGroup, "tune-steps", 0, Kind::kInteger, "N", "then train scales and norms, trits as they are, for N steps towards IN's predictions, as `bitnet tune-scales` does; 0: none", "0", "", nullptr, 0, 1000000};
const Option kTuningText{kInputGroup, "tune-text", 0, Kind::kText, "TEXT", "file of text for --tune-steps, read as that of --calibrate; without it that text", "", ""};
const Option kOriginal{kInputGroup, "original", 0, Kind::kText, "MODEL", "the model in full precision that IN was made of", "", ""};
const Option kTuningFile{kInputGroup, "file", 'f', Kind::kText, "FILE", "text to train on; - is standard input", "", ""};
const Option kTuningTokens{kInputGroup, "tokens", 0, Kind::kInteger, "N", "tokens of the text to read at most, in windows of 512 spread over it", "16384", "", nullptr, 2, 1e9};
const Option kTuningSteps{kInputGroup, "steps", 0, Kind::kInteger, "N", "steps to train for", "100", "", nullptr, 1, 1000000};
const Option kTuningRate{kInputGroup, "rate", 0, Kind::kReal, "X", "learning rate at its peak: about how much of itself a scale moves in a step", "0.003", "", nullptr, 1e-9, 1};
const Option kTuningBatch{kInputGroup, "batch", 0, Kind::kInteger, "N", "windows of the text a step", "4", "", nullptr, 1, 65536};
const Option kTuningTemperature{kInputGroup, "temperature", 0, Kind::kReal, "X", "divides both models' logits in their KL divergence", "1", "", nullptr, 0.001, 1000000};
const Option kCrossEntropy{kInputGroup, "cross-entropy", 0, Kind::kReal, "X", "weight of the text's own cross-entropy beside the KL divergence", "0", "", nullptr, 0, 1000000};
const Option kTuningSeed{kInputGroup, "seed", 's', Kind::kInteger, "N", "seed of the order of the windows", "1", "", nullptr, 0};
const Option kTuningParts{kInputGroup, "train", 0, Kind::kChoice, "scales|norms|scales+norms|all", "what is trained; all: embeddings and head as well", "scales+norms", ""};
const Option kTuningType{kOutputGroup, "type", 0, Kind::kChoice, "hf|i2_s|tq1_0|tq2_0|extended", "type of the linear weights, as quantize has it. Without it: what IN has, in the container that OUT's name says", "", ""};
const Option kCompareFile{kInputGroup, "file", 'f', Kind::kText, "FILE", "text to compare the models' predictions on; - is standard input", "", ""};
const Option kCompareContext{kInputGroup, "ctx-size", 'c', Kind::kInteger, "N", "tokens that are read from one beginning", "512", "", nullptr, 2, 1 << 22};
const Option kCompareTokens{kInputGroup, "tokens", 0, Kind::kInteger, "N", "tokens of the text to read at most, in windows of --ctx-size spread over it", "16384", "", nullptr, 2, 1e9};
const Option kScaleForm{kOutputGroup, "scale-form", 0, Kind::kChoice, "multiply|divide", "which way the weight_scale of --type hf goes", "multiply", ""};
const Option kTrainResume{kInputGroup, "resume", 0, Kind::kFlag, "", "continue from the newest checkpoint", "", ""};
const Option kDryRun{kInputGroup, "dry-run", 0, Kind::kFlag, "", "check everything, make two steps, say what the run would take, and write nothing", "", ""};
const Option kPlot{kInputGroup, "plot", 0, Kind::kFlag, "", "keep a page of curves, curves.html, in the output", "", ""};

const Option kSynthConfig{kInputGroup, "config", 0, Kind::kText, "FILE", "shape of the model: a config.json, as in configs/synth/", "", ""};
const Option kSynthType{kOutputGroup, "type", 0, Kind::kChoice, "hf|i2_s|tq1_0|tq2_0|f16|bf16|f32", "type of the linear weights; hf is a Hugging Face directory, the others are GGUF files", "i2_s", ""};
const Option kSynthOutput{kOutputGroup, "output", 'o', Kind::kText, "PATH", "file or directory to write", "", ""};
const Option kSynthSeed{kInputGroup, "seed", 's', Kind::kInteger, "N", "seed of the weights", "0", "", nullptr, 0};
const Option kSynthLayers{kInputGroup, "layers", 0, Kind::kInteger, "N", "write only N layers; 0: as many as the config says", "0", "", nullptr, 0, 100000};

const Option kBenchPrompt{kInputGroup, "n-prompt", 'p', Kind::kText, "N,…", "measure prompts of N tokens; 0: none", "512", ""};
const Option kBenchGen{kInputGroup, "n-gen", 'n', Kind::kText, "N,…", "measure the decoding of N tokens; 0: none", "128", ""};
const Option kBenchBatch{kInputGroup, "batch", 'b', Kind::kText, "N,…", "decode N sequences at a time", "1,4,16", ""};
const Option kBenchThreads{kModelGroup, "threads", 't', Kind::kText, "N,…", "worker threads; 0: as many as this process may use", "0", "", "BITNET_THREADS"};
const Option kBenchRepetitions{kInputGroup, "repetitions", 'r', Kind::kInteger, "N", "samples of each test, after one that is not counted", "5", "", nullptr, 1, 1000};
const Option kTracking{kInputGroup, "tracking", 0, Kind::kChoice, "none|basic|standard|detailed", "how much the memory pool writes down; detailed has a stack for each live block", "detailed", ""};
const Option kProfileOutput{kOutputGroup, "output", 'o', Kind::kText, "FILE", "write a page with charts (HTML)", "", ""};
const Option kBenchOutput{kOutputGroup, "output", 'o', Kind::kChoice, "md|csv|json", "what to write to standard output: a table, or figures for programs", "md", ""};

const Option kTuneDevice{kModelGroup, "device", 0, Kind::kText, "NAME", "OpenCL device to measure, as `bitnet devices` lists it: opencl:0:0", "", "", "BITNET_DEVICE"};
const Option kTuneModel{kModelGroup, "model", 'm', Kind::kText, "MODEL", "measure the shapes of this model's linears (GGUF file or Hugging Face directory); without it: those of the model that ships", "", "", "BITNET_MODEL"};
const Option kTuneRounds{kInputGroup, "rounds", 'r', Kind::kInteger, "N", "samples of each candidate, of which the median counts", "5", "", nullptr, 1, 1000};
const Option kTuneOutput{kOutputGroup, "output", 'o', Kind::kText, "FILE", "table to write, in which rows of other devices stay; - writes this device's to standard output. Without it: where devices find it, bitnet/opencl-tuning.yaml in XDG_DATA_HOME", "", ""};

const Option kConfig{kCommonGroup, "config", 0, Kind::kText, "FILE", "yaml file with values for these options (top_k: 20); options and environment win over it", "", ""};
const Option kVerbose{kCommonGroup, "verbose", 'v', Kind::kFlag, "", "say on standard error what is used: device and why, instruction set, threads, kind of weights", "", "verbose"};
const Option kHelp{kCommonGroup, "help", 'h', Kind::kFlag, "", "this text", "", ""};
// clang-format on
}  // namespace opt

const std::vector<const Option*>& sampling_options() {
  static const std::vector<const Option*> options{
      &opt::kMaxTokens,     &opt::kTemperature, &opt::kTopK, &opt::kTopP, &opt::kMinP,
      &opt::kRepeatPenalty, &opt::kRepeatLastN, &opt::kSeed, &opt::kStop};
  return options;
}

const std::vector<const Option*>& draft_options() {
  static const std::vector<const Option*> options{&opt::kDraft, &opt::kDraftNgram};
  return options;
}

std::optional<std::int64_t> parse_integer(std::string_view text) {
  if (text.starts_with('+')) text.remove_prefix(1);
  std::int64_t v = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), v);
  if (error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return v;
}

std::optional<double> parse_real(std::string_view text) {
  if (text.starts_with('+')) text.remove_prefix(1);
  double v = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), v);
  if (error != std::errc{} || end != text.data() + text.size() || !std::isfinite(v)) return std::nullopt;
  return v;
}

namespace {

std::string shorten(std::string_view text) {
  return text.size() <= 60 ? std::string(text) : std::string(text.substr(0, 57)) + "…";
}

std::string number_text(double v) {
  char buffer[32];
  if (v == std::trunc(v) && std::abs(v) < 1e15) return std::to_string(static_cast<std::int64_t>(v));
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, v).ptr;
  return std::string(buffer, end);
}

std::string range_text(const Option& o) {
  const bool low = std::isfinite(o.low), high = std::isfinite(o.high);
  if (low && high) return " from " + number_text(o.low) + " to " + number_text(o.high);
  if (low) return " of at least " + number_text(o.low);
  if (high) return " of at most " + number_text(o.high);
  return "";
}

bool is_choice(std::string_view words, std::string_view text) {
  while (!words.empty()) {
    const std::size_t bar = words.find('|');
    if (words.substr(0, bar) == text) return true;
    words = bar == std::string_view::npos ? std::string_view{} : words.substr(bar + 1);
  }
  return false;
}

[[noreturn]] void refuse(std::string_view where, const std::string& expected, std::string_view text,
                         SourceLocation place = SourceLocation::current()) {
  throw Error(ErrorCode::kInvalidArgument,
              std::string(where) + ": expected " + expected + ", got '" + shorten(text) + "'", place);
}

}  // namespace

void check_value(const Option& option, std::string_view text, std::string_view where) {
  switch (option.kind) {
    case Kind::kFlag:
      if (text != "true" && text != "false") refuse(where, "true or false", text);
      return;
    case Kind::kInteger: {
      const auto v = parse_integer(text);
      if (!v || static_cast<double>(*v) < option.low || static_cast<double>(*v) > option.high)
        refuse(where, "a whole number" + range_text(option), text);
      return;
    }
    case Kind::kReal: {
      const auto v = parse_real(text);
      if (!v || *v < option.low || *v > option.high) refuse(where, "a number" + range_text(option), text);
      return;
    }
    case Kind::kChoice:
      if (!is_choice(option.value, text)) {
        std::string words(option.value);
        for (std::size_t at = 0; (at = words.find('|', at)) != std::string::npos; at += 2)
          words.replace(at, 1, ", ");
        refuse(where, (words.find(',') == std::string::npos ? "" : "one of ") + words, text);
      }
      return;
    case Kind::kList:
      if (text.empty()) refuse(where, "text that is not empty", text);
      return;
    case Kind::kText:
      return;
  }
}

void Values::set(const Option& option, std::string_view text, Origin origin, std::string_view where) {
  try {
    check_value(option, text, where);
  } catch (const Error& e) {
    if (origin == Origin::kCommandLine) throw UsageError(e.what());
    throw;
  }
  const auto found = entries_.find(&option);
  if (found != entries_.end() && found->second.origin > origin) return;
  const bool grows = option.kind == Kind::kList && found != entries_.end() && found->second.origin == origin;
  Entry& entry = entries_[&option];
  if (!grows) entry.texts.clear();
  entry.texts.emplace_back(text);
  entry.origin = origin;
}

bool Values::has(const Option& option) const { return entries_.contains(&option); }

bool Values::given(const Option& option) const {
  const auto found = entries_.find(&option);
  return found != entries_.end() && found->second.origin != Origin::kDefault;
}

Origin Values::origin(const Option& option) const {
  const auto found = entries_.find(&option);
  return found == entries_.end() ? Origin::kDefault : found->second.origin;
}

const Values::Entry& Values::at(const Option& option) const {
  const auto found = entries_.find(&option);
  if (found == entries_.end())
    throw Error(ErrorCode::kInternal,
                "option --" + std::string(option.name) + " has no value and no default");
  return found->second;
}

bool Values::flag(const Option& option) const { return has(option) && at(option).texts.back() == "true"; }

std::string Values::text(const Option& option) const { return has(option) ? at(option).texts.back() : ""; }

std::int64_t Values::integer(const Option& option) const {
  return parse_integer(at(option).texts.back()).value();
}

double Values::real(const Option& option) const { return parse_real(at(option).texts.back()).value(); }

std::vector<std::string> Values::list(const Option& option) const {
  return has(option) ? at(option).texts : std::vector<std::string>{};
}

}  // namespace bitnet::cli
