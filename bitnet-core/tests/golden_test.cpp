// Every tensor op against NumPy: the cases and bounds of tests/data/tensors, which make_goldens.py there
// makes and explains. What NumPy cannot show (errors, in-place forms, threads, ISAs against one another) is
// in ops_test.cpp and linalg_test.cpp.
#include <cmath>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "bitnet/core/indexing.hpp"
#include "bitnet/core/io/safetensors.hpp"
#include "bitnet/core/linalg.hpp"
#include "bitnet/core/ops.hpp"
#include "bitnet/core/precision.hpp"
#include "bitnet/core/reductions.hpp"
#include "bitnet/testing/testing.hpp"

namespace bitnet {
namespace {

using nlohmann::json;
using Tensors = std::vector<Tensor>;
using Op = std::function<Tensor(const ExecutionContext&, Tensors&, const json&)>;

DType dtype_of(SafeDType dtype) {
  switch (dtype) {
    case SafeDType::kF32:
      return DType::kF32;
    case SafeDType::kF16:
      return DType::kF16;
    case SafeDType::kBF16:
      return DType::kBF16;
    case SafeDType::kI8:
      return DType::kI8;
    case SafeDType::kI32:
      return DType::kI32;
    default:
      throw Error(ErrorCode::kInternal, "the goldens hold another dtype");
  }
}

class Goldens {
 public:
  Goldens()
      : arrays_(SafeTensors::open(testing::source_path("tests/data/tensors/goldens.safetensors"))),
        cases_(json::parse(std::ifstream(testing::source_path("tests/data/tensors/cases.json")))) {}
  const json& cases() const { return cases_; }
  /// A copy of the array, so that ops may write to it.
  Tensor array(const std::string& name) const {
    const SafeTensorInfo& info = *arrays_->find(name);
    Tensor t(dtype_of(info.dtype), Shape(info.shape));
    const auto data = arrays_->data(info);
    if (!data.empty()) std::memcpy(t.bytes().data(), data.data(), data.size());
    return t;
  }

