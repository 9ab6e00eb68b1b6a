// Loader: tensors → prepared weights on a backend. Matrices of files are decoded row by row as the backend
// repacks them: none is ever whole in memory.
#include "bitnet/inference/model.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <utility>

#include "bitnet/core/error.hpp"
#include "bitnet/core/profiler.hpp"
#include "layer_placement.hpp"
#include "model_weights.hpp"

namespace bitnet::inference {

namespace {

/// What a table that a valid policy stores so is called.
HeadType table_type(const Precision& precision) noexcept {
  if (!precision.storage) return HeadType::kStored;
  return *precision.storage == DType::kI8 ? HeadType::kInt8 : HeadType::kF16;
}

/// The policy of a model: the options', else the default; checked before anything is read.
PrecisionPolicy resolve_precision(const LoadOptions& options, bool ternary, bool tied) {
  PrecisionPolicy policy = options.precision.value_or(PrecisionPolicy::inference(ternary));
  if (options.head == HeadType::kInt8) policy.set_tables(DType::kI8);
  if (options.head == HeadType::kF16) policy.set_tables(DType::kF16);
  if (options.head == HeadType::kStored) policy.set_tables(std::nullopt);
  policy.validate(Workload::kInference);
  const Precision &embedding = policy.at(OpClass::kEmbedding), &head = policy.at(OpClass::kHead);
  if (tied && embedding.storage != head.storage) {
    throw Error(ErrorCode::kUnsupported,
                fmt::format("precision of embedding: {}; of head: {}; in this model they are one table",
                            to_string(embedding), to_string(head)));
  }
  return policy;
}

}  // namespace

/// Turns tensors into weights; counts what it saw.
class ModelBuilder {
 public:
  ModelBuilder(const ModelConfig& config, Backend& backend, const PrecisionPolicy& precision)
      : config_(config), backend_(backend), precision_(precision) {
    weights_.layers.resize(static_cast<std::size_t>(config.n_layers));
  }

  /// Of a model that is there; what is added takes the place of its weights.
  ModelBuilder(const ModelConfig& config, Backend& backend, const PrecisionPolicy& precision,
               const ModelWeights& weights)
      : config_(config), backend_(backend), precision_(precision), weights_(weights) {}

  void add(const quant::LogicalTensor& t) {
    if (!begin(t)) return upload(t);
    LinearWeights w;
    w.out = t.shape[0];
    w.in = t.shape[1];
    w.trits = t.weights.trits;
    w.scales = t.weights.scales;
    w.rows_per_scale = t.weights.rows_per_scale;
    w.cols_per_scale = t.weights.cols_per_scale;
    w.dense = t.dense;
    w.dense_type = t.dtype;
    if (t.planes) {
      w = plane(t.planes->first);
      w.second = std::make_shared<const LinearWeights>(plane(t.planes->second));
    }
    w.activations = t.activations;
    if (!t.int8) return prepare(t.id, w);
    const std::vector<float> values = t.to_f32();
    w.dense = std::as_bytes(std::span(values));
    w.dense_type = DType::kF32;
    w.dense_form = DenseForm::kInt8;
    prepare(t.id, w);
  }

  /// Matrices only; norms come whole.
  void add(const quant::TensorRows& t) {
    begin(t);
    prepare(t.id, t.weights());
  }

  ModelWeights finish() {
    if (weights_.head == nullptr) weights_.head = weights_.embedding;
    return std::move(weights_);
  }
  bool ternary() const noexcept { return ternary_; }
  std::int64_t n_parameters() const noexcept { return n_parameters_; }
  std::size_t bytes() const noexcept { return bytes_; }

 private:
  static LinearWeights plane(const quant::TernaryWeights& t) {
    LinearWeights w;
    w.out = t.out;
    w.in = t.in;
    w.trits = t.trits;
    w.scales = t.scales;
    w.rows_per_scale = t.rows_per_scale;
    w.cols_per_scale = t.cols_per_scale;
    return w;
  }

