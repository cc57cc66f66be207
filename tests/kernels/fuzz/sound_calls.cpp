// See sound_calls.h.
#include "sound_calls.h"

#include <cmath>
#include <cstring>

#include "random_tensors.h"

namespace fuzz {
namespace {

std::vector<int64_t> RandomPolicy(int64_t page_size) {
  auto count = [] { return Pick<int64_t>({0, 1, 2, 5, 17, 200, INT64_MAX}); };
  return {Random(0, 5), count(), count(), count(), count(), Random(0, 1), Random(0, 1), Random(0, 1), page_size};
}

struct Shapes {
  int64_t n_kv_heads = Random(1, 4), group = Random(1, 8), q_len = Pick<int64_t>({1, 2, 7, 16, 33, 64});
  int64_t head_dim = Pick<int64_t>({1, 2, 8, 16, 20, 40, 64, 80, 96, 128}),
          page_size = Pick<int64_t>({1, 3, 8, 16, 32, 128});
  int64_t n_slots = Random(0, 20), capacity = n_slots * page_size,
          cache_len = Chance(0.5) ? capacity : Random(0, capacity);
  int64_t start = Chance(0.7) ? cache_len : Random(0, capacity + 10), n_rows = Chance(0.5) ? q_len : Random(0, 40);
  int64_t n_heads = n_kv_heads * group;
};

}  // namespace

FakeContext SparseCall() {
  const Shapes s;
  const int kind = static_cast<int>(Random(0, 3));  // float, half, bytes, nibbles
  const int64_t dim = kind == 3 ? s.head_dim * 2 : s.head_dim, width = kind == 3 ? dim / 2 : dim;
  const int type = kind == 0 ? ort::kFloat : kind == 1 ? ort::kFloat16 : ort::kUint8;
  FakeContext c;
  c.inputs = {Make(ort::kFloat, {1, s.n_heads, s.q_len, dim}),
              Make(ort::kFloat, {1, s.n_kv_heads, s.q_len, dim}),
              Make(ort::kFloat, {1, s.n_kv_heads, s.q_len, dim}),
              Make(type, {1, s.n_kv_heads, s.capacity, width}),
              Make(type, {1, s.n_kv_heads, s.capacity, width}),
              Ints({s.start}),
              Ints({s.cache_len}),
              Ints({Pick<int64_t>({1, 4, 16, 64, int64_t{1} << 40, INT64_MAX})})};
  c.outputs.resize(1);
  c.in_place = {-1};
  if (kind == 0 && Chance(0.2)) return c;  // the dense form
  auto* active = Make(ort::kUint8, {s.n_kv_heads, s.q_len});
  for (int64_t head = 0; head < s.n_kv_heads; ++head)
    for (int64_t i = 0; i < s.q_len; ++i) active->data[head * s.q_len + i] = i >= s.n_rows || Chance(0.4) ? 255 : 0;
  for (auto* each : {active, Make(ort::kUint8, {s.n_kv_heads, s.n_slots}), Ints(RandomPolicy(s.page_size)),
                     Make(ort::kFloat, {1, s.n_heads, s.n_rows, dim}), Make(ort::kFloat, {1, s.n_heads, s.n_rows}),
                     Make(ort::kFloat, {1, s.n_kv_heads, s.n_slots})})
    c.inputs.push_back(each);
  c.outputs.resize(4);
  const bool in_place = Chance(0.5);
  c.in_place = {-1, in_place ? 11 : -1, in_place ? 12 : -1, in_place ? 13 : -1};
  if (kind < 2) return c;
  int64_t k_group = Random(1, 64), v_groups = Random(1, dim);
  while (s.capacity % k_group != 0) --k_group;
  while (dim % v_groups != 0) --v_groups;
  const std::vector<int64_t> k_dims = {1, s.n_kv_heads, s.capacity / k_group, dim},
                             v_dims = {1, s.n_kv_heads, s.capacity, v_groups};
  for (auto* each :
       {Make(ort::kFloat16, k_dims), Make(ort::kFloat16, k_dims), Make(ort::kFloat, {1, s.n_kv_heads, k_group, dim}),
        Make(ort::kFloat16, v_dims), Make(ort::kFloat16, v_dims)})
    c.inputs.push_back(each);
  if (kind == 3 && Chance(0.5)) {  // a second plane
    const std::vector<int64_t> codes = {1, s.n_kv_heads, s.capacity, width};
    for (auto* each : {Make(ort::kUint8, codes), Make(ort::kUint8, codes), Ints({Random(1, 2)})})
      c.inputs.push_back(each);
  }
  return c;
}

FakeContext SelectCall() {
  const Shapes s;
  FakeContext c;
  const std::vector<int64_t> bounds = {1, s.n_kv_heads, s.n_slots, s.head_dim},
                             state = {1, s.n_heads, s.n_rows, s.head_dim};
  const std::vector<int64_t> slots = {1, s.n_kv_heads, s.n_slots};
  auto* drift = Make(ort::kFloat, {1});
  const float limit = Pick<float>({0.0f, 1.5f, INFINITY, NAN});
  if (!any_bits) std::memcpy(drift->data, &limit, 4);
  c.inputs = {Make(ort::kFloat, {1, s.n_heads, s.q_len, s.head_dim}),
              Make(ort::kInt8, bounds),
              Make(ort::kInt8, bounds),
              Make(ort::kFloat, slots),
              Make(ort::kFloat, state),
              Make(ort::kFloat, state),
              Make(ort::kFloat, slots),
              Ints({s.start}),
              Ints({s.cache_len}),
              Ints(RandomPolicy(s.page_size)),
              drift};
  c.outputs.resize(5);
  const bool in_place = Chance(0.5);
  c.in_place = {-1, -1, in_place ? 4 : -1, in_place ? 5 : -1, -1};
  return c;
}

FakeContext PatternCall() {
  const Shapes s;
  const int64_t n_slots = (s.q_len - 1) / s.page_size + Random(1, 4);
  std::vector<int64_t> policy = RandomPolicy(s.page_size);
  policy[0] = Pick<int64_t>({0, 3, 4});
  const std::vector<int64_t> keys = {1, s.n_kv_heads, s.q_len, s.head_dim};
  FakeContext c;
  c.inputs = {Make(ort::kFloat, {1, s.n_heads, s.q_len, s.head_dim}), Make(ort::kFloat, keys), Make(ort::kFloat, keys),
              Ints(policy), Make(ort::kUint8, {s.n_heads, n_slots, n_slots})};
  c.outputs.resize(3);
  c.in_place = {-1, Chance(0.5) ? 4 : -1, -1};
  return c;
}

FakeContext QuantizeCall(const FakeInfo& info) {
  const bool by_channel = info.strings.at("axis") == "channel";
  const int64_t lead = Random(1, 3), length = Random(0, 90), width = 8 * Random(1, 40);
  int64_t group = Random(1, by_channel ? 70 : width);
  while (!by_channel && width % group != 0) --group;
  FakeContext c;
  c.inputs = {Make(ort::kFloat, {lead, length, width}), Ints({Random(0, length)}), Ints({group})};
  c.types = {ort::kUint8, ort::kFloat16, ort::kFloat16, ort::kFloat};
  c.outputs.resize(by_channel ? 4 : 3);
  c.in_place = {-1, -1, -1, -1};
  return c;
}

FakeContext RowsCall(const FakeInfo& info) {
  const int64_t bits = info.ints.at("bits"), width = 8 * Random(1, 40), group = Random(1, 40), n = Random(0, 6);
  const bool by_channel = info.strings.at("axis") == "channel";
  const int64_t capacity = n * group, cache_len = Random(0, capacity), n_tail = by_channel && Chance(0.8) ? group : 0;
  int64_t columns = Random(1, width);
  while (width % columns != 0) --columns;
  const std::vector<int64_t> scales =
      by_channel ? std::vector<int64_t>{n, width} : std::vector<int64_t>{capacity, columns};
  std::vector<int64_t> rows(cache_len > 0 ? Random(0, 200) : 0);
  for (int64_t& row : rows) row = Random(0, cache_len - 1);
  FakeContext c;
  c.inputs = {Make(ort::kUint8, {capacity, width * bits / 8}),
              Make(ort::kFloat16, scales),
              Make(ort::kFloat16, scales),
              Make(ort::kFloat, {n_tail, width}),
              Ints(rows),
              Ints({cache_len})};
  c.outputs.resize(1);
  c.in_place = {-1};
  return c;
}

}  // namespace fuzz
