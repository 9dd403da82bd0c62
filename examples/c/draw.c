/* Draws a picture's worth of ids, guided, from made-up logits: conditional and unconditional row,
 * mixed 3 to -2, image ids only, top-p 0.9. Needs nothing but the library:
 *
 *     gcc -std=c99 draw.c $(fastdecode config --cflags --libs) -o draw
 *
 * Prints the ids, and their mean log-probability.
 */
#include <fastdecode/fastdecode.h>
#include <stdio.h>
#include <stdlib.h>

enum { VOCAB = 65536, ROWS = 2, LENGTH = 16 };

/* Stands for a model: logits of both rows at a step. */
static void model(int step, float* logits) {
  for (int i = 0; i < ROWS * VOCAB; ++i) {
    uint32_t h = (uint32_t)i * 2654435761u ^ (uint32_t)step * 40503u;
    h = (h ^ (h >> 15)) * 2246822519u;
    h ^= h >> 13;
    logits[i] = (float)(h % 4096) / 512.0f;
  }
}

int main(void) {
  const int32_t streams[ROWS] = {0, 1}; /* one group: its conditional and unconditional row */
  const float weights[ROWS] = {3.0f, -2.0f};
  const int32_t ranges[] = {4, 8196}; /* ids that may come: the pictures' */
  const int32_t set_offsets[] = {0, 1};
  int64_t token;
  float logprob, total = 0.0f;
  int32_t kept, status;
  float* logits = malloc(sizeof(float) * ROWS * VOCAB);
  fastdecode_sample_args args;
  if (logits == NULL) return 1;

  fastdecode_sample_args_init(&args);
  args.logits = logits;
  args.rows = ROWS;
  args.vocab = VOCAB;
  args.row_stride = VOCAB;
  args.groups = 1;
  args.streams_per_group = ROWS;
  args.streams = streams;
  args.weights = weights;
  args.ranges = ranges;
  args.set_offsets = set_offsets;
  args.sets = 1;
  args.temperature_value = 0.7f;
  args.top_p_value = 0.9f;
  args.seed_value = 7;
  args.token = &token;
  args.logprob = &logprob;
  args.kept = &kept;
  args.status = &status;

  for (int step = 0; step < LENGTH; ++step) {
    model(step, logits);
    args.step_value = step; /* the noise depends on seed, step and id, and on nothing else */
    if (fastdecode_sample(&args) != FASTDECODE_OK) {
      fprintf(stderr, "%s\n", fastdecode_last_error());
      return 1;
    }
    printf("%lld ", (long long)token);
    total += logprob;
  }
  printf("\nmean logprob %.6f\n", total / LENGTH);
  free(logits);
  return 0;
}
