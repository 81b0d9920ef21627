// cuBLAS, cuDNN and NCCL: products are counted with their shapes, attention plans one by one, collectives by bytes.

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <atomic>

extern "C" {

void stand_in_count(const char* name, uint64_t bytes);

static std::atomic<uintptr_t> next_handle{0x1000000};
static int handle(void** out) {
    *out = (void*)(next_handle += 64);
    return 0;
}

// cuBLAS.
static int product(const char* name, int transpose_a, int transpose_b, long m, long n, long k, long lda, long ldb) {
    char text[160];
    snprintf(text, sizeof text, "product %s %c%c m %ld n %ld k %ld lda %ld ldb %ld", name, transpose_a ? 'T' : 'N',
             transpose_b ? 'T' : 'N', m, n, k, lda, ldb);
    stand_in_count(text, 2ull * m * n * k);
    return 0;
}
int cublasCreate_v2(void** context) { return handle(context); }
int cublasGetMathMode(void*, int* mode) {
    *mode = 0;
    return 0;
}
int cublasGetPointerMode_v2(void*, int* mode) {
    *mode = 0;
    return 0;
}
int cublasGemmEx(void*, int ta, int tb, int m, int n, int k, const void*, const void*, int, int lda, const void*, int,
                 int ldb, const void*, void*, int, int, int, int) {
    return product("GemmEx", ta, tb, m, n, k, lda, ldb);
}
int cublasSgemm_v2(void*, int ta, int tb, int m, int n, int k, const void*, const void*, int lda, const void*, int ldb,
                   const void*, void*, int) {
    return product("Sgemm", ta, tb, m, n, k, lda, ldb);
}
int cublasGemmStridedBatchedEx(void*, int ta, int tb, int m, int n, int k, const void*, const void*, int, int lda,
                               long long, const void*, int, int ldb, long long, const void*, void*, int, int, long long,
                               int batch, int, int) {
    return product("GemmStridedBatchedEx", ta, tb, m, n, (long)k * batch, lda, ldb);
}
struct Description {
    int transpose_a = 0, transpose_b = 0;
    uint64_t rows = 0, columns = 0;
    int64_t leading = 0;
};
int cublasLtMatmulDescCreate(Description** description, int, int) {
    *description = new Description;
    return 0;
}
int cublasLtMatmulDescDestroy(Description* description) {
    delete description;
    return 0;
}
int cublasLtMatmulDescSetAttribute(Description* description, int attribute, const void* value, size_t size) {
    int number = 0;
    memcpy(&number, value, size < 4 ? size : 4);
    if (attribute == 3) description->transpose_a = number;
    if (attribute == 4) description->transpose_b = number;
    return 0;
}
int cublasLtMatrixLayoutCreate(Description** layout, int, uint64_t rows, uint64_t columns, int64_t leading) {
    *layout = new Description;
    (*layout)->rows = rows, (*layout)->columns = columns, (*layout)->leading = leading;
    return 0;
}
int cublasLtMatrixLayoutDestroy(Description* layout) {
    delete layout;
    return 0;
}
int cublasLtMatmulPreferenceCreate(Description** preference) {
    *preference = new Description;
    return 0;
}
int cublasLtMatmulPreferenceDestroy(Description* preference) {
    delete preference;
    return 0;
}
struct Heuristic {
    uint64_t algorithm[8];
    size_t workspace_bytes;
    int state;
    float waves;
    int reserved[4];
};
int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int, Heuristic* result, int* found) {
    memset(result, 0, sizeof *result);
    result->waves = 1;
    *found = 1;
    return 0;
}
int cublasLtMatmul(void*, Description* what, const void*, const void*, Description* a, const void*, Description* b,
                   const void*, const void*, Description*, void*, Description* d, const void*, void*, size_t, void*) {
    long k = what->transpose_a ? a->rows : a->columns;
    return product("Lt", what->transpose_a, what->transpose_b, d->rows, d->columns, k, a->leading, b->leading);
}

