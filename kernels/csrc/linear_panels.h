// QLinear's panels where one dot product serves codes of all bits; linear_dot_panel.h says what it needs.
#pragma once

#include "linear_dot_panel.h"
#include "linear_tiles.h"

namespace dlm_edge {
namespace {

template <int C, int form>
struct Panels {
  template <int R>
  static void Run(const PanelTask& task) {
    WithTotals<R, C>(task, 0, [&](Vec(&totals)[R][C * kVectors]) {
      EachGroup<C, form>(task, R, kRowBytes / 4,
                         [&](const GroupPart& part) { DotPanel<R, C, form>(task, part, totals); });
    });
  }
};

template <int C, int form>
void RunPanel(int64_t n_rows, const PanelTask& task) {
  RunRows<Panels<C, form>>(n_rows, task);
}

}  // namespace
}  // namespace dlm_edge
