// QLinear's plan with a kernel of emulated instructions, for tests/kernels/test_qlinear_emulated.py.
#include <cstring>

#include "../../../kernels/csrc/linear_plan.h"
#include "../../../kernels/csrc/simd.h"

namespace {
const dlm_edge::LinearKernel* chosen;
}

const dlm_edge::LinearKernel* dlm_edge::ChosenLinear() { return chosen; }

// sizes: rows, in_features, out_features, bits, group_size, gated, row_blocks, outliers. Null where a part is absent.
extern "C" void run_linear(const char* kernel, const int64_t* sizes, const float* x, const uint8_t* codes,
                           const float* scales, const uint8_t* zeros, const float* float_zeros, const float* bias,
                           const int64_t* outlier_columns, const float* outlier_weights, float* y) {
  using namespace dlm_edge;
  chosen = std::strcmp(kernel, "amx") == 0 ? &kAmxLinear : &kAvxVnniLinear;
  LinearWeight weight{};
  weight.in_features = sizes[1];
  weight.out_features = sizes[2];
  weight.bits = static_cast<int>(sizes[3]);
  weight.group_size = sizes[4];
  weight.n_groups = (sizes[1] + sizes[4] - 1) / sizes[4];
  weight.codes = codes;
  weight.scales = scales;
  weight.zeros = zeros;
  weight.float_zeros = float_zeros;
  weight.bias = bias;
  weight.outlier_columns = outlier_columns;
  weight.n_outliers = sizes[7];
  weight.outlier_weights = outlier_weights;
  const LinearPlan plan(weight, {sizes[0], x, sizes[5] != 0, sizes[6] != 0}, y);
  for (int phase = 0; phase < kLinearPhases; ++phase)
    for (size_t i = 0; i < plan.n_tasks(phase); ++i) plan.Run(phase, i);
}
