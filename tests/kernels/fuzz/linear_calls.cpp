// Sound calls of QLinear.
#include "random_tensors.h"
#include "sound_calls.h"

namespace fuzz {

FakeContext LinearCall(FakeInfo* info) {
  const int64_t k = Pick<int64_t>({1, 7, 16, 63, 100, 300, 1100}), n = Random(1, 70), bits = Pick<int64_t>({8, 4, 2});
  const int64_t group = Chance(0.3) ? k : 16 * Pick<int64_t>({1, 2, 3, 8, 40}), gated = Random(0, 1);
  info->ints = {{"in_features", k}, {"out_features", n}, {"bits", bits}, {"group_size", group}};
  if (gated == 1 || Chance(0.5)) info->ints["gated"] = gated;
  if (Chance(0.7)) info->ints["row_blocks"] = Random(0, 1);
  const int64_t tiles = (n + 15) / 16, groups = (k + group - 1) / group, filled = (k + 63) / 64 * 64;
  const int64_t zero = Random(0, 2);  // the middle, bytes, numbers
  std::vector<int64_t> columns;
  for (int64_t column = 0; column < k && Chance(0.8); column += Random(1, k)) columns.push_back(column);
  const int64_t n_columns = static_cast<int64_t>(columns.size());
  FakeContext c;
  c.inputs = {Make(ort::kFloat, {Random(1, 2), Random(0, 40), k * (1 + gated)}),
              Make(ort::kUint8, {tiles, filled * bits / 32, 64}),
              Make(Chance(0.5) ? ort::kFloat : ort::kFloat16, {tiles, groups, 16}),
              Make(ort::kUint8, {zero == 1 ? tiles : 0, groups, 16}),
              Make(ort::kFloat, {zero == 2 ? tiles : 0, groups, 16}),
              Make(ort::kFloat, {Chance(0.5) ? n : 0}),
              Ints(columns),
              Make(ort::kFloat, {n_columns > 0 ? tiles : 0, n_columns, 16})};
  c.outputs.resize(1);
  c.in_place = {-1};
  return c;
}

}  // namespace fuzz
