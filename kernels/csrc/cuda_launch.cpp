// See cuda_launch.h.
#include "cuda_launch.h"

#include <dlfcn.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <sstream>
#include <vector>

namespace dlm_edge::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kDefaultShared = 48 << 10;  // more has to be asked for

struct Kernel {
  std::string function_name;
  int num_warps = 0, shared = 0;
  size_t n_arguments = 0;
  void* function = nullptr;  // loaded at the first launch
};

struct Scratch {
  DevicePointer memory = 0;
  size_t n_bytes = 0;
};

}  // namespace

// Of one context: what the folder offers, what has been loaded, and the working memory of each stream.
struct Kernels {
  std::mutex mutex;
  std::string folder;
  int n_processors = 0;
  std::map<std::string, Kernel> by_name;
  std::map<void*, Scratch> by_stream;
};

namespace {

std::string LibraryFolder() {
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(&SplitCount), &info) == 0 || info.dli_fname == nullptr) return ".";
  const std::string path = info.dli_fname;
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : path.substr(0, slash);
}

std::string ReadTable(const std::string& folder, std::map<std::string, Kernel>* by_name) {
  std::ifstream file(folder + "/kernels.txt");
  std::string line;
  while (std::getline(file, line)) {
    if (line.empty() || line[0] == '#') continue;
    std::istringstream columns(line);
    std::string name;
    Kernel kernel;
    columns >> name >> kernel.function_name >> kernel.num_warps >> kernel.shared >> kernel.n_arguments;
    if (!columns) return folder + "/kernels.txt is damaged: " + line;
    (*by_name)[name] = kernel;
  }
  return "";
}

// Code for 8.x runs on later 8.x devices. From 9.0 on it is compiled for one architecture (sm_90a, sm_120a).
std::string OpenFolder(int major, int minor, Kernels* kernels) {
  const std::string all = LibraryFolder() + "/cubins/sm_";
  for (int lower = minor; lower >= (major == 8 ? 0 : minor); --lower) {
    kernels->folder = all + std::to_string(10 * major + lower);
    const std::string problem = ReadTable(kernels->folder, &kernels->by_name);
    if (!problem.empty() || !kernels->by_name.empty()) return problem;
  }
  return "no compiled kernels for this device: " + all + std::to_string(10 * major + minor) +
         " is missing; run tools/compile_kernels.py, or choose the standard operators";
}

std::string OpenContext(const Driver& driver, Kernels* kernels) {
  int device = 0, major = 0, minor = 0;
  std::string problem = Check(driver, driver.CtxGetDevice(&device), "cuCtxGetDevice");
  auto read = [&](int attribute, int* value) {
    if (problem.empty())
      problem = Check(driver, driver.DeviceGetAttribute(value, attribute, device), "cuDeviceGetAttribute");
  };
  read(kMajor, &major);
  read(kMinor, &minor);
  read(kProcessorCount, &kernels->n_processors);
  return problem.empty() ? OpenFolder(major, minor, kernels) : problem;
}

std::string LoadKernel(const Driver& driver, const std::string& folder, const std::string& name, Kernel* kernel) {
  std::ifstream file(folder + "/" + name + ".cubin", std::ios::binary);
  const std::vector<char> image{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (image.empty()) return folder + "/" + name + ".cubin is missing";
  void *module = nullptr, *function = nullptr;
  std::string problem = Check(driver, driver.ModuleLoadData(&module, image.data()), "cuModuleLoadData");
  if (problem.empty())
    problem = Check(driver, driver.ModuleGetFunction(&function, module, kernel->function_name.c_str()),
                    "cuModuleGetFunction");
  if (problem.empty() && kernel->shared > kDefaultShared)
    problem = Check(driver, driver.FuncSetAttribute(function, kMaxDynamicShared, kernel->shared), "cuFuncSetAttribute");
  if (problem.empty()) kernel->function = function;
  return problem;
}

}  // namespace

int64_t SplitCount(int64_t n_programs, int64_t n_keys, int64_t n_processors) {
  constexpr int64_t kKeysPerSplit = 256, kMostSplits = 128;
  if (n_keys == 0) return 0;
  const int64_t wanted = std::min({2 * n_processors / n_programs, CeilDiv(n_keys, kKeysPerSplit), kMostSplits});
  return std::max<int64_t>(1, wanted);
}

