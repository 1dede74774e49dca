// What the row kernels use of CUDA C++, by a thread of the CPU for each thread of a block.
#pragma once
#include <pthread.h>

#include <cmath>
#include <cstring>
#include <thread>
#include <vector>

using namespace std;

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(n)

struct Index {
    unsigned x;
};
static thread_local Index threadIdx;
static Index blockIdx, blockDim;
static pthread_barrier_t together;

inline void __syncthreads() { pthread_barrier_wait(&together); }

inline float __int_as_float(int bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

template <typename Kernel>
void launch(unsigned rows, unsigned threads, Kernel kernel) {
    blockDim.x = threads;
    pthread_barrier_init(&together, nullptr, threads);
    for (blockIdx.x = 0; blockIdx.x < rows; ++blockIdx.x) {
        vector<thread> block;
        for (unsigned j = 0; j < threads; ++j)
            block.emplace_back([&, j] {
                threadIdx.x = j;
                kernel();
            });
        for (auto& one : block) one.join();
    }
    pthread_barrier_destroy(&together);
}
