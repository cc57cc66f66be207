// The operators of the CUDA provider: same names, inputs and order as those of the CPU, but queries, keys, values and
// results of PrefixBlockAttention are float16; SelectPages, states, log-sum-exps and masses stay float.
#pragma once

#include "operator.h"

namespace dlm_edge::cuda {

Operator AttentionOperator();
Operator SelectPagesOperator();
Operator DequantizeRowsOperator();

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

}  // namespace dlm_edge::cuda
