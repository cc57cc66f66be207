// A CUDA driver that does nothing but write down launches: for tests of control flow on machines without a GPU.
// "Device" memory is host memory. Numbers computed with it mean nothing.
//
// STUB_CUDA_LOG        file that a line is appended to for each launch:
//                      function grid_x grid_y grid_z block_x shared stream argument...   (arguments as 64-bit hex)
// STUB_CUDA_ARGUMENTS  "function:count,..." how many arguments each function takes
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int cuTensorMapEncodeTiled(void) { return 0; }
int cuCtxGetCurrent(void** context) { return *context = (void*)1, 0; }
int cuCtxGetDevice(int* device) { return *device = 0; }
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  (void)device;
  return *value = attribute == 75 ? 8 : attribute == 76 ? 6 : attribute == 16 ? 84 : 0, 0;
}
int cuModuleLoadData(void** module, const void* image) {
  *module = (void*)2;
  return memcmp(image, "\177ELF", 4) == 0 ? 0 : 200;
}
int cuModuleGetFunction(void** function, void* module, const char* name) {
  (void)module;
  return *function = strdup(name), 0;
}
int cuFuncSetAttribute(void* function, int attribute, int value) { return (void)function, attribute == 8 && value > 49152 ? 0 : 1; }
int cuMemAlloc_v2(uint64_t* memory, size_t bytes) { return *memory = (uint64_t)aligned_alloc(256, (bytes + 255) / 256 * 256), 0; }
int cuMemFree_v2(uint64_t memory) { return free((void*)memory), 0; }
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void* stream) {
  return (void)stream, memmove((void*)to, (void*)from, bytes), 0;
}
int cuStreamSynchronize(void* stream) { return (void)stream, 0; }
int cuGetErrorString(int error, const char** text) { return (void)error, *text = "an error of the stub driver", 0; }

static int argument_count(const char* function) {
  const char* list = getenv("STUB_CUDA_ARGUMENTS");
  for (const char* at = list; at && (at = strstr(at, function)); ++at)
    if ((at == list || at[-1] == ',') && at[strlen(function)] == ':') return atoi(at + strlen(function) + 1);
  return 0;
}

int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void* stream, void** arguments, void** extra) {
  FILE* log = fopen(getenv("STUB_CUDA_LOG"), "a");
  if (!log || by != 1 || bz != 1 || extra) return 1;
  fprintf(log, "%s %u %u %u %u %u %p", (const char*)function, gx, gy, gz, bx, shared, stream);
  const int count = argument_count(function) + 2;  // and the two scratch pointers
  for (int i = 0; i < count; ++i) fprintf(log, " %llx", *(unsigned long long*)arguments[i]);
  fprintf(log, "\n");
  return fclose(log);
}
