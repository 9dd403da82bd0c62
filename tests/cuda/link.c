/* Asks the CUDA library how much memory a draw from 65,536 ids needs, and of an argument that is
 * wrong. */
#include <fastdecode/fastdecode_cuda.h>
#include <stdio.h>

int main(void) {
  fastdecode_sample_args args;
  size_t bytes = 0;
  fastdecode_sample_args_init(&args);
  args.vocab = 65536;
  printf("%d %d\n", fastdecode_cuda_workspace(&args, 0, &bytes), bytes == 0); /* for no groups */
  args.vocab = -1;
  printf("%d %s\n", fastdecode_cuda_sample(&args, 0, NULL, 0, NULL), fastdecode_cuda_last_error());
  return 0;
}
