// Rows of logits to scores. The definition is kernels/score_rows/reference.py.
//
// rows       [n_rows] of [vocab_size]
// forbidden  [n_forbidden] ids in any order; those beyond the vocabulary mean nothing
// ids, largest, top1_prob, top2_prob, entropy  [n_rows], every element is written
//
// The caller owns all memory. Runs on the calling thread.
#pragma once

#include <cstdint>

namespace dlm_edge {

struct ScoreArguments {
  int64_t n_rows, vocab_size;
  const float* const* rows;
  int64_t n_forbidden;
  const int64_t* forbidden;
  int64_t* ids;
  double *largest, *top1_prob, *top2_prob, *entropy;
};

void ScoreRows(const ScoreArguments& arguments);

}  // namespace dlm_edge
