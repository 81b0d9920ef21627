// The CUDA runtime, cuBLAS, cuDNN and NCCL of one pretended H100. Nothing is computed: calls are counted by name, device
// memory is reserved address space that reads as zeros, and streams are always empty. Preloaded before the real
// libraries; functions that are not here are generated as empty ones by build.py. Errors are numbered as CUDA's.

#include <dlfcn.h>
#include <driver_types.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <atomic>
#include <map>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

namespace {

constexpr int SUCCESS = 0, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101;
constexpr size_t PAGE_BYTES = 4096;

struct Count {
    uint64_t calls = 0, bytes = 0;
};
using Ranges = std::map<uintptr_t, size_t>;

std::recursive_mutex mutex;
thread_local int current_device = 0;
size_t used_bytes = 0;
std::atomic<uintptr_t> next_handle{0x1000};

// Libraries call in before constructors of this file have run, so globals are made at first use, and never destroyed.
std::map<std::string, Count>& counts() {
    static auto* value = new std::map<std::string, Count>;
    return *value;
}
std::unordered_map<const void*, std::string>& kernel_names() {
    static auto* value = new std::unordered_map<const void*, std::string>;
    return *value;
}
Ranges& device_ranges() {
    static auto* value = new Ranges;
    return *value;
}
Ranges& pinned_ranges() {
    static auto* value = new Ranges;
    return *value;
}

size_t setting(const char* name, size_t otherwise) {
    const char* value = getenv(name);
    return value ? strtoull(value, nullptr, 10) : otherwise;
}
size_t device_bytes() { return setting("STAND_IN_DEVICE_GIB", 79) << 30; }
int device_count() { return (int)setting("STAND_IN_DEVICES", 1); }

int handle(void** out) {
    *out = (void*)(next_handle += 64);
    return SUCCESS;
}

bool holds(Ranges& ranges, const void* pointer) {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    auto after = ranges.upper_bound((uintptr_t)pointer);
    if (after == ranges.begin()) return false;
    --after;
    return (uintptr_t)pointer < after->first + after->second;
}

size_t rounded(size_t bytes) { return ((bytes ? bytes : 1) + PAGE_BYTES - 1) & ~(PAGE_BYTES - 1); }
void* reserve(size_t bytes) {
    void* memory =
        mmap(nullptr, rounded(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return memory == MAP_FAILED ? nullptr : memory;
}

}  // namespace

extern "C" {

// What the tests call.
void stand_in_count(const char* name, uint64_t bytes) {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    Count& count = counts()[name];
    count.calls++;
    count.bytes += bytes;
}
void stand_in_reset() {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    counts().clear();
}
void stand_in_write(const char* path) {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    FILE* file = fopen(path, "w");
    for (auto& [name, count] : counts())
        fprintf(file, "%lu\t%lu\t%s\n", (unsigned long)count.calls, (unsigned long)count.bytes, name.c_str());
    fclose(file);
}

// Kernels: registered by the libraries' initializers, launched by address.
static int launch(const void* function) {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    auto known = kernel_names().find(function);
    stand_in_count(("kernel " + (known == kernel_names().end() ? std::string("?") : known->second)).c_str(), 0);
    return SUCCESS;
}
struct Dimensions {
    unsigned x, y, z;
};
struct LaunchConfiguration {
    Dimensions grid, block;
    size_t shared_bytes;
    void* stream;
};
static thread_local std::vector<LaunchConfiguration>* configurations;

void** __cudaRegisterFatBinary(void*) {
    static void* binary;
    return &binary;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, void*, void*, void*, void*, int*) {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    kernel_names()[host] = name;
}
int __cudaGetKernel(void** kernel, const void* function) {
    *kernel = (void*)function;
    return SUCCESS;
}
unsigned __cudaPushCallConfiguration(Dimensions grid, Dimensions block, size_t shared_bytes, void* stream) {
    if (!configurations) configurations = new std::vector<LaunchConfiguration>;
    configurations->push_back({grid, block, shared_bytes, stream});
    return SUCCESS;
}
int __cudaPopCallConfiguration(Dimensions* grid, Dimensions* block, size_t* shared_bytes, void** stream) {
    LaunchConfiguration last = configurations->back();
    configurations->pop_back();
    *grid = last.grid, *block = last.block, *shared_bytes = last.shared_bytes, *stream = last.stream;
    return SUCCESS;
}
int __cudaLaunchKernel(void* function, Dimensions, Dimensions, void**, size_t, void*) { return launch(function); }
int cudaLaunchKernel(const void* function, Dimensions, Dimensions, void**, size_t, void*) { return launch(function); }
int cudaLaunchKernelExC(const void*, const void* function, void**) { return launch(function); }
int cudaLaunchHostFunc(void*, void (*function)(void*), void* data) {
    function(data);
    return SUCCESS;
}
int cudaStreamAddCallback(void* stream, void (*function)(void*, int, void*), void* data, unsigned) {
    function(stream, SUCCESS, data);
    return SUCCESS;
}
int cudaFuncGetAttributes(char* attributes, const void*) {
    memset(attributes, 0, 96);
    size_t* sizes = (size_t*)attributes;  // shared, constant and local bytes, then integers
    int* numbers = (int*)(sizes + 3);
    numbers[0] = 1024, numbers[1] = 64, numbers[2] = numbers[3] = 90, numbers[5] = 232448 - 1024;
    return SUCCESS;
}
int cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, size_t) {
    *blocks = 2;
    return SUCCESS;
}
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int, size_t, unsigned) {
    *blocks = 2;
    return SUCCESS;
}
static int nothing() { return SUCCESS; }
int cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned, unsigned long long, int* status) {
    static void* driver = dlopen("libcuda.so.1", RTLD_NOW);
    *function = dlsym(driver, name);
    if (!*function) *function = dlsym(driver, (std::string(name) + "_v2").c_str());
    if (!*function) *function = (void*)nothing;
    if (status) *status = SUCCESS;
    return SUCCESS;
}