  /// Checks a tensor and counts it; false for a norm.
  template <class Tensor>
  bool begin(const Tensor& t) {
    const Shape expected = tensor_shape(t.id, config_);
    if (!(t.shape == expected)) {
      throw Error(ErrorCode::kInvalidArgument,
                  fmt::format("tensor '{}': expected shape {}, got {}", gguf_name(t.id), expected.to_string(),
                              t.shape.to_string()));
    }
    if (t.ternary && !is_linear(t.id.role)) {
      throw Error(ErrorCode::kInvalidArgument,
                  fmt::format("tensor '{}': only linears can be ternary", gguf_name(t.id)));
    }
    n_parameters_ += t.shape.numel();
    ternary_ = ternary_ || t.ternary;
    return !is_norm(t.id.role);
  }

  void prepare(TensorId id, const LinearWeights& w) {
    const Placed placed(backend_, id);
    PreparedPtr prepared = is_linear(id.role) ? backend_.prepare(w) : prepare_table(id, w);
    ternary_ = ternary_ || (is_linear(id.role) && w.ternary());
    bytes_ += prepared->bytes();
    PreparedPtr& slot = is_linear(id.role)                       ? linear_slot(id)
                        : id.role == TensorRole::kTokenEmbedding ? weights_.embedding
                                                                 : weights_.head;
    slot = std::move(prepared);
  }

  PreparedPtr prepare_table(TensorId id, LinearWeights w) {
    const bool embedding = id.role == TensorRole::kTokenEmbedding;
    const HeadType type = table_type(precision_.at(embedding ? OpClass::kEmbedding : OpClass::kHead));
    if (type == HeadType::kInt8) w.dense_form = DenseForm::kInt8;
    if (type == HeadType::kF16) w.dense_form = DenseForm::kF16;
    return with_context(fmt::format("tensor '{}' (head type {})", gguf_name(id), to_string(type)),
                        [&] { return backend_.prepare_embedding(w); });
  }

  void upload(const quant::LogicalTensor& t) {
    const std::vector<float> values = t.to_f32();
    const Placed placed(backend_, t.id);
    BufferPtr buffer = backend_.allocate(values.size() * sizeof(float), "weights");
    backend_.upload(*buffer, 0, std::as_bytes(std::span<const float>(values)));
    bytes_ += buffer->bytes();
    norm_slot(t.id) = std::move(buffer);
  }

  LayerWeights& layer(TensorId id) { return weights_.layers.at(static_cast<std::size_t>(id.layer)); }

  BufferPtr& norm_slot(TensorId id) {
    switch (id.role) {
      case TensorRole::kOutputNorm:
        return weights_.output_norm;
      case TensorRole::kAttnNorm:
        return layer(id).attn_norm;
      case TensorRole::kAttnSubNorm:
        return layer(id).attn_sub_norm;
      case TensorRole::kFfnNorm:
        return layer(id).ffn_norm;
      default:
        return layer(id).ffn_sub_norm;
    }
  }

  PreparedPtr& linear_slot(TensorId id) {
    switch (id.role) {
      case TensorRole::kAttnQ:
        return layer(id).q;
      case TensorRole::kAttnK:
        return layer(id).k;
      case TensorRole::kAttnV:
        return layer(id).v;
      case TensorRole::kAttnOutput:
        return layer(id).o;
      case TensorRole::kFfnGate:
        return layer(id).gate;
      case TensorRole::kFfnUp:
        return layer(id).up;
      default:
        return layer(id).down;
    }
  }

