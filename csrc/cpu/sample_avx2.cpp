// The sampler with AVX2.
#define SAMPLE_GROUP sample_group_avx2
#include "cpu/sample_kernel.inc"