// Devices: the figures of an H100 SXM.
int cudaGetDeviceCount(int* count) {
    *count = device_count();
    return SUCCESS;
}
int cudaGetDevice(int* device) {
    *device = current_device;
    return SUCCESS;
}
int cudaSetDevice(int device) {
    if (device < 0 || device >= device_count()) return INVALID_DEVICE;
    current_device = device;
    return SUCCESS;
}
int cudaDriverGetVersion(int* version) {
    *version = 13020;
    return SUCCESS;
}
int cudaRuntimeGetVersion(int* version) { return cudaDriverGetVersion(version); }
int cudaDeviceGetAttribute(int* value, int attribute, int) {
    static const std::map<int, int> known = {
        {1, 1024},  {2, 1024},   {3, 1024},    {4, 64},      {5, 2147483647}, {6, 65535},   {7, 65535},  {8, 49152},
        {9, 65536}, {10, 32},    {12, 65536},  {13, 1980000}, {14, 512},      {16, 132},    {19, 1},     {31, 1},
        {32, 1},    {36, 2619000}, {37, 5120}, {38, 52428800}, {39, 2048},    {40, 3},      {41, 1},     {75, 9},
        {78, 1},    {81, 233472}, {82, 65536}, {83, 1},      {95, 1},         {97, 232448}, {99, 1},     {106, 32},
        {111, 1024}, {115, 1},   {120, 1}};
    auto found = known.find(attribute);
    *value = found == known.end() ? 0 : found->second;
    return SUCCESS;
}
int cudaGetDeviceProperties(struct cudaDeviceProp* properties, int) {
    memset(properties, 0, sizeof *properties);
    strcpy(properties->name, "stand-in for NVIDIA H100 80GB HBM3");
    properties->totalGlobalMem = device_bytes();
    properties->major = 9;
    properties->multiProcessorCount = 132;
    properties->warpSize = 32;
    properties->maxThreadsPerBlock = 1024;
    properties->maxThreadsPerMultiProcessor = 2048;
    properties->maxBlocksPerMultiProcessor = 32;
    properties->maxThreadsDim[0] = properties->maxThreadsDim[1] = 1024;
    properties->maxThreadsDim[2] = 64;
    properties->maxGridSize[0] = 2147483647;
    properties->maxGridSize[1] = properties->maxGridSize[2] = 65535;
    properties->sharedMemPerBlock = 49152;
    properties->sharedMemPerBlockOptin = 232448;
    properties->sharedMemPerMultiprocessor = 233472;
    properties->regsPerBlock = properties->regsPerMultiprocessor = 65536;
    properties->l2CacheSize = 52428800;
    properties->memoryBusWidth = 5120;
    properties->unifiedAddressing = properties->concurrentKernels = properties->cooperativeLaunch = 1;
    return SUCCESS;
}
int cudaDeviceGetPCIBusId(char* text, int size, int device) {
    snprintf(text, size, "0000:%02x:00.0", device + 1);
    return SUCCESS;
}
int cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
    *least = 0, *greatest = -5;
    return SUCCESS;
}
int cudaDeviceCanAccessPeer(int* can, int, int) {
    *can = 1;
    return SUCCESS;
}
int cudaDeviceGetDefaultMemPool(void** pool, int) { return handle(pool); }
int cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
    *total_bytes = device_bytes();
    *free_bytes = *total_bytes - used_bytes;
    return SUCCESS;
}

