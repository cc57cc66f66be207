// QLinear without a dot product instruction of bytes. Codes of 8 bits meet rows in 16-bit words. Smaller ones stay
// bytes: vpmaddubsw adds two products into 16 bits, at most 2 * 15 * 127 = 3810, and eight of these fit 16 bits too.
#define DLM_EDGE_LANES 8
#define DLM_EDGE_MAX_ROW_VECTORS 1
#define DLM_EDGE_BLOCK 4
#include "linear_word_dot.h"

namespace dlm_edge {
namespace {

constexpr int kRows = 4, kTiles = 1;
constexpr int kPackedRowTiles = 1;

RowForm Form(const LinearWeight& weight) { return {4, weight.bits == 8}; }

}  // namespace
}  // namespace dlm_edge

#include "linear_byte_panel.h"
#include "linear_dot_panel.h"
#include "linear_tiles.h"

namespace dlm_edge {
namespace {

template <int C, int form>
struct Panels {
  template <int R>
  static void Run(const PanelTask& task) {
    WithTotals<R, C>(task, 0, [&](Vec(&totals)[R][C * kVectors]) {
      EachGroup<C, form>(task, R, form == 8 ? kRowBytes / 4 : 1, [&](const GroupPart& part) {
        if constexpr (form == 8)
          DotPanel<R, C, form>(task, part, totals);
        else
          BytePanel<R, C, form>(task, part, totals);
      });
    });
  }
};

template <int C, int form>
void RunPanel(int64_t n_rows, const PanelTask& task) {
  RunRows<Panels<C, form>>(n_rows, task);
}

}  // namespace
}  // namespace dlm_edge

const dlm_edge::LinearKernel dlm_edge::kAvx2Linear = {"avx2", kRows, Form, Round, MultiplyLinear};
