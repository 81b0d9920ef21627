// libcuda, for Triton and Inductor, which load compiled kernels by it.

#include <dlfcn.h>
#include <stdint.h>
#include <string.h>

#include <string>
#include <unordered_map>

extern "C" {

static void count(const char* name) {
    static auto function = (void (*)(const char*, uint64_t))dlsym(RTLD_DEFAULT, "stand_in_count");
    if (function) function(name, 0);
}
static void* next_handle() {
    static uintptr_t value = 0x2000000;
    return (void*)(value += 16);
}
static std::unordered_map<void*, std::string>& names() {
    static auto* value = new std::unordered_map<void*, std::string>;
    return *value;
}

int cuDriverGetVersion(int* version) {
    *version = 13020;
    return 0;
}
int cuDeviceGetCount(int* number) {
    static auto runtime = (int (*)(int*))dlsym(RTLD_DEFAULT, "cudaGetDeviceCount");
    return runtime(number);
}
int cuDeviceGet(int* device, int ordinal) {
    *device = ordinal;
    return 0;
}
int cuDeviceGetName(char* name, int size, int) {
    strncpy(name, "stand-in for NVIDIA H100 80GB HBM3", size);
    return 0;
}
int cuDeviceGetAttribute(int* value, int attribute, int device) {
    static auto runtime = (int (*)(int*, int, int))dlsym(RTLD_DEFAULT, "cudaDeviceGetAttribute");
    return runtime(value, attribute, device);
}
int cuDeviceTotalMem_v2(size_t* bytes, int) {
    *bytes = 79ull << 30;
    return 0;
}
int cuCtxGetCurrent(void** context) {
    *context = (void*)0x11;
    return 0;
}
int cuCtxGetDevice(int* device) {
    *device = 0;
    return 0;
}
int cuDevicePrimaryCtxGetState(int, unsigned* flags, int* active) {
    *flags = 0, *active = 1;
    return 0;
}
int cuDevicePrimaryCtxRetain(void** context, int) { return cuCtxGetCurrent(context); }
int cuGetErrorString(int, const char** text) {
    *text = "error of the stand-in";
    return 0;
}
int cuGetErrorName(int, const char** text) { return cuGetErrorString(0, text); }
int cuPointerGetAttribute(void* value, int attribute, uint64_t pointer) {
    if (attribute == 2)
        *(int*)value = 2;  // memory of a device
    else
        *(uint64_t*)value = attribute == 3 ? pointer : 0;
    return 0;
}
int cuModuleLoadData(void** module, const void*) {
    *module = next_handle();
    return 0;
}
int cuModuleLoadDataEx(void** module, const void* image, unsigned, void*, void*) {
    return cuModuleLoadData(module, image);
}
int cuModuleGetFunction(void** function, void*, const char* name) {
    *function = next_handle();
    names()[*function] = name;
    return 0;
}
int cuFuncGetAttribute(int* value, int attribute, void*) {
    *value = attribute == 0 ? 1024 : attribute == 4 ? 64 : 0;  // threads of a block, registers
    return 0;
}
static int launch(void* function) {
    count(("kernel triton " + names()[function]).c_str());
    return 0;
}
int cuLaunchKernel(void* function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**,
                   void**) {
    return launch(function);
}
int cuLaunchKernelEx(const void*, void* function, void**, void**) { return launch(function); }
int cuStreamIsCapturing(void*, int* status) {
    *status = 0;
    return 0;
}
int cuOccupancyMaxActiveClusters(int* clusters, void*, const void*) {
    *clusters = 1;
    return 0;
}

}  // extern "C"
