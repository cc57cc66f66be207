// QLinear with 4 lanes: what every 64-bit processor has.
#define DLM_EDGE_LANES 4
#define DLM_EDGE_MAX_ROW_VECTORS 1
#define DLM_EDGE_BLOCK 4
#include "linear_word_dot.h"

namespace dlm_edge {
namespace {

constexpr int kRows = 2, kTiles = 1;
constexpr int kPackedRowTiles = 0;

RowForm Form(const LinearWeight&) { return {4, true}; }

}  // namespace
}  // namespace dlm_edge

#include "linear_panels.h"

const dlm_edge::LinearKernel dlm_edge::kPortableLinear = {"portable", kRows, Form, Round, MultiplyLinear};