// Memory.
int cudaMalloc(void** pointer, size_t bytes) {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    *pointer = used_bytes + bytes > device_bytes() ? nullptr : reserve(bytes);
    if (!*pointer) return OUT_OF_MEMORY;
    device_ranges()[(uintptr_t)*pointer] = bytes;
    used_bytes += bytes;
    stand_in_count("cudaMalloc", bytes);
    return SUCCESS;
}
int cudaMallocAsync(void** pointer, size_t bytes, void*) { return cudaMalloc(pointer, bytes); }
int cudaMallocManaged(void** pointer, size_t bytes, unsigned) { return cudaMalloc(pointer, bytes); }
int cudaFree(void* pointer) {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    auto found = device_ranges().find((uintptr_t)pointer);
    if (found == device_ranges().end()) return SUCCESS;
    used_bytes -= found->second;
    munmap(pointer, rounded(found->second));
    device_ranges().erase(found);
    stand_in_count("wait device", 0);
    return SUCCESS;
}
int cudaFreeAsync(void* pointer, void*) { return cudaFree(pointer); }
int cudaHostAlloc(void** pointer, size_t bytes, unsigned) {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    *pointer = reserve(bytes);
    if (!*pointer) return OUT_OF_MEMORY;
    pinned_ranges()[(uintptr_t)*pointer] = bytes;
    return SUCCESS;
}
int cudaMallocHost(void** pointer, size_t bytes) { return cudaHostAlloc(pointer, bytes, 0); }
int cudaFreeHost(void* pointer) {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    auto found = pinned_ranges().find((uintptr_t)pointer);
    if (found == pinned_ranges().end()) return SUCCESS;
    munmap(pointer, rounded(found->second));
    pinned_ranges().erase(found);
    return SUCCESS;
}
int cudaHostRegister(void* pointer, size_t bytes, unsigned) {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    pinned_ranges()[(uintptr_t)pointer] = bytes;
    return SUCCESS;
}
int cudaHostUnregister(void* pointer) {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    pinned_ranges().erase((uintptr_t)pointer);
    return SUCCESS;
}
struct PointerAttributes {
    int type, device;
    void *device_pointer, *host_pointer;
};
int cudaPointerGetAttributes(PointerAttributes* attributes, const void* pointer) {
    bool on_device = holds(device_ranges(), pointer), pinned = holds(pinned_ranges(), pointer);
    attributes->type = on_device ? 2 : pinned ? 1 : 0;
    attributes->device = on_device || pinned ? 0 : -2;
    attributes->device_pointer = on_device || pinned ? (void*)pointer : nullptr;
    attributes->host_pointer = on_device ? nullptr : (void*)pointer;
    return SUCCESS;
}
static int copy(void* to, const void* from, size_t bytes) {
    bool to_device = holds(device_ranges(), to), from_device = holds(device_ranges(), from);
    if (to_device && from_device)
        stand_in_count("copy in device", bytes);
    else if (to_device)
        stand_in_count(holds(pinned_ranges(), from) ? "copy to device, pinned" : "copy to device, pageable", bytes);
    else if (from_device)
        stand_in_count(holds(pinned_ranges(), to) ? "copy to host, pinned" : "copy to host, pageable", bytes);
    if (!to_device && from_device) memset(to, 0, bytes);
    if (!to_device && !from_device) memmove(to, from, bytes);
    return SUCCESS;
}
int cudaMemcpy(void* to, const void* from, size_t bytes, int) {
    stand_in_count("wait stream", 0);
    return copy(to, from, bytes);
}
int cudaMemcpyAsync(void* to, const void* from, size_t bytes, int, void*) { return copy(to, from, bytes); }
int cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t bytes, void*) { return copy(to, from, bytes); }
int cudaGetSymbolAddress(void** pointer, const void*) {
    static char symbol[1 << 16];
    *pointer = symbol;
    return SUCCESS;
}

// Streams and events.
int cudaStreamCreate(void** stream) { return handle(stream); }
int cudaStreamCreateWithFlags(void** stream, unsigned) { return handle(stream); }
int cudaStreamCreateWithPriority(void** stream, unsigned, int) { return handle(stream); }
int cudaStreamGetPriority(void*, int* priority) {
    *priority = 0;
    return SUCCESS;
}
int cudaStreamIsCapturing(void*, int* status) {
    *status = 0;
    return SUCCESS;
}
int cudaStreamGetCaptureInfo(void*, int* status, unsigned long long* id, void**, const void***, const void***, size_t*) {
    if (status) *status = 0;
    if (id) *id = 0;
    return SUCCESS;
}
int cudaEventCreate(void** event) { return handle(event); }
int cudaEventCreateWithFlags(void** event, unsigned) { return handle(event); }
int cudaEventElapsedTime(float* milliseconds, void*, void*) {
    *milliseconds = 1;
    return SUCCESS;
}
int cudaDeviceSynchronize() {
    stand_in_count("wait device", 0);
    return SUCCESS;
}
int cudaStreamSynchronize(void*) {
    stand_in_count("wait stream", 0);
    return SUCCESS;
}
int cudaEventSynchronize(void*) {
    stand_in_count("wait event", 0);
    return SUCCESS;
}

}  // extern "C"
