// See random_tensors.h.
#include "random_tensors.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <random>

namespace fuzz {
namespace {

std::mt19937_64 generator;

void Fill(FakeValue* value) {
  const size_t n = value->count();
  for (size_t i = 0; i < n; ++i) {
    const float number = RandomNormal();
    if (any_bits || SizeOf(value->type) == 1) {
      for (size_t b = 0; b < SizeOf(value->type); ++b)
        value->data[i * SizeOf(value->type) + b] = static_cast<char>(RandomBits());
    } else if (value->type == ort::kFloat) {
      std::memcpy(value->data + 4 * i, &number, 4);
    } else if (value->type == ort::kFloat16) {
      const uint16_t half = static_cast<uint16_t>(Random(0, 0x3c00) | (Chance(0.5) ? 0x8000 : 0));  // -1 to 1
      std::memcpy(value->data + 2 * i, &half, 2);
    }
  }
}

}  // namespace

bool any_bits;

void Seed(uint64_t seed) { generator.seed(seed); }
uint64_t RandomBits() { return generator(); }
float RandomNormal() { return std::normal_distribution<float>()(generator); }
int64_t Random(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(generator); }
bool Chance(double p) { return std::bernoulli_distribution(p)(generator); }

FakeValue* Make(int type, std::vector<int64_t> dims) {
  auto* value = new FakeValue{type, std::move(dims), nullptr};
  value->data = As<char>(std::malloc(value->bytes()));
  Fill(value);
  return value;
}

FakeValue* Ints(std::vector<int64_t> numbers) {
  auto* value = new FakeValue{ort::kInt64, {static_cast<int64_t>(numbers.size())}, nullptr};
  value->data = As<char>(std::malloc(value->bytes()));
  std::copy(numbers.begin(), numbers.end(), As<int64_t>(value->data));
  return value;
}

}  // namespace fuzz
