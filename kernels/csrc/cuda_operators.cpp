// Registration of the CUDA flavour. A session gets either these operators or those of the CPU, never both: ONNX Runtime
// would fall back from one to the other node by node, and copy tensors between the devices without a word.
#include "cuda_operators.h"

namespace dlm_edge::cuda {
namespace {

thread_local bool is_chosen = false;

}  // namespace

bool IsChosen() { return is_chosen; }

ort::Status* AddOperators(ort::Api api, ort::OpDomain* domain) {
  static const Operator operators[] = {AttentionOperator(), SelectPagesOperator(), DequantizeRowsOperator(),
                                       RematerialiseRowsOperator(), PatternAttentionOperator()};
  for (const Operator& each : operators) DLM_EDGE_TRY(ort::CustomOpDomain_Add::call(api, domain, &each.op));
  return nullptr;
}

}  // namespace dlm_edge::cuda

extern "C" __attribute__((visibility("default"))) void dlm_edge_choose_cuda(int is_chosen) {
  dlm_edge::cuda::is_chosen = is_chosen != 0;
}
