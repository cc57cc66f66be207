// QuantizeRows as an operator: reads and checks tensors, then runs quantize_rows.h.
#include "quantize_rows.h"

#include <cstring>

#include "row_inputs.h"

namespace dlm_edge {
namespace {

using row_inputs::RowKernel;

constexpr const char* kName = "QuantizeRows";

enum InputIndex { kRows, kCount, kGroup, kInputCount };
enum OutputIndex { kCodes, kScale, kLow, kTail };

constexpr Input kInputs[kInputCount] = {
    {"rows", ort::kFloat, ort::kRequired, 3},
    {"count", ort::kInt64, ort::kRequired, 1},
    {"group", ort::kInt64, ort::kRequired, 1},
};
constexpr ort::ElementType kOutputs[] = {ort::kUint8, ort::kFloat16, ort::kFloat16, ort::kFloat};

std::string CheckNumbers(const Tensor (&in)[kInputCount], const RowKernel& kernel) {
  std::string problem = CheckShape(in[kCount], "count", "", {1});
  if (problem.empty()) problem = CheckShape(in[kGroup], "group", "", {1});
  if (!problem.empty()) return problem;
  const int64_t length = in[kRows].dims[1], width = in[kRows].dims[2];
  const int64_t count = *in[kCount].as<int64_t>(), group = *in[kGroup].as<int64_t>();
  const int multiple = kernel.bits == 3 ? 8 : 8 / kernel.bits;
  if (width < 1 || width > INT32_MAX || width % multiple != 0)
    return "rows has shape " + Shape(in[kRows]) + ", expected rows that fill whole bytes with " +
           std::to_string(kernel.bits) + " bits";
  if (count < 0 || count > length)
    return "count is " + std::to_string(count) + ", expected 0 to the " + std::to_string(length) + " rows";
  if (group < 1 || (!kernel.by_channel && width % group != 0))
    return "group is " + std::to_string(group) + ", expected a divisor of " +
           (kernel.by_channel ? "some number of rows" : "the width " + std::to_string(width));
  return "";
}

ort::Status* Create(const ort::CustomOp*, ort::Api api, const ort::KernelInfo* info, void** kernel) {
  return row_inputs::MakeRowKernel(api, info, kName, kernel);
}

// The exact rows after the last whole group.
ort::Status* CopyTail(ort::Api api, ort::KernelContext* context, const QuantizeArguments& a) {
  void* tail = nullptr;
  const int64_t n_tail = a.count - a.n;
  DLM_EDGE_TRY(MakeOutput(api, context, kTail, {a.lead, n_tail, a.width}, &tail));
  const size_t bytes = static_cast<size_t>(n_tail * a.width) * sizeof(float);
  for (int64_t lead = 0; lead < a.lead && bytes > 0; ++lead)
    std::memcpy(static_cast<char*>(tail) + lead * bytes, a.rows + (lead * a.length + a.n) * a.width, bytes);
  return nullptr;
}

ort::Status* Compute(void* opaque, ort::KernelContext* context) {
  const auto& kernel = *static_cast<const RowKernel*>(opaque);
  const ort::Api api = kernel.api;
  try {
    Tensor in[kInputCount];
    std::string problem;
    DLM_EDGE_TRY(ReadInputs(api, context, kInputs, kInputCount, in, &problem));
    if (problem.empty()) problem = CheckNumbers(in, kernel);
    if (!problem.empty()) return Refuse(api, kName, problem);

    QuantizeArguments a{};
    a.lead = in[kRows].dims[0];
    a.length = in[kRows].dims[1];
    a.width = in[kRows].dims[2];
    a.count = *in[kCount].as<int64_t>();
    a.group = *in[kGroup].as<int64_t>();
    a.n = kernel.by_channel ? a.count / a.group * a.group : a.count;
    a.by_channel = kernel.by_channel;
    a.bits = kernel.bits;
    a.rows = in[kRows].as<float>();
    const int64_t scale_rows = a.by_channel ? a.n / a.group : a.n, columns = a.by_channel ? a.width : a.width / a.group;
    void *codes = nullptr, *scale = nullptr, *low = nullptr;
    DLM_EDGE_TRY(MakeOutput(api, context, kCodes, {a.lead, a.n, a.width * a.bits / 8}, &codes));
    DLM_EDGE_TRY(MakeOutput(api, context, kScale, {a.lead, scale_rows, columns}, &scale));
    DLM_EDGE_TRY(MakeOutput(api, context, kLow, {a.lead, scale_rows, columns}, &low));
    a.codes = static_cast<uint8_t*>(codes);
    a.scale = static_cast<uint16_t*>(scale);
    a.low = static_cast<uint16_t*>(low);
    if (a.by_channel) DLM_EDGE_TRY(CopyTail(api, context, a));
    QuantizePlan plan(a);
    return RunPhase(api, context, &plan, 0);
  } catch (const std::bad_alloc&) {
    return OutOfMemory(api, kName);
  }
}

}  // namespace

Operator QuantizeRowsOperator() {
  Operator made = MakeOperator(kName, kInputs, kInputCount, kOutputs, 4, 3);
  made.op.CreateKernelV2 = Create;
  made.op.KernelComputeV2 = Compute;
  made.op.KernelDestroy = [](void* kernel) { delete static_cast<RowKernel*>(kernel); };
  return made;
}

}  // namespace dlm_edge
