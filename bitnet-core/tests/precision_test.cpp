// PrecisionPolicy: its presets are valid where they belong and nowhere else, what is not implemented is
// refused with what is.
#include "bitnet/core/precision.hpp"

#include "bitnet/testing/testing.hpp"

namespace bitnet {
namespace {

constexpr Workload kWorkloads[] = {Workload::kInference, Workload::kTraining};

TEST(Precision, PresetsAreValid) {
  for (const bool ternary : {true, false})
    EXPECT_NO_THROW(PrecisionPolicy::inference(ternary).validate(Workload::kInference));
  for (const DType d : {DType::kF32, DType::kBF16})
    EXPECT_NO_THROW(PrecisionPolicy::training(d).validate(Workload::kTraining));
  EXPECT_EQ(PrecisionPolicy::inference().at(OpClass::kAttention).storage, DType::kF16);
  EXPECT_EQ(PrecisionPolicy::inference().at(OpClass::kTernaryLinear),
            (Precision{DType::kTernary, DType::kI8, DType::kI32}));
  EXPECT_EQ(PrecisionPolicy::inference().at(OpClass::kHead),
            (Precision{DType::kI8, DType::kI8, DType::kI32}));
  EXPECT_EQ(PrecisionPolicy::inference(false).at(OpClass::kHead).storage, std::nullopt);
}

TEST(Precision, APolicyOfTheOtherWorkloadIsRefused) {
  BITNET_EXPECT_ERROR(PrecisionPolicy::inference().validate(Workload::kTraining), ErrorCode::kUnsupported,
                      "precision of ternary linear in training: storage ternary, compute i8, accumulate i32");
  BITNET_EXPECT_ERROR(PrecisionPolicy::training().validate(Workload::kInference), ErrorCode::kUnsupported,
                      "precision of ternary linear in inference: storage f32");
}

TEST(Precision, EveryListedCombinationIsValidAndNoOther) {
  constexpr std::optional<DType> kStorages[] = {std::nullopt, DType::kF32, DType::kF16,    DType::kBF16,
                                                DType::kI8,   DType::kI32, DType::kTernary};
  constexpr DType kAll[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kI8, DType::kI32, DType::kTernary};
  const auto accepts = [](const PrecisionPolicy& policy, Workload workload) {
    try {
      policy.validate(workload);
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::kUnsupported);
      return false;
    }
    return true;
  };
  for (const Workload workload : kWorkloads)
    for (std::size_t i = 0; i < kOpClasses; ++i) {
      const auto op = static_cast<OpClass>(i);
      const auto can = supported_precisions(workload, op);
      std::size_t valid = 0;
      for (const auto& storage : kStorages)
        for (const DType compute : kAll)
          for (const DType accumulate : kAll) {
            const Precision p{storage, compute, accumulate};
            auto policy =
                workload == Workload::kInference ? PrecisionPolicy::inference() : PrecisionPolicy::training();
            const bool accepted = accepts(policy.set(op, p), workload);
            valid += accepted;
            EXPECT_EQ(accepted, std::find(can.begin(), can.end(), p) != can.end())
                << to_string(workload) << to_string(op) << to_string(p);
          }
      EXPECT_EQ(valid, can.size()) << to_string(op);
    }
}

TEST(Precision, ErrorsSayWhatThereIs) {
  BITNET_EXPECT_ERROR(
      PrecisionPolicy::inference().set_kv_type(DType::kBF16).validate(Workload::kInference),
      ErrorCode::kUnsupported,
      "precision of attention in inference: storage bf16, compute f32, accumulate f32 asked for; there are: "
      "storage f16, compute f32, accumulate f32; storage i8");
  BITNET_EXPECT_ERROR(PrecisionPolicy::inference().set_tables(DType::kI32).validate(Workload::kInference),
                      ErrorCode::kUnsupported, "storage of the file");
  BITNET_EXPECT_ERROR(PrecisionPolicy::training(DType::kI8).validate(Workload::kTraining),
                      ErrorCode::kUnsupported, "dense linear");
  EXPECT_EQ(dtype_from_name("bf16"), DType::kBF16);
  BITNET_EXPECT_ERROR((void)dtype_from_name("fp16"), ErrorCode::kInvalidArgument,
                      "'fp16': there are f32, f16");
}

}  // namespace
}  // namespace bitnet