 private:
  std::shared_ptr<const SafeTensors> arrays_;
  json cases_;
};

Tensor view(Tensor t, const json& steps) {
  for (const json& step : steps) {
    const auto& kind = step[0].get_ref<const std::string&>();
    if (kind == "slice") {
      t = t.slice(step[1], step[2], step[3], step[4]);
      continue;
    }
    const auto list = step[1].get<std::vector<std::int64_t>>();
    t = kind == "permute"   ? t.permute(list)
        : kind == "reshape" ? t.reshape(Shape(list))
                            : t.broadcast_to(Shape(list));
  }
  return t;
}

ops::Axes axes_of(const json& params) {
  ops::Axes axes;
  axes.all = false;
  axes.list = params["axes"].get<std::vector<std::int64_t>>();
  axes.keep_dims = params.value("keep_dims", false);
  return axes;
}

template <class E>
void add_enum(std::map<std::string, Op>& table, std::size_t count,
              Tensor (*call)(const ExecutionContext&, E, const Tensor&, const Tensor&)) {
  for (std::size_t i = 0; i < count; ++i) {
    const auto op = static_cast<E>(i);
    table[std::string(ops::to_string(op))] = [=](const ExecutionContext& c, Tensors& x, const json&) {
      return call(c, op, x[0], x[1]);
    };
  }
}

void add_moving(std::map<std::string, Op>& table) {
  using C = const ExecutionContext&;
  table["take"] = [](C c, Tensors& x, const json& p) { return ops::take(c, x[0], x[1], p["axis"]); };
  table["gather"] = [](C c, Tensors& x, const json& p) { return ops::gather(c, x[0], x[1], p["axis"]); };
  table["scatter"] = [](C c, Tensors& x, const json& p) {
    ops::scatter(c, x[0], x[1], x[2], p["axis"]);
    return x[0];
  };
  table["scatter_add"] = [](C c, Tensors& x, const json& p) {
    ops::scatter_add(c, x[0], x[1], x[2], p["axis"]);
    return x[0];
  };
  table["concat"] = [](C c, Tensors& x, const json& p) { return ops::concat(c, x, p["axis"]); };
  table["stack"] = [](C c, Tensors& x, const json& p) { return ops::stack(c, x, p["axis"]); };
  table["view"] = [](C, Tensors& x, const json&) { return x[0]; };
  table["cast"] = [](C, Tensors& x, const json& p) {
    return x[0].to(dtype_from_name(p["dtype"].get<std::string>()));
  };
  table["cast_ternary"] = [](C, Tensors& x, const json& p) {
    const DType to = dtype_from_name(p["dtype"].get<std::string>());
    const Tensor t = x[0].to(DType::kTernary);
    return to == DType::kTernary ? t.to(to).to(DType::kI8) : t.to(to);
  };
}

void add_linalg(std::map<std::string, Op>& table) {
  using C = const ExecutionContext&;
  table["solve"] = [](C c, Tensors& x, const json&) { return linalg::solve(c, x[0], x[1]); };
  table["inverse"] = [](C c, Tensors& x, const json&) { return linalg::inverse(c, x[0]); };
  table["cholesky"] = [](C c, Tensors& x, const json&) { return linalg::cholesky(c, x[0]); };
  table["eigenvalues"] = [](C c, Tensors& x, const json&) { return linalg::symmetric_eigen(c, x[0]).values; };
  table["singular_values"] = [](C c, Tensors& x, const json&) { return linalg::svd(c, x[0]).s; };
  table["qr_r"] = [](C c, Tensors& x, const json&) { return linalg::qr(c, x[0]).r; };
  table["least_squares"] = [](C c, Tensors& x, const json& p) {
    return linalg::least_squares(c, x[0], x[1], p.value("rcond", 0x1p-24)).x;
  };
  const auto scalar = [](double v) {
    return Tensor::of<float>({}, std::vector<float>{static_cast<float>(v)});
  };
  table["condition"] = [=](C, Tensors& x, const json&) { return scalar(linalg::condition(x[0])); };
  table["rcond_estimate"] = [=](C, Tensors& x, const json&) { return scalar(linalg::rcond_estimate(x[0])); };
}

std::map<std::string, Op> all_ops() {
  using C = const ExecutionContext&;
  std::map<std::string, Op> table;
  add_enum<ops::Binary>(table, 6, &ops::binary);
  add_enum<ops::Comparison>(table, 6, &ops::compare);
  for (std::size_t i = 0; i < 14; ++i) {
    const auto op = static_cast<ops::Unary>(i);
    table[std::string(to_string(op))] = [=](C c, Tensors& x, const json&) { return ops::unary(c, op, x[0]); };
  }
  for (std::size_t i = 0; i < 8; ++i) {
    const auto op = static_cast<ops::Reduction>(i);
    table[std::string(to_string(op))] = [=](C c, Tensors& x, const json& p) {
      return ops::reduce(c, op, x[0], axes_of(p));
    };
  }
  table["where"] = [](C c, Tensors& x, const json&) { return ops::where(c, x[0], x[1], x[2]); };
  table["clamp"] = [](C c, Tensors& x, const json& p) { return ops::clamp(c, x[0], p["low"], p["high"]); };
  table["argmax"] = [](C c, Tensors& x, const json& p) { return ops::argmax(c, x[0], p["axis"]); };
  table["argmin"] = [](C c, Tensors& x, const json& p) { return ops::argmin(c, x[0], p["axis"]); };
  table["softmax"] = [](C c, Tensors& x, const json& p) { return ops::softmax(c, x[0], p["axis"]); };
  table["log_softmax"] = [](C c, Tensors& x, const json& p) { return ops::log_softmax(c, x[0], p["axis"]); };
  table["rms_norm"] = [](C c, Tensors& x, const json& p) { return ops::rms_norm(c, x[0], x[1], p["eps"]); };
  table["layer_norm"] = [](C c, Tensors& x, const json& p) {
    return ops::layer_norm(c, x[0], x[1], x[2], p["eps"]);
  };
  table["matmul"] = [](C c, Tensors& x, const json&) { return ops::matmul(c, x[0], x[1]); };
  add_moving(table);
  add_linalg(table);
  return table;
}

/// Empty if `ours` is `golden` within the bound, else the first difference.
std::string difference(const Tensor& ours, const Tensor& golden, const Tensor* bound) {
  if (ours.dtype() != golden.dtype() || !(ours.shape() == golden.shape()))
    return std::string(to_string(ours.dtype())) + " " + ours.shape().to_string() + " instead of " +
           std::string(to_string(golden.dtype())) + " " + golden.shape().to_string();
  const Tensor a = ours.contiguous(), x = a.to(DType::kF32), y = golden.to(DType::kF32);
  const std::size_t size = bits_of(ours.dtype()) / 8;
  for (std::size_t i = 0; i < x.span<float>().size(); ++i) {
    const float u = x.span<float>()[i], v = y.span<float>()[i];
    if (std::isnan(u) && std::isnan(v)) continue;
    const auto bytes = a.bytes().subspan(i * size, size), wanted = golden.bytes().subspan(i * size, size);
    if (std::ranges::equal(bytes, wanted)) continue;
    const double error = std::fabs(static_cast<double>(u) - v);
    if (bound != nullptr && error <= bound->span<float>()[i]) continue;
    char text[160];
    std::snprintf(text, sizeof text, "element %zu: %.9g instead of %.9g, bound %.3g", i,
                  static_cast<double>(u), static_cast<double>(v),
                  bound == nullptr ? 0.0 : static_cast<double>(bound->span<float>()[i]));
    return text;
  }
  return "";
}

/// Which of the shapes that every op must have seen its operands have.
std::set<std::string> shapes_of(const Tensors& args) {
  std::set<std::string> shapes;
  bool one = true;
  for (const Tensor& t : args) {
    one = one && t.numel() == 1;
    if (t.numel() == 0) shapes.insert("empty");
    if (t.numel() == 0) continue;
    bool repeats = false, odd = false;
    for (std::size_t d = 0; d < t.shape().rank(); ++d) {
      const std::int64_t size = t.shape().dims()[d];
      repeats = repeats || (size > 1 && t.strides()[d] == 0);
      odd = odd || (size > 1 && size % 2 == 1);
    }
    if (repeats) shapes.insert("broadcast");
    if (odd && t.is_contiguous()) shapes.insert("odd");
    if (!repeats && !t.is_contiguous()) shapes.insert("not contiguous");
  }
  if (one) shapes.insert("one element");
  return shapes;
}

TEST(Goldens, EveryOpGivesWhatNumPyGives) {
  const Goldens goldens;
  const ExecutionContext context({.threads = 2, .isa = {}});
  const auto table = all_ops();
  std::map<std::string, std::set<std::string>> seen;
  int failures = 0;
  for (std::size_t i = 0; i < goldens.cases().size() && failures < 40; ++i) {
    const json& c = goldens.cases()[i];
    const auto op = c["op"].get<std::string>();
    ASSERT_TRUE(table.contains(op)) << op;
    Tensors args;
    for (const json& arg : c["args"]) args.push_back(view(goldens.array(arg["t"]), arg["view"]));
    seen[op].merge(shapes_of(args));
    std::string wrong;
    try {
      const Tensor out = table.at(op)(context, args, c["params"]);
      const Tensor bound = c.contains("bound") ? goldens.array(c["bound"]) : Tensor();
      wrong = difference(out, goldens.array(c["out"]), c.contains("bound") ? &bound : nullptr);
    } catch (const Error& e) {
      wrong = e.what();
    }
    if (wrong.empty()) continue;
    ++failures;
    ADD_FAILURE() << "case " << i << ", " << op << " " << c["params"].dump() << " of "
                  << to_string(args[0].dtype()) << " " << args[0].shape().to_string() << ": " << wrong;
  }
  // The list of names stands in the script, too: each must have cases of every shape, but that a row of
  // ternary elements has four at least.
  for (const auto& [name, op] : table)
    for (const char* shape : {"empty", "one element", "odd", "broadcast", "not contiguous"})
      EXPECT_TRUE(seen[name].contains(shape) ||
                  (name == "cast_ternary" && shape == std::string_view("one element")))
          << name << " has no case with operands that are " << shape;
}

}  // namespace
}  // namespace bitnet
