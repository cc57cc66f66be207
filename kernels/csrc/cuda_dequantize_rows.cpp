// DequantizeRows and RematerialiseRows on the CUDA provider: checks shapes and makes the launches of
// kernels/triton/launch_rows.py. The rows lie in device memory; one outside [0, cache_len) gives zeros.
#include "cuda_operators.h"
#include "row_inputs.h"

namespace dlm_edge::cuda {
namespace {

using namespace row_inputs;

constexpr const char *kDequantize = "DequantizeRows", *kRematerialise = "RematerialiseRows";
constexpr int64_t kBlock = 512, kColumns = 128, kDepth = 32;  // ROW_PART, PRODUCT_COLUMNS, PRODUCT_DEPTH of tiles.py
constexpr uint64_t kHostInputs = 1 << kCacheLen;
constexpr ort::ElementType kFloats[] = {ort::kFloat}, kHalves[] = {ort::kFloat16};

std::string NamedRows(const char* function, const RowKernel& kernel) {
  return std::string(function) + "-b" + std::to_string(kernel.bits) + (kernel.by_channel ? "-c1" : "-c0");
}

std::string Dequantize(const RowKernel& kernel, const Call& call, void* out, Device* device) {
  const Tensor(&in)[kWeight + 1] = call.in;
  return device->Launch(NamedRows("dequantize_rows", kernel) + "-b" + std::to_string(kBlock), call.n_rows,
                        CeilDiv(call.width, kBlock), 1,
                        Arguments()
                            .Pointers(in[kCodes].data, in[kScale].data, in[kLow].data, in[kTail].data, in[kRows].data,
                                      out)
                            .Numbers(call.width, call.group, call.n_tail, call.cache_len));
}

std::string Rematerialise(const RowKernel& kernel, const Call& call, void* out, Device* device) {
  const Tensor(&in)[kWeight + 1] = call.in;
  const int64_t n_out = in[kWeight].dims[1], block_m = RowBlock(call.n_rows);
  const std::string tile =
      "-m" + std::to_string(block_m) + "-n" + std::to_string(kColumns) + "-k" + std::to_string(kDepth);
  return device->Launch(NamedRows("rematerialise_rows", kernel) + tile, CeilDiv(call.n_rows, block_m),
                        CeilDiv(n_out, kColumns), 1,
                        Arguments()
                            .Pointers(in[kCodes].data, in[kScale].data, in[kLow].data, in[kTail].data, in[kRows].data,
                                      in[kWeight].data, out)
                            .Numbers(call.n_rows, call.width, n_out, call.group, call.n_tail, call.cache_len));
}

std::string CheckWeight(const Call& call) {
  const int64_t n_out = call.in[kWeight].dims[1];
  const std::string problem = CheckShape(call.in[kWeight], "weight", "[width, n_out]", {call.width, n_out});
  if (!problem.empty()) return problem;
  if (n_out >= 16 && n_out % 16 == 0 && call.width % 16 == 0 && n_out <= INT32_MAX / call.width) return "";
  return "weight has shape " + Shape(call.in[kWeight]) +
         "; the CUDA kernels take multiples of 16 and fewer than 2**31 values";
}

// `has_weight`: RematerialiseRows.
template <bool has_weight>
ort::Status* Compute(void* opaque, ort::KernelContext* context) {
  constexpr const char* kName = has_weight ? kRematerialise : kDequantize;
  const auto& kernel = *static_cast<const RowKernel*>(opaque);
  const ort::Api api = kernel.api;
  const auto check = [&](Call& call) {
    const std::string problem = call.Check(kernel);
    return problem.empty() && has_weight ? CheckWeight(call) : problem;
  };
  const auto work = [&](const Call& call) -> ort::Status* {
    void* out = nullptr;
    DLM_EDGE_TRY(MakeOutput(api, context, 0, {call.n_rows, has_weight ? call.in[kWeight].dims[1] : call.width}, &out));
    if (call.n_rows == 0) return nullptr;
    const auto run = has_weight ? Rematerialise : Dequantize;
    return OnDevice(api, context, kName, [&](Device* device) { return run(kernel, call, out, device); });
  };
  return Answer<Call>(api, context, kName, kInputs, kInputCount + has_weight, check, work);
}

template <bool has_weight>
Operator MakeRowOperator() {
  constexpr const char* kName = has_weight ? kRematerialise : kDequantize;
  Operator made = MakeOperator(kName, kInputs, kInputCount + has_weight, has_weight ? kHalves : kFloats, 1, 1);
  PlaceOnCuda<kHostInputs>(&made.op);
  made.op.CreateKernelV2 = [](const ort::CustomOp*, ort::Api api, const ort::KernelInfo* info, void** kernel) {
    return MakeRowKernel(api, info, kName, kernel);
  };
  made.op.KernelComputeV2 = Compute<has_weight>;
  made.op.KernelDestroy = [](void* kernel) { delete static_cast<RowKernel*>(kernel); };
  return made;
}

}  // namespace

Operator DequantizeRowsOperator() { return MakeRowOperator<false>(); }
Operator RematerialiseRowsOperator() { return MakeRowOperator<true>(); }

}  // namespace dlm_edge::cuda
