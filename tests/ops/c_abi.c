/* Prints two draws, three error messages, the version, and what is said of scales, one per line. */
#include <fastdecode/fastdecode.h>
#include <math.h>
#include <stdio.h>

enum { VOCAB = 300, GROUPS = 2 };

/* Attention and a step without rows, whose arguments are right but for `scale`. */
static void try_scale(float scale) {
  const float norm[4] = {1.0f, 1.0f, 1.0f, 1.0f};
  fastdecode_attend_args attend;
  fastdecode_decode_args decode;
  if (fastdecode_attend_args_init(&attend) != FASTDECODE_OK) return;
  attend.heads = attend.kv_heads = attend.page_slots = 1;
  attend.head_dim = 4;
  attend.scale = scale;
  printf("%d ", fastdecode_attend(&attend));
  printf("%s\n", fastdecode_last_error());
  if (fastdecode_decode_args_init(&decode) != FASTDECODE_OK) return;
  decode.hidden = decode.inner = decode.head_dim = 4;
  decode.heads = decode.kv_heads = decode.page_slots = 1;
  decode.norm = norm;
  decode.scale = scale;
  printf("%d ", fastdecode_decode_step(&decode));
  printf("%s\n", fastdecode_last_error());
}

int main(void) {
  float logits[2 * VOCAB];
  const int32_t streams[] = {0, 1, 1, -1};
  const float weights[] = {3.0f, -2.0f, 1.0f, 1.0f};
  int32_t ranges[] = {10, 200, 250, 300};
  const int32_t set_offsets[] = {0, 2};
  const int32_t top_k[] = {50, 0};
  int64_t token[GROUPS];
  float logprob[GROUPS];
  int32_t kept[GROUPS], status[GROUPS];
  fastdecode_sample_args args;

  for (int i = 0; i < VOCAB; ++i) {
    logits[i] = (float)(i * 37 % 101) / 16.0f;
    logits[VOCAB + VOCAB - 1 - i] = logits[i];
  }
  if (fastdecode_sample_args_init(&args) != FASTDECODE_OK) return 1;
  args.logits = logits;
  args.dtype = FASTDECODE_FLOAT32;
  args.rows = 2;
  args.vocab = VOCAB;
  args.row_stride = VOCAB;
  args.groups = GROUPS;
  args.streams_per_group = 2;
  args.streams = streams;
  args.weights = weights;
  args.ranges = ranges;
  args.set_offsets = set_offsets;
  args.sets = 1;
  args.temperature_value = 0.7f;
  args.top_k = top_k;
  args.top_p_value = 0.9f;
  args.seed_value = 7;
  args.step_value = 3;
  args.token = token;
  args.logprob = logprob;
  args.kept = kept;
  args.status = status;
  if (fastdecode_sample(&args) != FASTDECODE_OK) {
    fprintf(stderr, "%s\n", fastdecode_last_error());
    return 1;
  }
  for (int g = 0; g < GROUPS; ++g) {
    printf("%lld %.9g %d %d\n", (long long)token[g], logprob[g], kept[g], status[g]);
  }

  args.temperature_value = -1.0f;
  printf("%d ", fastdecode_sample(&args));
  printf("%s\n", fastdecode_last_error());
  args.temperature_value = 1.0f;
  args.size = 8;
  printf("%d ", fastdecode_sample(&args));
  printf("%s\n", fastdecode_last_error());
  args.size = sizeof args;
  ranges[2] = 150;
  printf("%d ", fastdecode_sample(&args));
  printf("%s\n", fastdecode_last_error());
  printf("%d %s\n", fastdecode_abi_version(), fastdecode_cpu_isa());
  try_scale(NAN);
  try_scale(-INFINITY);
  try_scale(0.5f);
  return 0;
}
