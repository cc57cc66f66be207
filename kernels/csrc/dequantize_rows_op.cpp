// DequantizeRows as an operator: reads and checks tensors, then runs dequantize_rows.h.
#include "dequantize_rows.h"

#include <cstring>

#include "operator.h"

namespace dlm_edge {
namespace {

constexpr const char* kName = "DequantizeRows";

enum InputIndex { kCodes, kScale, kLow, kTail, kRows, kCacheLen, kInputCount };

constexpr Input kInputs[kInputCount] = {
    {"codes", ort::kUint8, ort::kRequired, 2}, {"scale", ort::kFloat16, ort::kRequired, 2},
    {"low", ort::kFloat16, ort::kRequired, 2}, {"tail", ort::kFloat, ort::kRequired, 2},
    {"rows", ort::kInt64, ort::kRequired, 1},  {"cache_len", ort::kInt64, ort::kRequired, 1},
};
constexpr ort::ElementType kOutputs[] = {ort::kFloat};

struct RowsKernel {
  ort::Api api;
  int bits;
  bool by_channel;
};

std::string CheckGroups(const Tensor (&in)[kInputCount], bool by_channel, int64_t width) {
  const int64_t capacity = in[kCodes].dims[0], n_tail = in[kTail].dims[0];
  const int64_t rows = in[kScale].dims[0], columns = in[kScale].dims[1];
  std::string problem = CheckShape(in[kLow], "low", "the shape of scale", {rows, columns});
  if (problem.empty()) problem = CheckShape(in[kTail], "tail", "[rows, width]", {n_tail, width});
  if (!problem.empty()) return problem;
  const bool fits = by_channel ? columns == width && (rows >= 1 ? capacity % rows == 0 : capacity == 0)
                               : rows == capacity && columns >= 1 && width % columns == 0;
  if (!fits)
    return "scale has shape " + Shape(in[kScale]) + ", expected " +
           (by_channel ? "[capacity / group, width]" : "[capacity, width / group]") + " for capacity " +
           std::to_string(capacity) + " and width " + std::to_string(width);
  const bool tail_fits = n_tail == 0 || (by_channel && (capacity == 0 || n_tail == capacity / rows));
  if (!tail_fits)
    return "tail has shape " + Shape(in[kTail]) + ", expected no rows" + (by_channel ? " or those of one group" : "");
  return "";
}

std::string CheckRows(const Tensor (&in)[kInputCount]) {
  const int64_t cache_len = *in[kCacheLen].as<int64_t>();
  const std::string problem = CheckCapacity(cache_len, in[kCodes].dims[0]);
  if (!problem.empty()) return problem;
  const int64_t* const rows = in[kRows].as<int64_t>();
  for (int64_t i = 0; i < in[kRows].dims[0]; ++i)
    if (rows[i] < 0 || rows[i] >= cache_len)
      return "rows has " + std::to_string(rows[i]) + " at index " + std::to_string(i) + ", expected 0 to below " +
             "cache_len, " + std::to_string(cache_len);
  return "";
}

std::string CheckCodes(const Tensor (&in)[kInputCount], int bits) {
  const int64_t row_bytes = in[kCodes].dims[1];
  if (row_bytes >= 1 && row_bytes <= INT32_MAX && row_bytes % (bits == 3 ? 3 : 1) == 0)
    return CheckShape(in[kCacheLen], "cache_len", "", {1});
  return "codes has shape " + Shape(in[kCodes]) + ", expected [capacity, width * " + std::to_string(bits) + " / 8]";
}

ort::Status* Create(const ort::CustomOp*, ort::Api api, const ort::KernelInfo* info, void** kernel) {
  int64_t bits = 0;
  DLM_EDGE_TRY(ort::KernelInfoGetAttribute_int64::call(api, info, "bits", &bits));
  if (bits != 8 && bits != 4 && bits != 3 && bits != 2)
    return Refuse(api, kName, "bits is " + std::to_string(bits) + ", expected 8, 4, 3 or 2");
  char axis[16] = {};
  size_t size = sizeof(axis);
  if (ort::Status* unread = ort::KernelInfoGetAttribute_string::call(api, info, "axis", &axis[0], &size)) {
    ort::ReleaseStatus::call(api, unread);  // absent, or longer than any name that is known
    return Refuse(api, kName, "axis must be 'token' or 'channel'");
  }
  const bool by_channel = std::strcmp(axis, "channel") == 0;
  if (!by_channel && std::strcmp(axis, "token") != 0)
    return Refuse(api, kName, std::string("axis is '") + axis + "', expected 'token' or 'channel'");
  *kernel = new (std::nothrow) RowsKernel{api, static_cast<int>(bits), by_channel};
  return *kernel ? nullptr : OutOfMemory(api, kName);
}

ort::Status* Compute(void* opaque, ort::KernelContext* context) {
  const auto& kernel = *static_cast<const RowsKernel*>(opaque);
  const ort::Api api = kernel.api;
  try {
    Tensor in[kInputCount];
    std::string problem;
    DLM_EDGE_TRY(ReadInputs(api, context, kInputs, kInputCount, in, &problem));
    if (problem.empty()) problem = CheckCodes(in, kernel.bits);
    const int64_t width = problem.empty() ? in[kCodes].dims[1] * 8 / kernel.bits : 0;
    if (problem.empty()) problem = CheckGroups(in, kernel.by_channel, width);
    if (problem.empty()) problem = CheckRows(in);
    if (!problem.empty()) return Refuse(api, kName, problem);

    DequantizeArguments a{};
    a.width = width;
    a.n_rows = in[kRows].dims[0];
    a.n_tail = in[kTail].dims[0];
    a.cache_len = *in[kCacheLen].as<int64_t>();
    a.token_group = kernel.by_channel ? 1 : width / in[kScale].dims[1];
    a.row_group = kernel.by_channel && in[kScale].dims[0] > 0 ? in[kCodes].dims[0] / in[kScale].dims[0] : 1;
    a.bits = kernel.bits;
    a.codes = in[kCodes].as<uint8_t>();
    a.scale = in[kScale].as<uint16_t>();
    a.low = in[kLow].as<uint16_t>();
    a.tail = in[kTail].as<float>();
    a.rows = in[kRows].as<int64_t>();
    void* out = nullptr;
    DLM_EDGE_TRY(MakeOutput(api, context, 0, {a.n_rows, width}, &out));
    a.out = static_cast<float*>(out);
    DequantizePlan plan(a);
    return RunPhase(api, context, &plan, 0);
  } catch (const std::bad_alloc&) {
    return OutOfMemory(api, kName);
  }
}

}  // namespace

Operator DequantizeRowsOperator() {
  Operator made = MakeOperator(kName, kInputs, kInputCount, kOutputs, 1, 1);
  made.op.CreateKernelV2 = Create;
  made.op.KernelComputeV2 = Compute;
  made.op.KernelDestroy = [](void* kernel) { delete static_cast<RowsKernel*>(kernel); };
  return made;
}

}  // namespace dlm_edge