  const ModelConfig& config_;
  Backend& backend_;
  const PrecisionPolicy precision_;
  ModelWeights weights_;
  bool ternary_ = false;
  std::int64_t n_parameters_ = 0;
  std::size_t bytes_ = 0;
};

namespace {

std::vector<TokenId> end_tokens(const ModelConfig& config, const Tokenizer* tokenizer) {
  std::vector<TokenId> ids;
  for (const std::int64_t id : config.eos_ids)
    if (id >= 0 && id < config.vocab_size) ids.push_back(static_cast<TokenId>(id));
  if (tokenizer != nullptr) ids.insert(ids.end(), tokenizer->eos().begin(), tokenizer->eos().end());
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

/// Tokens that were added after the model was made (a <pad>) may lie beyond its vocabulary: they never come,
/// and a prompt that holds one is refused. Ordinary tokens there mean that the two do not belong together.
void check_vocabulary(const ModelConfig& config, const Tokenizer& tokenizer,
                      std::vector<std::string>& notes) {
  const std::int64_t n = tokenizer.vocab_size();
  for (std::int64_t id = config.vocab_size; id < n; ++id) {
    const TokenType type = tokenizer.type(static_cast<TokenId>(id));
    if (type == TokenType::kControl || type == TokenType::kUserDefined || type == TokenType::kUnused)
      continue;
    throw Error(ErrorCode::kCorruptFile,
                fmt::format("the tokenizer has {} tokens, but the model's vocabulary "
                            "only {}, and token {} is no added one",
                            n, config.vocab_size, id));
  }
  if (n > config.vocab_size) {
    notes.push_back(fmt::format("the tokenizer's added tokens {} … {} are beyond the model's vocabulary",
                                config.vocab_size, n - 1));
  }
}

/// Whatever the config says: packed linears stay ternary where float ones are kept.
bool has_ternary_linears(const quant::ModelReader& reader) {
  const std::vector<TensorId> ids = reader.tensors();
  return std::any_of(ids.begin(), ids.end(),
                     [&](TensorId id) { return is_linear(id.role) && !reader.float_type(id); });
}

std::string loading(const std::filesystem::path& path) {
  return fmt::format("loading model '{}'", path.string());
}

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

void check_config(const ModelConfig& config) {
  config.validate();
  if (config.input_norms) {
    throw Error(ErrorCode::kUnsupported,
                "models with an RMSNorm of each linear's own (use_rms_norm) cannot run");
  }
  if (config.vocab_size > std::numeric_limits<TokenId>::max()) {
    throw Error(ErrorCode::kUnsupported, fmt::format("vocab_size {} is over 2^31 − 1", config.vocab_size));
  }
}

}  // namespace

std::string_view to_string(HeadType type) noexcept {
  switch (type) {
    case HeadType::kInt8:
      return "int8";
    case HeadType::kF16:
      return "f16";
    case HeadType::kStored:
      return "stored";
    default:
      return "auto";
  }
}

HeadType resolve_head(HeadType asked, bool ternary) noexcept {
  return asked != HeadType::kAuto ? asked
                                  : table_type(PrecisionPolicy::inference(ternary).at(OpClass::kHead));
}

Model::Model() = default;
Model::~Model() = default;

std::shared_ptr<Model> Model::make(const ModelConfig& config, std::shared_ptr<const Tokenizer> tokenizer,
                                   std::shared_ptr<Backend> backend, const PrecisionPolicy& precision,
                                   const Feed& feed) {
  check_config(config);
  std::shared_ptr<Model> model(new Model());
  if (tokenizer != nullptr) check_vocabulary(config, *tokenizer, model->notes_);
  model->config_ = config;
  model->tokenizer_ = std::move(tokenizer);
  model->backend_ = std::move(backend);
  model->eos_ = end_tokens(config, model->tokenizer_.get());
  model->precision_ = precision;
  ModelBuilder builder(model->config_, *model->backend_, precision);
  for (const TensorId id : model_tensors(config)) feed(id, builder);
  model->weights_ = std::make_unique<const ModelWeights>(builder.finish());
  model->ternary_ = builder.ternary();
  model->n_parameters_ = builder.n_parameters();
  model->weight_bytes_ = builder.bytes();
  return model;
}

std::shared_ptr<const Model> Model::build(const ModelConfig& config,
                                          std::shared_ptr<const Tokenizer> tokenizer,
                                          std::shared_ptr<Backend> backend,
                                          const std::function<quant::LogicalTensor(TensorId)>& source,
                                          const LoadOptions& options) {
  const auto feed = [&](TensorId id, ModelBuilder& builder) {
    quant::LogicalTensor tensor = source(id);
    tensor.id = id;
    builder.add(tensor);
  };
  const bool ternary = config.weights == WeightKind::kTernary;
  const PrecisionPolicy precision = resolve_precision(options, ternary, config.tied_embeddings);
  return make(config, std::move(tokenizer), std::move(backend), precision, feed);
}

std::shared_ptr<const Model> Model::with_linears(
    const std::function<std::optional<quant::LogicalTensor>(TensorId)>& linear) const {
  std::shared_ptr<Model> model(new Model());
  model->config_ = config_;
  model->tokenizer_ = tokenizer_;
  model->backend_ = backend_;
  model->eos_ = eos_;
  model->precision_ = precision_;
  model->n_parameters_ = n_parameters_;
  model->notes_ = notes_;
  model->load_seconds_ = load_seconds_;
  ModelBuilder builder(model->config_, *model->backend_, precision_, *weights_);
  for (const TensorId id : model_tensors(config_)) {
    if (!is_linear(id.role)) continue;
    if (auto tensor = linear(id)) {
      tensor->id = id;
      builder.add(*tensor);
    }
  }
  model->weights_ = std::make_unique<const ModelWeights>(builder.finish());
  model->ternary_ = false;
  model->weight_bytes_ = weight_bytes_;
  for (std::size_t i = 0; i < weights_->layers.size(); ++i) {
    const LayerWeights &before = weights_->layers[i], &after = model->weights_->layers[i];
    for (PreparedPtr LayerWeights::*w :
         {&LayerWeights::q, &LayerWeights::k, &LayerWeights::v, &LayerWeights::o, &LayerWeights::gate,
          &LayerWeights::up, &LayerWeights::down}) {
      model->ternary_ = model->ternary_ || (after.*w)->ternary();
      model->weight_bytes_ += (after.*w)->bytes() - (before.*w)->bytes();
    }
  }
  return model;
}

ModelFiles ModelFiles::open(const std::filesystem::path& path, const LoadOptions& options) {
  const auto begin = std::chrono::steady_clock::now();
  ModelFiles files;
  files.path = path;
  files.options = options;
  with_context(loading(path), [&] {
    files.reader = quant::ModelReader::open(path, options.floats);
    const ModelConfig& config = files.reader->config();
    check_config(config);
    files.precision = resolve_precision(options, has_ternary_linears(*files.reader), config.tied_embeddings);
    files.tokenizer = files.reader->tokenizer();
    std::vector<std::string> ignored;  // Model::make() makes them again
    if (files.tokenizer != nullptr) check_vocabulary(config, *files.tokenizer, ignored);
  });
  files.seconds = seconds_since(begin);
  return files;
}

std::size_t ModelFiles::least_bytes() const {
  constexpr std::size_t kTritsPerByte = 5;  // docs/decisions/0002-one-tile-order.md
  std::size_t bytes = 0;
  for (const TensorId id : reader->tensors())
    if (is_linear(id.role) && !reader->float_type(id))
      bytes += static_cast<std::size_t>(tensor_shape(id, reader->config()).numel()) / kTritsPerByte;
  return bytes;
}

std::shared_ptr<const Model> Model::load(const std::filesystem::path& path, std::shared_ptr<Backend> backend,
                                         const LoadOptions& options) {
  return load(ModelFiles::open(path, options), std::move(backend));
}

std::shared_ptr<const Model> Model::load(const ModelFiles& files, std::shared_ptr<Backend> backend) {
  const auto begin = std::chrono::steady_clock::now();
  return with_context(loading(files.path), [&] {
    const ProfileZone zone(backend->profiler(), "load");
    const quant::ModelReader& reader = *files.reader;
    const auto total = static_cast<std::int64_t>(reader.tensors().size());
    std::int64_t done = 0;
    const auto feed = [&](TensorId id, ModelBuilder& builder) {
      if (is_norm(id.role))
        builder.add(reader.read(id));
      else
        builder.add(reader.rows(id));
      if (files.options.progress) files.options.progress(++done, total);
    };
    const auto model = make(reader.config(), files.tokenizer, std::move(backend), files.precision, feed);
    const std::vector<std::string> notes = reader.notes();
    model->notes_.insert(model->notes_.begin(), notes.begin(), notes.end());
    model->load_seconds_ = files.seconds + seconds_since(begin);
    return std::shared_ptr<const Model>(model);
  });
}

const Tokenizer& Model::require_tokenizer() const {
  if (tokenizer_ == nullptr) {
    throw Error(ErrorCode::kNotFound, "the model's files carry no tokenizer: only token ids can be used");
  }
  return *tokenizer_;
}

HeadType Model::head_type() const noexcept { return table_type(precision_.at(OpClass::kHead)); }

DType Model::kv_type(std::optional<DType> asked) const {
  PrecisionPolicy policy = precision_;
  if (asked) policy.set_kv_type(*asked);
  policy.validate(Workload::kInference);
  return *policy.at(OpClass::kAttention).storage;
}

bool Model::is_eos(TokenId token) const noexcept {
  return std::binary_search(eos_.begin(), eos_.end(), token);
}

}  // namespace bitnet::inference
