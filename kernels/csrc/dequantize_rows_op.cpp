// DequantizeRows as an operator: reads and checks tensors, then runs dequantize_rows.h.
#include "dequantize_rows.h"

#include "row_inputs.h"

namespace dlm_edge {
namespace {

constexpr const char* kName = "DequantizeRows";

using namespace row_inputs;

constexpr ort::ElementType kOutputs[] = {ort::kFloat};

std::string CheckRows(const Call& call) {
  const int64_t* const rows = call.in[kRows].as<int64_t>();
  for (int64_t i = 0; i < call.n_rows; ++i)
    if (rows[i] < 0 || rows[i] >= call.cache_len)
      return "rows has " + std::to_string(rows[i]) + " at index " + std::to_string(i) + ", expected 0 to below " +
             "cache_len, " + std::to_string(call.cache_len);
  return "";
}

ort::Status* Create(const ort::CustomOp*, ort::Api api, const ort::KernelInfo* info, void** kernel) {
  return MakeRowKernel(api, info, kName, kernel);
}

ort::Status* Compute(void* opaque, ort::KernelContext* context) {
  const auto& kernel = *static_cast<const RowKernel*>(opaque);
  const ort::Api api = kernel.api;
  const auto check = [&](Call& call) {
    const std::string problem = call.Check(kernel);
    return problem.empty() ? CheckRows(call) : problem;
  };
  return Answer<Call>(api, context, kName, kInputs, kInputCount, check, [&](const Call& call) -> ort::Status* {
    DequantizeArguments a{};
    a.width = call.width;
    a.n_rows = call.n_rows;
    a.n_tail = call.n_tail;
    a.cache_len = call.cache_len;
    a.token_group = kernel.by_channel ? 1 : call.group;
    a.row_group = kernel.by_channel ? call.group : 1;
    a.bits = kernel.bits;
    a.codes = call.in[kCodes].as<uint8_t>();
    a.scale = call.in[kScale].as<uint16_t>();
    a.low = call.in[kLow].as<uint16_t>();
    a.tail = call.in[kTail].as<float>();
    a.rows = call.in[kRows].as<int64_t>();
    void* out = nullptr;
    DLM_EDGE_TRY(MakeOutput(api, context, 0, {a.n_rows, a.width}, &out));
    a.out = static_cast<float*>(out);
    DequantizePlan plan(a);
    return RunPhase(api, context, &plan, 0);
  });
}

}  // namespace

Operator DequantizeRowsOperator() {
  Operator made = MakeOperator(kName, kInputs, kInputCount, kOutputs, 1, 1);
  made.op.CreateKernelV2 = Create;
  made.op.KernelComputeV2 = Compute;
  made.op.KernelDestroy = [](void* kernel) { delete static_cast<RowKernel*>(kernel); };
  return made;
}

}  // namespace dlm_edge
