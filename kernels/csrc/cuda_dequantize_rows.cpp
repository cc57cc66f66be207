// DequantizeRows on the CUDA provider: checks shapes and launches the kernel of kernels/triton/dequantize_rows.py.
// The rows lie in device memory; one outside [0, cache_len) gives zeros.
#include <cstring>

#include "cuda_launch.h"
#include "cuda_operators.h"

namespace dlm_edge::cuda {
namespace {

constexpr const char* kName = "DequantizeRows";
constexpr int64_t kBlock = 512;

enum InputIndex { kCodes, kScale, kLow, kTail, kRows, kCacheLen, kInputCount };
constexpr uint64_t kHostInputs = 1 << kCacheLen;

constexpr Input kInputs[kInputCount] = {
    {"codes", ort::kUint8, ort::kRequired, 2}, {"scale", ort::kFloat16, ort::kRequired, 2},
    {"low", ort::kFloat16, ort::kRequired, 2}, {"tail", ort::kFloat, ort::kRequired, 2},
    {"rows", ort::kInt64, ort::kRequired, 1},  {"cache_len", ort::kInt64, ort::kRequired, 1},
};
constexpr ort::ElementType kOutputs[] = {ort::kFloat};

struct RowsKernel {
  ort::Api api;
  int64_t bits;
  bool by_channel;
};

struct Call {
  Tensor in[kInputCount];
  int64_t width, group;
  void* out;
};

std::string ReadShapes(int64_t bits, bool by_channel, Call* call) {
  const Tensor(&in)[kInputCount] = call->in;
  const int64_t capacity = in[kCodes].dims[0], row_bytes = in[kCodes].dims[1];
  const int64_t rows = in[kScale].dims[0], columns = in[kScale].dims[1];
  if (row_bytes < 1 || row_bytes > INT32_MAX / 8 || (bits == 3 && row_bytes % 3 != 0))
    return "codes has shape " + Shape(in[kCodes]) + ", expected [capacity, width * " + std::to_string(bits) + " / 8]";
  call->width = row_bytes * 8 / bits;
  const bool fits = by_channel ? columns == call->width && rows >= 1 && capacity % rows == 0
                               : rows == capacity && columns >= 1 && call->width % columns == 0;
  if (!fits && capacity > 0)
    return "scale has shape " + Shape(in[kScale]) + ", which fits no codes of shape " + Shape(in[kCodes]);
  call->group = capacity == 0 ? 1 : by_channel ? capacity / rows : call->width / columns;
  const int64_t n_tail = in[kTail].dims[0];
  if (n_tail != 0 && (!by_channel || n_tail != call->group))
    return "tail has shape " + Shape(in[kTail]) + ", expected no rows" + (by_channel ? " or those of one group" : "");
  std::string problem = CheckShape(in[kLow], "low", "the shape of scale", {rows, columns});
  if (problem.empty()) problem = CheckShape(in[kTail], "tail", "[rows, width]", {n_tail, call->width});
  if (problem.empty()) problem = CheckShape(in[kCacheLen], "cache_len", "", {1});
  if (problem.empty()) problem = CheckCapacity(*in[kCacheLen].as<int64_t>(), capacity);
  return problem;
}

std::string Run(const RowsKernel& kernel, const Call& call, void* stream) {
  const Tensor(&in)[kInputCount] = call.in;
  const int64_t n = in[kRows].dims[0];
  if (n == 0) return "";
  Device device;
  const std::string problem = device.Open(stream);
  if (!problem.empty()) return problem;
  const std::string name = "dequantize_rows-b" + std::to_string(kernel.bits) + (kernel.by_channel ? "-c1" : "-c0");
  return device.Launch(name + "-b" + std::to_string(kBlock), n, CeilDiv(call.width, kBlock), 1,
                       Arguments()
                           .Pointers(in[kCodes].data, in[kScale].data, in[kLow].data, in[kTail].data, in[kRows].data,
                                     call.out)
                           .Numbers(call.width, call.group, in[kTail].dims[0], *in[kCacheLen].as<int64_t>()));
}

ort::Status* Create(const ort::CustomOp*, ort::Api api, const ort::KernelInfo* info, void** kernel) {
  int64_t bits = 0;
  DLM_EDGE_TRY(ort::KernelInfoGetAttribute_int64::call(api, info, "bits", &bits));
  char axis[16] = {};
  size_t size = sizeof(axis);
  DLM_EDGE_TRY(ort::KernelInfoGetAttribute_string::call(api, info, "axis", &axis[0], &size));
  const bool by_channel = std::strcmp(axis, "channel") == 0;
  if ((bits != 8 && bits != 4 && bits != 3 && bits != 2) || (!by_channel && std::strcmp(axis, "token") != 0))
    return Refuse(api, kName, "bits " + std::to_string(bits) + " with axis '" + axis + "' is not known");
  *kernel = new (std::nothrow) RowsKernel{api, bits, by_channel};
  return *kernel ? nullptr : OutOfMemory(api, kName);
}

ort::Status* Compute(void* opaque, ort::KernelContext* context) {
  const auto& kernel = *static_cast<const RowsKernel*>(opaque);
  const ort::Api api = kernel.api;
  try {
    Call call{};
    std::string problem;
    DLM_EDGE_TRY(ReadInputs(api, context, kInputs, kInputCount, call.in, &problem));
    if (problem.empty()) problem = ReadShapes(kernel.bits, kernel.by_channel, &call);
    if (!problem.empty()) return Refuse(api, kName, problem);
    DLM_EDGE_TRY(MakeOutput(api, context, 0, {call.in[kRows].dims[0], call.width}, &call.out));
    void* stream = nullptr;
    DLM_EDGE_TRY(ort::KernelContext_GetGPUComputeStream::call(api, context, &stream));
    problem = Run(kernel, call, stream);
    return problem.empty() ? nullptr
                           : ort::CreateStatus::call(api, ort::kFail, (std::string(kName) + ": " + problem).c_str());
  } catch (const std::bad_alloc&) {
    return OutOfMemory(api, kName);
  }
}

}  // namespace

Operator DequantizeRowsOperator() {
  Operator made = MakeOperator(kName, kInputs, kInputCount, kOutputs, 1, 1);
  PlaceOnCuda<kHostInputs>(&made.op);
  made.op.CreateKernelV2 = Create;
  made.op.KernelComputeV2 = Compute;
  made.op.KernelDestroy = [](void* kernel) { delete static_cast<RowsKernel*>(kernel); };
  return made;
}

}  // namespace dlm_edge::cuda
