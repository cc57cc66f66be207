// Finding and launching the compiled kernels of kernels/triton. tools/compile_kernels.py writes, beside this library,
// cubins/sm_NN/NAME.cubin and kernels.txt; NAME carries the constants that a kernel was compiled with. The rules by which
// constants and grids are chosen are those of kernels/triton/tiles.py and launch.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "cuda_driver.h"

namespace dlm_edge::cuda {

constexpr int64_t kLargestPosition = int64_t{1} << 30;

inline int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What tiles.py chooses. 0: larger than any compiled kernel.
inline int64_t HeadBlock(int64_t head_dim) {
  return head_dim <= 64 ? 64 : head_dim <= 128 ? 128 : head_dim <= 256 ? 256 : 0;
}
inline int64_t RowBlock(int64_t n_rows) { return n_rows <= 16 ? 16 : 64; }
inline int64_t BlockRows(int64_t block_size) { return block_size <= 16 ? 16 : block_size <= 32 ? 32 : 64; }
inline int64_t KeyBlock(int64_t head_block, int bits) { return head_block > 128 || bits != 16 ? 32 : 64; }
inline int64_t StateBlock(int64_t n_rows) { return n_rows <= 128 ? 128 : n_rows <= 1024 ? 1024 : 0; }
inline int64_t PatternBlock(int64_t n_slots) { return n_slots <= 1024 ? 1024 : n_slots <= 4096 ? 4096 : 0; }
inline int64_t SlotBlock(int64_t n_valid) {
  return n_valid <= 1024 ? 1024 : n_valid <= 4096 ? 4096 : n_valid <= 16384 ? 16384 : 0;
}
int64_t SplitCount(int64_t n_programs, int64_t n_keys, int64_t n_processors);

// A kernel's arguments in the order of its signature.
class Arguments {
 public:
  Arguments& Pointers() { return *this; }
  template <class... Rest>
  Arguments& Pointers(const void* first, Rest... rest) {
    slots_[count_++].pointer = first;
    is_aligned_ = is_aligned_ && reinterpret_cast<uintptr_t>(first) % 16 == 0;
    return Pointers(rest...);
  }
  // Saturates: counts beyond int32 mean "all" wherever they are allowed.
  Arguments& Numbers() { return *this; }
  template <class... Rest>
  Arguments& Numbers(int64_t first, Rest... rest) {
    slots_[count_++].number = static_cast<int32_t>(first > INT32_MAX ? INT32_MAX : first);
    return Numbers(rest...);
  }
  Arguments& Float(float value) {
    slots_[count_++].real = value;
    return *this;
  }

 private:
  friend class Device;
  union Slot {
    const void* pointer;
    int32_t number;
    float real;
  };
  Slot slots_[40] = {};
  size_t count_ = 0;
  bool is_aligned_ = true;
};

// Parts of one block of working memory, each at a multiple of 256 bytes: first every part is asked for, then the block
// is reserved.
class Parts {
 public:
  void Ask(char** part, int64_t n_bytes) {
    offsets_[count_] = total_;
    parts_[count_++] = part;
    total_ += static_cast<size_t>(CeilDiv(n_bytes, 256) * 256);
  }

 private:
  friend class Device;
  char** parts_[8] = {};
  size_t offsets_[8] = {}, count_ = 0, total_ = 0;
};

// The current device and one stream of it, for one call of an operator. Functions return "" or the problem in words.
class Device {
 public:
  std::string Open(void* stream);
  int64_t n_processors() const;

  // Working memory for this call and this stream, valid until the next call of Reserve. Kept and grown as needed.
  std::string Reserve(const Parts& parts);

  // State outputs that are not bound to their inputs.
  std::string CopyIfApart(void* to, const void* from, size_t n_bytes);

  // `name` as Variant.name in kernels/triton/variants.py. The kernels are compiled for pointers
  // that are multiples of 16: ONNX Runtime's own are, others are refused.
  std::string Launch(const std::string& name, int64_t grid_x, int64_t grid_y, int64_t grid_z, Arguments arguments);

 private:
  struct Kernels* kernels_ = nullptr;  // lives as long as the process
  const Driver* driver_ = nullptr;
  void* stream_ = nullptr;
};

}  // namespace dlm_edge::cuda