std::string Device::Open(void* stream) {
  std::string problem;
  driver_ = LoadDriver(&problem);
  if (driver_ == nullptr) return problem;
  void* context = nullptr;
  problem = Check(*driver_, driver_->CtxGetCurrent(&context), "cuCtxGetCurrent");
  if (!problem.empty()) return problem;
  static std::mutex mutex;
  static std::map<void*, std::unique_ptr<Kernels>> by_context;
  const std::lock_guard<std::mutex> lock(mutex);
  std::unique_ptr<Kernels>& found = by_context[context];
  if (found == nullptr) {
    auto made = std::make_unique<Kernels>();
    problem = OpenContext(*driver_, made.get());
    if (!problem.empty()) return problem;
    found = std::move(made);
  }
  kernels_ = found.get();
  stream_ = stream;
  return "";
}

int64_t Device::n_processors() const { return kernels_->n_processors; }

std::string Device::Reserve(const Parts& parts) {
  const size_t n_bytes = parts.total_;
  const std::lock_guard<std::mutex> lock(kernels_->mutex);
  Scratch& scratch = kernels_->by_stream[stream_];
  if (scratch.n_bytes < n_bytes) {
    std::string problem;
    if (scratch.n_bytes > 0) {  // launches that use it may still be under way
      problem = Check(*driver_, driver_->StreamSynchronize(stream_), "cuStreamSynchronize");
      if (problem.empty()) problem = Check(*driver_, driver_->MemFree(scratch.memory), "cuMemFree");
      scratch = {};
    }
    DevicePointer made = 0;
    if (problem.empty()) problem = Check(*driver_, driver_->MemAlloc(&made, n_bytes), "cuMemAlloc");
    if (!problem.empty()) return problem;
    scratch = {made, n_bytes};
  }
  for (size_t i = 0; i < parts.count_; ++i)
    *parts.parts_[i] = reinterpret_cast<char*>(scratch.memory) + parts.offsets_[i];
  return "";
}

std::string Device::CopyIfApart(void* to, const void* from, size_t n_bytes) {
  if (to == from || n_bytes == 0) return "";
  const auto target = reinterpret_cast<DevicePointer>(to), source = reinterpret_cast<DevicePointer>(from);
  return Check(*driver_, driver_->MemcpyDtoDAsync(target, source, n_bytes, stream_), "cuMemcpyDtoDAsync");
}

std::string Device::Launch(const std::string& name, int64_t grid_x, int64_t grid_y, int64_t grid_z,
                           Arguments arguments) {
  void* function = nullptr;
  Kernel kernel;
  {
    const std::lock_guard<std::mutex> lock(kernels_->mutex);
    const auto found = kernels_->by_name.find(name);
    if (found == kernels_->by_name.end()) return kernels_->folder + " has no kernel " + name;
    if (found->second.function == nullptr) {
      const std::string problem = LoadKernel(*driver_, kernels_->folder, name, &found->second);
      if (!problem.empty()) return problem;
    }
    kernel = found->second;
    function = kernel.function;
  }
  if (kernel.n_arguments != arguments.count_)
    return name + " takes " + std::to_string(kernel.n_arguments) + " arguments, the library has " +
           std::to_string(arguments.count_) + "; compile the kernels again";
  if (!arguments.is_aligned_) return name + ": a tensor does not begin at a multiple of 16 bytes";
  if (grid_y > 65535 || grid_z > 65535 || grid_x > INT32_MAX) return name + ": the problem is too large for one launch";
  arguments.Pointers(nullptr, nullptr);  // Triton's global scratch and profile scratch, of size 0
  void* values[sizeof(arguments.slots_) / sizeof(arguments.slots_[0])];
  for (size_t i = 0; i < arguments.count_; ++i) values[i] = &arguments.slots_[i];
  const int result = driver_->LaunchKernel(function, static_cast<unsigned>(grid_x), static_cast<unsigned>(grid_y),
                                           static_cast<unsigned>(grid_z), kWarp * kernel.num_warps, 1, 1,
                                           static_cast<unsigned>(kernel.shared), stream_, values, nullptr);
  return Check(*driver_, result, name.c_str());
}

}  // namespace dlm_edge::cuda
