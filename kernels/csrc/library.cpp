// The operator library: what ONNX Runtime loads, and what kernels/library.py asks of it.
#include <cstdint>
#include <cstdio>

#include "cuda_operators.h"
#include "operator.h"
#include "score_rows.h"
#include "simd.h"

#define DLM_EDGE_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr const char* kDomain = "dlm_edge";

}  // namespace

DLM_EDGE_EXPORT dlm_edge::ort::Status* RegisterCustomOps(dlm_edge::ort::SessionOptions* options,
                                                         const dlm_edge::ort::ApiBase* base) {
  using namespace dlm_edge;
  const ort::Api api = base->get_api(ort::kApiVersion);
  if (api == nullptr) {
    // A table of any age has CreateStatus; without a message the user would only read "not a registered op".
    char message[160];
    std::snprintf(message, sizeof(message), "dlm_edge operators need ONNX Runtime 1.18 or newer, this is %s",
                  base->get_version_string());
    const ort::Api oldest = base->get_api(1);
    return oldest ? ort::CreateStatus::call(oldest, ort::kFail, static_cast<const char*>(message)) : nullptr;
  }
  static const Operator operators[] = {AttentionOperator(), SelectPagesOperator(), DequantizeRowsOperator(),
                                       PatternAttentionOperator(), QuantizeRowsOperator(), QLinearOperator()};
  ort::OpDomain* domain = nullptr;  // owned by the session options
  DLM_EDGE_TRY(ort::CreateCustomOpDomain::call(api, kDomain, &domain));
  if (cuda::IsChosen()) {
    DLM_EDGE_TRY(cuda::AddOperators(api, domain));
  } else {
    for (const Operator& each : operators) DLM_EDGE_TRY(ort::CustomOpDomain_Add::call(api, domain, &each.op));
  }
  return ort::AddCustomOpDomain::call(api, options, domain);
}

DLM_EDGE_EXPORT int dlm_edge_operator_version() { return dlm_edge::kOperatorVersion; }

DLM_EDGE_EXPORT const char* dlm_edge_simd() { return dlm_edge::SimdName(); }

// For tests and measurements: 1 when the variant is in use from now on, 0 when this processor lacks it.
DLM_EDGE_EXPORT int dlm_edge_set_simd(const char* name) { return dlm_edge::SetSimd(name) ? 1 : 0; }

// See score_rows.h. `columns` [4, n_rows]: largest, top1_prob, top2_prob, entropy.
DLM_EDGE_EXPORT void dlm_edge_score_rows(int64_t n_rows, int64_t vocab_size, const float* const* rows,
                                         int64_t n_forbidden, const int64_t* forbidden, int64_t* ids, double* columns) {
  dlm_edge::ScoreRows({n_rows, vocab_size, rows, n_forbidden, forbidden, ids, columns, columns + n_rows,
                       columns + 2 * n_rows, columns + 3 * n_rows});
}
