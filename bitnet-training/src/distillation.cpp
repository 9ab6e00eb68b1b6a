// Losses against a teacher. The predictions' is kl_divergence() of losses.cpp.
#include "bitnet/training/distillation.hpp"

#include <algorithm>
#include <cmath>
#include <string>

#include "bitnet/training/losses.hpp"
#include "ops_common.hpp"

namespace bitnet::training {
namespace {

/// One document's rows of one head.
struct Head {
  const float* rows;
  std::int64_t stride, count, dim;
  float inv_sqrt() const { return 1.0f / std::sqrt(static_cast<float>(dim)); }
};

/// z [count, count] = softmax rows of A·Aᵀ / √d.
void relations(const F32Kernels& f, const Head& a, float* z, float* scratch) {
  f.gemm(a.count, a.count, a.dim, a.rows, a.stride, 1, a.rows, 1, a.stride, z, a.count, false, scratch);
  const auto n = static_cast<std::size_t>(a.count);
  for (std::int64_t i = 0; i < a.count; ++i) {
    float* row = z + i * a.count;
    f.scale(a.inv_sqrt(), row, n);
    const float largest = f.max(row, n), sum = f.exp_sum(row, largest, n);
    f.scale(1.0f / sum, row, n);
  }
}

/// Σ over rows of KL(p ‖ q); q becomes (q − p) · scale. Sums in double; p = 0 counts nothing, q at least
/// 1e-30.
double divergence(const float* p, float* q, std::size_t n, float scale) {
  double sum = 0;
  for (std::size_t i = 0; i < n; ++i) {
    if (p[i] > 0)
      sum += p[i] * (std::log(static_cast<double>(p[i])) - std::log(std::max<double>(q[i], 1e-30)));
    q[i] = (q[i] - p[i]) * scale;
  }
  return sum;
}

/// Where the document of row r of a sequence ends; r is no padding.
std::int64_t document_end(const std::int32_t* positions, std::int64_t r, std::int64_t length) {
  std::int64_t end = r + 1;
  while (end < length && (!positions || positions[end] > 0)) ++end;
  return end;
}

/// One head of one sequence: its loss, and d [rows, stride] of its columns.
double relation_item(const Tape& tape, Head student, Head teacher, const std::int32_t* positions,
                     std::int64_t length, float scale, float* d) {
  const F32Kernels& f = f32_of(tape);
  const auto square = static_cast<std::size_t>(length * length);
  const Scratch room(tape, f.gemm_scratch + 2 * square);
  float *q = room.data() + f.gemm_scratch, *p = q + square;
  double loss = 0;
  for (std::int64_t begin = 0, end = 0; begin < length; begin = end) {
    if (positions && positions[begin] < 0) {
      end = begin + 1;
      std::fill_n(d + begin * student.stride, student.dim, 0.0f);
      continue;
    }
    end = document_end(positions, begin, length);
    const Head s{student.rows + begin * student.stride, student.stride, end - begin, student.dim};
    const Head t{teacher.rows + begin * teacher.stride, teacher.stride, end - begin, teacher.dim};
    relations(f, s, q, room.data());
    relations(f, t, p, room.data());
    loss += divergence(p, q, static_cast<std::size_t>(s.count * s.count), scale * s.inv_sqrt());
    // z_ij = x_i·x_j / √d has both ends in x: dX = (G + Gᵀ)·X.
    float* to = d + begin * student.stride;
    f.gemm(s.count, s.dim, s.count, q, s.count, 1, s.rows, s.stride, 1, to, s.stride, false, room.data());
    f.gemm(s.count, s.dim, s.count, q, 1, s.count, s.rows, s.stride, 1, to, s.stride, true, room.data());
  }
  return loss;
}

std::int64_t late_layer(std::int64_t asked, std::int64_t layers, const char* whose) {
  BITNET_REQUIRE(
      asked >= -1 && asked < layers, "distillation",
      "layer " + std::to_string(asked) + " of the " + whose + ", which has " + std::to_string(layers));
  return asked >= 0 ? asked : std::max<std::int64_t>(0, layers - 2);
}

}  // namespace

Variable attention_relations(Tape& tape, Variable x, Variable teacher, std::int64_t heads,
                             const RowLayout& layout, float scale) {
  const std::int64_t length = layout.length;
  BITNET_REQUIRE(heads > 0 && x.cols() % heads == 0 && teacher.cols() % heads == 0 && length > 0 &&
                     x.rows() == teacher.rows() && x.rows() % length == 0,
                 "attention_relations",
                 dims(x) + " and the teacher's " + dims(teacher) + " in " + std::to_string(heads) + " heads");
  const std::int32_t* positions = checked_positions("attention_relations", layout, x.rows());
  Variable out = tape.make(1, 1, x.needs_grad());
  const std::int64_t items = x.rows() / length * heads, dim = x.cols() / heads,
                     their = teacher.cols() / heads;
  float* losses = tape.floats(static_cast<std::size_t>(items));
  float* gradient = tape.floats(x.value().size());
  const float each = scale / static_cast<float>(heads);
  for_rows(tape, items, 1, [&](std::int64_t item) {
    const std::int64_t row = item / heads * length, head = item % heads;
    losses[item] = static_cast<float>(relation_item(
        tape, {x.value().data() + row * x.cols() + head * dim, x.cols(), length, dim},
        {teacher.value().data() + row * teacher.cols() + head * their, teacher.cols(), length, their},
        positions ? positions + row : nullptr, length, each, gradient + row * x.cols() + head * dim));
  });
  double total = 0;
  for (std::int64_t i = 0; i < items; ++i) total += losses[i];
  out.value()[0] = static_cast<float>(total * each);
  Tape* t = &tape;
  tape.on_backward(out, [t, x, out, gradient] {
    const auto dx = t->grad_target(x);
    const float upstream = out.grad()[0];
    const auto cols = static_cast<std::size_t>(x.cols());
    for_rows(*t, x.rows(), 32, [&](std::int64_t r) {
      const auto at = static_cast<std::size_t>(r) * cols;
      if (dx.accumulate)
        f32_of(*t).axpy(upstream, gradient + at, dx.data + at, cols);
      else
        train_of(*t).scale_to(upstream, gradient + at, dx.data + at, cols);
    });
  });
  return out;
}

Distillation::Distillation(const ExecutionContext& context, std::unique_ptr<FrozenModel> teacher,
                           const ModelConfig& student, const DistillationOptions& options)
    : teacher_(std::move(teacher)), options_(options), tape_(context, false) {
  const ModelConfig& t = teacher_->config();
  BITNET_REQUIRE(t.vocab_size == student.vocab_size, "distillation",
                 "the teacher's vocabulary has " + std::to_string(t.vocab_size) + " tokens, the student's " +
                     std::to_string(student.vocab_size));
  if (options_.relation_heads == 0) options_.relation_heads = student.n_kv_heads;
  const std::int64_t h = options_.relation_heads;
  for (const ModelConfig* c : {&t, &student})
    BITNET_REQUIRE(options_.attention == 0 || (h > 0 && c->q_dim() % h == 0 && c->kv_dim() % h == 0),
                   "distillation",
                   std::to_string(h) + " relation heads do not divide widths of " +
                       std::to_string(c->q_dim()) + " and " + std::to_string(c->kv_dim()));
  states_.layer = late_layer(options_.layer, student.n_layers, "student");
  teacher_states_.layer = late_layer(options_.teacher_layer, t.n_layers, "teacher");
}

Variable Distillation::loss(Tape& tape, Variable logits, std::span<const std::int32_t> ids,
                            const RowLayout& layout, std::span<const std::int32_t> targets, float scale) {
  tape_.reset();
  const bool relates = options_.attention > 0;
  const Variable theirs = teacher_->forward(tape_, ids, layout, relates ? &teacher_states_ : nullptr);
  mask_.resize(targets.size());
  std::transform(targets.begin(), targets.end(), mask_.begin(),
                 [](std::int32_t t) { return static_cast<std::uint8_t>(t >= 0); });
  Variable total;
  const auto add_term = [&](Variable term) { total = total ? add(tape, total, term) : term; };
  if (options_.logits > 0)
    add_term(
        kl_divergence(tape, logits, theirs.value(), options_.temperature, scale * options_.logits, mask_));
  if (relates) {
    const auto relate = [&](Variable ours, Variable of_teacher) {
      add_term(attention_relations(tape, ours, of_teacher, options_.relation_heads, layout,
                                   scale * options_.attention));
    };
    relate(states_.q, teacher_states_.q);
    relate(states_.k, teacher_states_.k);
    relate(states_.v, teacher_states_.v);
  }
  return total;
}

void check_vocabulary(const char* who, const std::filesystem::path& model, const Tokenizer& ours, bool all) {
  std::shared_ptr<const Tokenizer> theirs;
  try {
    theirs = Tokenizer::load(model);
  } catch (const Error& e) {
    if (e.code() != ErrorCode::kNotFound && e.code() != ErrorCode::kUnsupported) throw;
    return;
  }
  const std::int64_t n = all ? std::max(ours.vocab_size(), theirs->vocab_size())
                             : std::min(ours.vocab_size(), theirs->vocab_size());
  const auto known = [](const Tokenizer& t, TokenId id) { return id < t.vocab_size(); };
  const auto name = [&](const Tokenizer& t, TokenId id) {
    return known(t, id) ? "'" + std::string(t.token(id)) + "'" : std::string("none");
  };
  for (TokenId id = 0; id < n; ++id)
    if (!known(ours, id) || !known(*theirs, id) ||
        ours.token_bytes(id, true) != theirs->token_bytes(id, true))
      throw Error(ErrorCode::kInvalidArgument, std::string(who) + " '" + model.string() +
                                                   "' has another vocabulary: token " + std::to_string(id) +
                                                   " is " + name(*theirs, id) + " there and " +
                                                   name(ours, id) + " here");
}

}  // namespace bitnet::training
