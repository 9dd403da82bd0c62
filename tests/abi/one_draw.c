/* Samples one token and decodes one step of two layers with what the header at hand offers. It sets
 * every required field but no optional one, and prints what came and whether the memory behind the
 * structs is whole. */
#include <fastdecode/fastdecode.h>
#include <stdio.h>
#include <string.h>

#define GUARD 0x41

static struct {
  fastdecode_sample_args args;
  unsigned char guard[512];
} sample;

static struct {
  fastdecode_decode_args args;
  unsigned char guard[512];
} decode;

static int whole(const unsigned char* guard) {
  for (int i = 0; i < 512; ++i) {
    if (guard[i] != GUARD) return 0;
  }
  return 1;
}

int main(void) {
  float logits[4] = {1, 2, 9, 3}, weights[64], ones[8], rotation[4] = {1, 1, 1, 1}, x[8];
  float keys[2][16], values[2][16], logprob;
  int64_t token = -7, length = 0;
  int32_t kept, status, page = 0;
  int result;
  fastdecode_layer layers[2];
  memset(sample.guard, GUARD, sizeof sample.guard);
  memset(decode.guard, GUARD, sizeof decode.guard);

  fastdecode_sample_args_init(&sample.args);
  sample.args.logits = logits;
  sample.args.rows = sample.args.groups = 1;
  sample.args.vocab = sample.args.row_stride = 4;
  sample.args.temperature_value = 0;
  sample.args.token = &token;
  sample.args.logprob = &logprob;
  sample.args.kept = &kept;
  sample.args.status = &status;
  result = fastdecode_sample(&sample.args);
  printf("version %d, library %d\n", FASTDECODE_ABI_VERSION, fastdecode_abi_version());
  printf("%d token %lld %s\n", result, (long long)token, result ? fastdecode_last_error() : "");

  for (int i = 0; i < 64; ++i) weights[i] = (float)(i % 7) / 8;
  for (int i = 0; i < 8; ++i) ones[i] = 1, x[i] = (float)i;
  memset(layers, 0, sizeof layers);
  for (int i = 0; i < 2; ++i) {
    fastdecode_layer* layer = layers + i;
    layer->q = layer->k = layer->v = layer->o = layer->gate = layer->up = layer->down = weights;
    layer->norm_attention = layer->norm_mlp = ones;
    layer->keys = keys[i];
    layer->values = values[i];
  }
  fastdecode_decode_args_init(&decode.args);
  decode.args.layers = layers;
  decode.args.layer_count = 2;
  decode.args.hidden = decode.args.inner = 8;
  decode.args.heads = 2;
  decode.args.kv_heads = 1;
  decode.args.head_dim = 4;
  decode.args.scale = 0.5f;
  decode.args.norm = ones;
  decode.args.pages = 1;
  decode.args.page_slots = 4;
  decode.args.table = &page;
  decode.args.table_stride = decode.args.table_width = 1;
  decode.args.rows = 1;
  decode.args.lengths = &length;
  decode.args.cos = decode.args.sin = rotation;
  decode.args.x = x;
  result = fastdecode_decode_step(&decode.args);
  printf("%d x %.6f %s\n", result, x[3], result ? fastdecode_last_error() : "");
  printf("guards %s\n", whole(sample.guard) && whole(decode.guard) ? "whole" : "broken");
  return 0;
}
