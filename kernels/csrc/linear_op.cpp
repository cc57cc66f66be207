// QLinear as an operator: reads and checks tensors, then runs linear_plan.h.
#include <cstring>

#include "linear_plan.h"
#include "operator.h"

namespace dlm_edge {
namespace {

constexpr const char* kName = "QLinear";

enum InputIndex { kX, kCodes, kScales, kZeros, kFloatZeros, kBias, kOutlierColumns, kOutlierWeights, kInputCount };

constexpr Input kInputs[kInputCount] = {
    {"x", ort::kFloat, ort::kRequired, kAnyRank},
    {"codes", ort::kUint8, ort::kRequired, 3},
    {"scales", ort::kAnyType, ort::kRequired, 3},
    {"zeros", ort::kUint8, ort::kRequired, 3},
    {"float_zeros", ort::kFloat, ort::kRequired, 3},
    {"bias", ort::kFloat, ort::kRequired, 1},
    {"outlier_columns", ort::kInt64, ort::kRequired, 1},
    {"outlier_weights", ort::kFloat, ort::kRequired, 3},
};
constexpr ort::ElementType kOutputs[] = {ort::kFloat};

struct LinearNode {
  ort::Api api;
  int64_t in_features, out_features, bits, group_size, gated, row_blocks;

  int64_t row_width() const { return gated ? 2 * in_features : in_features; }
  int64_t filled_k() const { return (in_features + kFilledK - 1) / kFilledK * kFilledK; }
  int64_t n_groups() const { return (in_features + group_size - 1) / group_size; }
  int64_t n_tiles() const { return (out_features + kTileColumns - 1) / kTileColumns; }
};

std::string CheckNode(const LinearNode& node) {
  if (node.bits != 8 && node.bits != 4 && node.bits != 2)
    return "bits is " + std::to_string(node.bits) + ", expected 8, 4 or 2";
  if (node.in_features < 1 || node.in_features > kLargestLinearK)
    return "in_features is " + std::to_string(node.in_features) + ", expected 1 to " + std::to_string(kLargestLinearK);
  if (node.out_features < 1 || node.out_features > INT32_MAX)
    return "out_features is " + std::to_string(node.out_features) + ", expected 1 to 2**31 - 1";
  if (node.group_size < 1 || node.group_size > INT32_MAX ||
      (node.group_size % 16 != 0 && node.group_size < node.in_features))
    return "group_size is " + std::to_string(node.group_size) + ", expected a multiple of 16, or in_features";
  if (node.gated != 0 && node.gated != 1) return "gated is " + std::to_string(node.gated) + ", expected 0 or 1";
  if (node.row_blocks != 0 && node.row_blocks != 1)
    return "row_blocks is " + std::to_string(node.row_blocks) + ", expected 0 or 1";
  return "";
}

struct LinearCall {
  Tensor in[kInputCount];
};

std::string CheckOutliers(const LinearCall& call, const LinearNode& node) {
  const int64_t count = call.in[kOutlierColumns].dims[0];
  const int64_t* const columns = call.in[kOutlierColumns].as<int64_t>();
  for (int64_t j = 0; j < count; ++j)
    if (columns[j] < 0 || columns[j] >= node.in_features || (j > 0 && columns[j] <= columns[j - 1]))
      return "outlier_columns has " + std::to_string(columns[j]) + " at " + std::to_string(j) +
             ", expected ascending columns from 0 up to in_features " + std::to_string(node.in_features);
  return CheckShape(call.in[kOutlierWeights], "outlier_weights", "[tiles, outliers, 16]",
                    {count > 0 ? node.n_tiles() : call.in[kOutlierWeights].dims[0], count, kTileColumns});
}

std::string CheckCall(const LinearCall& call, const LinearNode& node) {
  const Tensor& x = call.in[kX];
  if (x.rank < 2 || x.rank > 4 || x.dims[x.rank - 1] != node.row_width())
    return "x has shape " + Shape(x) + ", expected [.., rows, " + (node.gated ? "2 * " : "") +
           "in_features] with in_features " + std::to_string(node.in_features) + " and rank 2 to 4";
  const int64_t tiles = node.n_tiles(), groups = node.n_groups();
  std::string problem = CheckShape(call.in[kCodes], "codes", "[tiles, filled in_features * bits / 32, 64]",
                                   {tiles, node.filled_k() * node.bits / 32, kVector});
  if (problem.empty())
    problem = CheckShape(call.in[kScales], "scales", "[tiles, groups, 16]", {tiles, groups, kTileColumns});
  if (problem.empty() && call.in[kScales].type == ort::kUint8) problem = "scales must be float or float16, found uint8";
  if (problem.empty() && call.in[kZeros].dims[0] != 0)
    problem = CheckShape(call.in[kZeros], "zeros", "[tiles, groups, 16]", {tiles, groups, kTileColumns});
  if (problem.empty() && call.in[kFloatZeros].dims[0] != 0)
    problem = CheckShape(call.in[kFloatZeros], "float_zeros", "[tiles, groups, 16]", {tiles, groups, kTileColumns});
  if (problem.empty() && call.in[kZeros].dims[0] != 0 && call.in[kFloatZeros].dims[0] != 0)
    problem = "has both zeros and float_zeros, expected one of them at most";
  if (problem.empty() && call.in[kBias].dims[0] != 0)
    problem = CheckShape(call.in[kBias], "bias", "[out_features]", {node.out_features});
  return problem.empty() ? CheckOutliers(call, node) : problem;
}

LinearWeight WeightOf(const LinearCall& call, const LinearNode& node) {
  LinearWeight w{};
  w.in_features = node.in_features;
  w.out_features = node.out_features;
  w.group_size = node.group_size;
  w.n_groups = node.n_groups();
  w.bits = static_cast<int>(node.bits);
  w.codes = call.in[kCodes].as<uint8_t>();
  w.scales = call.in[kScales].data;
  w.has_half_scales = call.in[kScales].type == ort::kFloat16;
  w.zeros = call.in[kZeros].dims[0] == 0 ? nullptr : call.in[kZeros].as<uint8_t>();
  w.float_zeros = call.in[kFloatZeros].dims[0] == 0 ? nullptr : call.in[kFloatZeros].as<float>();
  w.bias = call.in[kBias].dims[0] == 0 ? nullptr : call.in[kBias].as<float>();
  w.outlier_columns = call.in[kOutlierColumns].as<int64_t>();
  w.n_outliers = call.in[kOutlierColumns].dims[0];
  w.outlier_weights = call.in[kOutlierWeights].as<float>();
  return w;
}

ort::Status* Multiply(ort::KernelContext* context, const LinearCall& call, const LinearNode& node) {
  const Tensor& x = call.in[kX];
  int64_t n_rows = 1, dims[4];
  for (size_t i = 0; i < x.rank; ++i) {
    dims[i] = i + 1 == x.rank ? node.out_features : x.dims[i];
    if (i + 1 < x.rank) n_rows *= x.dims[i];
  }
  ort::Value* value = nullptr;
  void* y = nullptr;
  DLM_EDGE_TRY(ort::KernelContext_GetOutput::call(node.api, context, size_t{0}, static_cast<const int64_t*>(dims),
                                                  x.rank, &value));
  DLM_EDGE_TRY(ort::GetTensorMutableData::call(node.api, value, &y));
  if (n_rows == 0) return nullptr;
  LinearPlan plan(WeightOf(call, node), {n_rows, x.as<float>(), node.gated != 0, node.row_blocks != 0},
                  static_cast<float*>(y));
  for (int phase = 0; phase < kLinearPhases; ++phase) DLM_EDGE_TRY(RunPhase(node.api, context, &plan, phase));
  return nullptr;
}

// 0 of a node without it.
int64_t Flag(ort::Api api, const ort::KernelInfo* info, const char* name) {
  int64_t value = 0;
  ort::Status* const absent = ort::KernelInfoGetAttribute_int64::call(api, info, name, &value);
  if (absent == nullptr) return value;
  ort::ReleaseStatus::call(api, absent);
  return 0;
}

ort::Status* Create(const ort::CustomOp*, ort::Api api, const ort::KernelInfo* info, void** kernel) {
  LinearNode node{api, 0, 0, 0, 0, 0, 0};
  DLM_EDGE_TRY(ort::KernelInfoGetAttribute_int64::call(api, info, "in_features", &node.in_features));
  DLM_EDGE_TRY(ort::KernelInfoGetAttribute_int64::call(api, info, "out_features", &node.out_features));
  DLM_EDGE_TRY(ort::KernelInfoGetAttribute_int64::call(api, info, "bits", &node.bits));
  DLM_EDGE_TRY(ort::KernelInfoGetAttribute_int64::call(api, info, "group_size", &node.group_size));
  node.gated = Flag(api, info, "gated");
  node.row_blocks = Flag(api, info, "row_blocks");
  const std::string problem = CheckNode(node);
  if (!problem.empty()) return Refuse(api, kName, problem);
  *kernel = new (std::nothrow) LinearNode(node);
  return *kernel ? nullptr : OutOfMemory(api, kName);
}

ort::Status* Compute(void* opaque, ort::KernelContext* context) {
  const auto& node = *static_cast<const LinearNode*>(opaque);
  return Answer<LinearCall>(
      node.api, context, kName, kInputs, kInputCount, [&](const LinearCall& call) { return CheckCall(call, node); },
      [&](const LinearCall& call) { return Multiply(context, call, node); });
}

}  // namespace

Operator QLinearOperator() {
  Operator made = MakeOperator(kName, kInputs, kInputCount, kOutputs, 1, 1);
  made.op.CreateKernelV2 = Create;
  made.op.KernelComputeV2 = Compute;
  made.op.KernelDestroy = [](void* kernel) { delete static_cast<LinearNode*>(kernel); };
  return made;
}

}  // namespace dlm_edge
