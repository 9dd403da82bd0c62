// fastdecode_cuda.h on the CPU with block.cuh's own lines: all blocks of a launch, and all their
// threads, run at the same time. Blocks have fewer threads than on a GPU, but more than one warp.
#include <cuda_runtime.h>

#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "gpu_threads.h"
// first the above, which block.cuh needs
#include "cuda/block.cuh"

namespace fastdecode {
namespace {

static_assert(kWarp == kLanes, "a warp is a warp");

struct BlockMemory {
  explicit BlockMemory(size_t count) : values(count) {
    std::memset(static_cast<void*>(&shared), 0xa5, sizeof shared);
    std::memset(static_cast<void*>(values.data()), 0xa5, count * sizeof(float));
  }

  BlockThreads threads;
  Shared shared;
  uint64_t slots[kWarps];
  std::vector<float> values;
};

class ConcurrentBlock : public CudaBlock<kThreadsOfBlock> {
 public:
  explicit ConcurrentBlock(BlockMemory& memory)
      : CudaBlock(memory.shared, memory.slots), memory_(memory) {}
  float* values() const { return memory_.values.data(); }

 private:
  BlockMemory& memory_;
};

// A FakeKernel.
template <class Kernel, int kThreads, class Call>
void kernel(unsigned blocks, size_t shared_bytes, void** arguments, cudaStream_t) {
  const Call& call = *static_cast<const Call*>(arguments[0]);
  std::vector<std::unique_ptr<BlockMemory>> memory;
  for (unsigned b = 0; b < blocks; ++b) {
    memory.push_back(std::make_unique<BlockMemory>(shared_bytes / sizeof(float)));
  }
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < blocks * kThreadsOfBlock; ++t) {
    threads.emplace_back([&, t] {
      blockIdx.x = t / kThreadsOfBlock;
      threadIdx.x = t % kThreadsOfBlock;
      block_threads = &memory[blockIdx.x]->threads;
      ConcurrentBlock block(*memory[blockIdx.x]);
      Kernel::run(block, call);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace fastdecode

#include "cuda/api.inc"
