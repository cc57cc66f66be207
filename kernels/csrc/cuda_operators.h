// The operators of the CUDA provider: same names, inputs and order as those of the CPU, but queries, keys, values and
// results of attention are float16; SelectPages, DequantizeRows, states, log-sum-exps and masses stay float.
#pragma once

#include "cuda_launch.h"
#include "operator.h"

namespace dlm_edge::cuda {

Operator AttentionOperator();
Operator SelectPagesOperator();
Operator DequantizeRowsOperator();
Operator RematerialiseRowsOperator();
Operator PatternAttentionOperator();

constexpr float kLog2E = 1.44269504088896341f;  // the kernels' exponentials are powers of two

// What the Python side chose for the calling thread's next registration: true after dlm_edge_choose_cuda(1).
bool IsChosen();
ort::Status* AddOperators(ort::Api api, ort::OpDomain* domain);

// Runs on the CUDA provider; `host_inputs` are small tensors that the host reads, as bits of input indices.
template <uint64_t host_inputs>
void PlaceOnCuda(ort::CustomOp* op) {
  constexpr int kHostInput = -2;  // OrtMemTypeCPUInput
  op->GetExecutionProviderType = [](const ort::CustomOp*) -> const char* { return "CUDAExecutionProvider"; };
  op->GetInputMemoryType = [](const ort::CustomOp*, size_t i) { return host_inputs >> i & 1 ? kHostInput : 0; };
}

// Opens the call's device and makes the launches of `run`, which takes a Device* and returns "" or the problem in
// words.
template <class Run>
ort::Status* OnDevice(ort::Api api, ort::KernelContext* context, const char* name, Run run) {
  void* stream = nullptr;
  DLM_EDGE_TRY(ort::KernelContext_GetGPUComputeStream::call(api, context, &stream));
  Device device;
  std::string problem = device.Open(stream);
  if (problem.empty()) problem = run(&device);
  if (problem.empty()) return nullptr;
  return ort::CreateStatus::call(api, ort::kFail, (std::string(name) + ": " + problem).c_str());
}

// Names of attention over windows: function, flags, and the sizes of its tiles.
inline std::string Named(const char* function, const std::string& flags, int64_t m, int64_t n, int64_t d) {
  return function + flags + "-m" + std::to_string(m) + "-n" + std::to_string(n) + "-d" + std::to_string(d);
}

inline std::string CheckHeadDim(const Tensor& q) {
  if (q.dims[3] % 16 == 0 && HeadBlock(q.dims[3]) != 0) return "";
  return "q has shape " + Shape(q) + "; the CUDA kernels take a head_dim that is a multiple of 16 up to 256";
}

}  // namespace dlm_edge::cuda
