// Random numbers and tensors.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <vector>

#include "runtime_stand_in.h"

namespace fuzz {

void Seed(uint64_t seed);
uint64_t RandomBits();
float RandomNormal();
int64_t Random(int64_t low, int64_t high);  // both ends included
bool Chance(double p);
template <class T>
T Pick(std::initializer_list<T> values) {
  return values.begin()[Random(0, static_cast<int64_t>(values.size()) - 1)];
}

// How floats are filled: sound numbers, or any bits.
extern bool any_bits;

// Allocations of their exact size, filled.
FakeValue* Make(int type, std::vector<int64_t> dims);
FakeValue* Ints(std::vector<int64_t> numbers);

}  // namespace fuzz