// cuDNN's graph interface: what counts is that a descriptor of an execution plan (type 5) is finalized.
struct Descriptor {
    int type;
};
int cudnnCreate(void** context) { return handle(context); }
int cudnnGetStream(void*, void** stream) {
    *stream = nullptr;
    return 0;
}
int cudnnBackendCreateDescriptor(int type, void** descriptor) {
    *descriptor = new Descriptor{type};
    return 0;
}
int cudnnBackendDestroyDescriptor(void* descriptor) {
    delete (Descriptor*)descriptor;
    return 0;
}
int cudnnBackendFinalize(void* descriptor) {
    char text[64];
    snprintf(text, sizeof text, "cudnn descriptor %d", ((Descriptor*)descriptor)->type);
    stand_in_count(text, 0);
    return 0;
}
int cudnnBackendGetAttribute(void*, int name, int type, int64_t wanted, int64_t* count, void* out) {
    // 302: engine configurations; types 3 and 23 are integers, 11 and 19 lists of notes, 15 descriptors.
    bool is_integer = type == 3 || type == 23;
    if (is_integer && out && wanted >= 1) memset(out, 0, type == 3 ? 8 : 4);
    if (count) *count = name != 302 && (is_integer || type == 15);
    return 0;
}
int cudnnBackendExecute(void*, void*, void*) {
    stand_in_count("kernel cudnn", 0);
    return 0;
}

// NCCL: buffers read as zeros on every rank, so nothing is exchanged.
struct Communicator {
    int size, rank;
};
static size_t width(int type) {
    switch (type) {
        case 0:
        case 1:
            return 1;
        case 2:
        case 3:
        case 7:
            return 4;
        case 4:
        case 5:
        case 8:
            return 8;
        default:
            return 2;
    }
}
struct UniqueId {
    char bytes[128];
};
int ncclGetUniqueId(UniqueId* id) {
    memset(id, 0, sizeof *id);
    return 0;
}
int ncclCommInitRankConfig(Communicator** communicator, int size, UniqueId, int rank, void*) {
    *communicator = new Communicator{size, rank};
    return 0;
}
int ncclCommInitRank(Communicator** communicator, int size, UniqueId id, int rank) {
    return ncclCommInitRankConfig(communicator, size, id, rank, nullptr);
}
int ncclCommInitRankScalable(Communicator** communicator, int size, int rank, int, UniqueId* ids, void*) {
    return ncclCommInitRankConfig(communicator, size, ids[0], rank, nullptr);
}
int ncclCommSplit(Communicator* parent, int color, int, Communicator** communicator, void*) {
    // Of all groups that are made here, all ranks are members.
    *communicator = color < 0 ? nullptr : new Communicator(*parent);
    return 0;
}
int ncclCommCount(Communicator* communicator, int* size) {
    *size = communicator->size;
    return 0;
}
int ncclCommUserRank(Communicator* communicator, int* rank) {
    *rank = communicator->rank;
    return 0;
}
int ncclCommGetAsyncError(void*, int* error) {
    *error = 0;
    return 0;
}
int ncclAllReduce(const void*, void*, size_t count, int type, int, void*, void*) {
    stand_in_count("nccl all_reduce", count * width(type));
    return 0;
}
int ncclAllGather(const void*, void*, size_t count, int type, void*, void*) {
    stand_in_count("nccl all_gather", count * width(type));
    return 0;
}
int ncclReduceScatter(const void*, void*, size_t count, int type, int, void*, void*) {
    stand_in_count("nccl reduce_scatter", count * width(type));
    return 0;
}
int ncclReduce(const void*, void*, size_t count, int type, int, int, void*, void*) {
    stand_in_count("nccl reduce", count * width(type));
    return 0;
}
int ncclBroadcast(const void*, void*, size_t count, int type, int, void*, void*) {
    stand_in_count("nccl broadcast", count * width(type));
    return 0;
}
int ncclBcast(void* buffer, size_t count, int type, int root, void* communicator, void* stream) {
    return ncclBroadcast(buffer, buffer, count, type, root, communicator, stream);
}

}  // extern "C"
