// Which instruction set the kernels with more than one form run with.
#pragma once

namespace fastdecode {

enum class Isa { kPortable = 0, kAvx2 = 1, kAvx512 = 2 };

// The best that this processor and operating system have; FASTDECODE_CPU_ISA (portable, avx2,
// avx512), read once, may lower it.
Isa cpu_isa();

const char* isa_name(Isa isa);

}  // namespace fastdecode
