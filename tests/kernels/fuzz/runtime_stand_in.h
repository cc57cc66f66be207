// A stand-in for ONNX Runtime: tensors, calls, and the functions of its table that the operators use.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "../../../kernels/csrc/operator.h"

namespace fuzz {

namespace ort = dlm_edge::ort;

size_t SizeOf(int type);

struct FakeValue {
  int type;
  std::vector<int64_t> dims;
  char* data;
  bool is_owner = true;

  size_t count() const {
    size_t n = 1;
    for (const int64_t dim : dims) n *= static_cast<size_t>(dim);
    return n;
  }
  size_t bytes() const { return count() * SizeOf(type); }
};

struct FakeStatus {
  std::string message;
};
struct FakeContext {
  std::vector<FakeValue*> inputs, outputs;
  std::vector<int> in_place;  // per output: the input whose memory it takes, or -1
  std::vector<int> types;     // per output: its element type, where it is said
};
struct FakeInfo {
  std::map<std::string, float> floats;
  std::map<std::string, int64_t> ints;
  std::map<std::string, std::string> strings;
};

template <class T>
auto* As(const void* p) {
  return static_cast<T*>(const_cast<void*>(p));
}
// The operators, in the order in which they were registered.
extern std::vector<const ort::CustomOp*> registered;
// ONNX Runtime's table of functions; empty until FillTable was called.
extern const void* table[300];
void FillTable();

}  // namespace fuzz
