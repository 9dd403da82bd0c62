// Calls with one fault each, arrays that overlap or sizes that are wrong, which are refused with
// the right message. Under sanitizers, since some of these faults once were arithmetic that
// overflows or memory that is read behind its end.

#include <string>
#include <vector>

#include "fuzz.h"

namespace {

long checked = 0, wrong = 0;

void said(fastdecode_result result, const std::string& expected) {
  ++checked;
  if (result == FASTDECODE_INVALID_ARGUMENT && fastdecode_last_error() == expected) return;
  fprintf(stderr, "expected \"%s\"\ngot %d \"%s\"\n", expected.c_str(), result,
          fastdecode_last_error());
  ++wrong;
}

void overlaps(fastdecode_result result, const std::string& written, const std::string& other) {
  said(result, written + ": must not overlap " + other);
}

constexpr int64_t kGroups = 2, kVocab = 40, kWords = 2;

// Everything that fastdecode_sample_advance reads and writes.
struct Arrays {
  float logits[kGroups * kVocab] = {}, noise[kGroups * kVocab] = {};
  int32_t streams[kGroups] = {0, 1}, ranges[2] = {0, kVocab}, offsets[2] = {0, 1};
  int32_t set_index[kGroups] = {}, top_k[kGroups] = {};
  float weights[kGroups] = {1, 1}, temperature[kGroups] = {1, 1}, top_p[kGroups] = {1, 1};
  float min_p[kGroups] = {}, penalty[kGroups] = {1, 1};
  int64_t seed[kGroups] = {}, number[kGroups] = {};
  int64_t token[kGroups] = {1, 2};
  float logprob[kGroups] = {};
  int32_t kept[kGroups] = {}, status[kGroups] = {};

  int32_t set_of[2] = {0, 0}, tight[2] = {0, 0}, room[2] = {}, forced[2] = {-1, -1};
  int32_t following[2] = {0, 0}, classes[3] = {0, kVocab, 0};
  int32_t mode[kGroups] = {}, seen[kGroups * kWords] = {};
  int64_t step[kGroups] = {}, limit[kGroups] = {4, 4}, inputs[kGroups] = {}, lengths[kGroups] = {};
  int64_t sequences[kGroups * 4] = {};
  alignas(8) uint8_t finished[8] = {};

  fastdecode_sample_args sample() {
    fastdecode_sample_args a;
    CHECK(fastdecode_sample_args_init(&a) == FASTDECODE_OK);
    a.logits = logits;
    a.rows = a.groups = kGroups;
    a.vocab = a.row_stride = a.noise_stride = kVocab;
    a.streams = streams;
    a.weights = weights;
    a.ranges = ranges;
    a.set_offsets = offsets;
    a.sets = 1;
    a.temperature = temperature;
    a.top_k = top_k;
    a.top_p = top_p;
    a.min_p = min_p;
    a.penalty = penalty;
    a.seed = seed;
    a.seen = seen;
    a.noise = noise;
    a.token = token;
    a.logprob = logprob;
    a.kept = kept;
    a.status = status;
    return a;
  }
  fastdecode_sample_args sample_alone() {
    fastdecode_sample_args a = sample();
    a.set_index = set_index;
    a.step = number;
    return a;
  }
  fastdecode_advance_args advance() {
    fastdecode_advance_args a;
    CHECK(fastdecode_advance_args_init(&a) == FASTDECODE_OK);
    a.grammar.modes = 2;
    a.grammar.classes = 1;
    a.grammar.set_of = set_of;
    a.grammar.tight_set_of = tight;
    a.grammar.room = room;
    a.grammar.forced = forced;
    a.grammar.following = following;
    a.grammar.class_ranges = classes;
    a.grammar.class_range_count = 1;
    a.groups = a.rows = kGroups;
    a.vocab = kVocab;
    a.streams = streams;
    a.token = token;
    a.mode = mode;
    a.step = step;
    a.limit = limit;
    a.finished = finished;
    a.inputs = inputs;
    a.lengths = lengths;
    a.seen = seen;
    a.sequences = sequences;
    a.capacity = 4;
    return a;
  }
};

struct Named {
  void* array;
  const char* name;
};

void overlapping_samples() {
  Arrays own;
  const fastdecode_sample_args good = own.sample_alone();
  for (const Named& read : {Named{own.logits, "logits"},
                            {own.streams, "streams"},
                            {own.weights, "weights"},
                            {own.ranges, "ranges"},
                            {own.offsets, "set_offsets"},
                            {own.set_index, "set_index"},
                            {own.temperature, "temperature"},
                            {own.top_k, "top_k"},
                            {own.top_p, "top_p"},
                            {own.min_p, "min_p"},
                            {own.penalty, "penalty"},
                            {own.seed, "seed"},
                            {own.number, "step"},
                            {own.seen, "seen"},
                            {own.noise, "noise"},
                            {own.token, "token"}}) {
    fastdecode_sample_args args = good;
    args.kept = static_cast<int32_t*>(read.array);
    overlaps(fastdecode_sample(&args), "kept", read.name);
  }
  CHECK(fastdecode_sample(&good) == FASTDECODE_OK);
}

void overlapping_advances() {
  Arrays own;
  const fastdecode_advance_args good = own.advance();
  for (const Named& read : {Named{own.set_of, "grammar.set_of"},
                            {own.tight, "grammar.tight_set_of"},
                            {own.room, "grammar.room"},
                            {own.forced, "grammar.forced"},
                            {own.following, "grammar.following"},
                            {own.classes, "grammar.class_ranges"},
                            {own.token, "token"},
                            {own.limit, "limit"},
                            {own.streams, "streams"}}) {
    fastdecode_advance_args args = good;
    args.mode = static_cast<int32_t*>(read.array);
    overlaps(fastdecode_advance(&args), "mode", read.name);
  }
  CHECK(fastdecode_advance(&good) == FASTDECODE_OK);
}

void overlapping_sample_advances() {
  Arrays own;
  const fastdecode_sample_args sample = own.sample();
  const fastdecode_advance_args advance = own.advance();
  for (const Named& state : {Named{own.mode, "mode"},
                             {own.step, "step"},
                             {own.finished, "finished"},
                             {own.inputs, "inputs"},
                             {own.lengths, "lengths"},
                             {own.seen, "seen"},
                             {own.sequences, "sequences"},
                             {own.limit, "limit"},
                             {own.set_of, "grammar.set_of"}}) {
    fastdecode_sample_args args = sample;
    args.seen = nullptr;
    args.penalty = nullptr;
    args.status = static_cast<int32_t*>(state.array);
    overlaps(fastdecode_sample_advance(&args, &advance), "status", state.name);
  }
  for (const Named& read : {Named{own.logits, "logits"},
                            {own.weights, "weights"},
                            {own.ranges, "ranges"},
                            {own.offsets, "set_offsets"},
                            {own.temperature, "temperature"},
                            {own.seed, "seed"},
                            {own.noise, "noise"},
                            {own.streams, "streams"}}) {
    fastdecode_advance_args args = advance;
    args.mode = static_cast<int32_t*>(read.array);
    overlaps(fastdecode_sample_advance(&sample, &args), "mode", read.name);
  }
  CHECK(fastdecode_sample_advance(&sample, &advance) == FASTDECODE_OK);
}

// Two layers of a step of two rows, and the arrays of rope_append and attend.
struct Decoding {
  // Each array that is tried as keys is as long as they are.
  float weights[128] = {}, ones[32] = {1, 1, 1, 1, 1, 1, 1, 1}, x[32] = {};
  float cos[32] = {}, sin[32] = {}, keys[2][32] = {}, values[2][32] = {};
  float qkv[32] = {}, queries[16] = {}, out[16] = {}, norms[32] = {};
  int32_t table[32] = {0, 1};
  int64_t lengths[16] = {1, 1};
  fastdecode_layer layers[2] = {};

  template <typename Args>
  void set(Args& args) {
    args.rows = 2;
    args.heads = 2;
    args.kv_heads = 1;
    args.head_dim = 4;
    args.pages = 2;
    args.page_slots = 4;
    args.table = table;
    args.table_stride = args.table_width = 1;
    args.lengths = lengths;
  }
  fastdecode_decode_args step() {
    fastdecode_decode_args args;
    CHECK(fastdecode_decode_args_init(&args) == FASTDECODE_OK);
    set(args);
    for (int i = 0; i < 2; ++i) {
      fastdecode_layer& l = layers[i];
      l.q = l.k = l.v = l.o = l.gate = l.up = l.down = weights;
      l.norm_attention = l.norm_mlp = ones;
      l.keys = keys[i];
      l.values = values[i];
    }
    args.layers = layers;
    args.layer_count = 2;
    args.hidden = args.inner = 8;
    args.scale = 0.5f;
    args.norm = ones;
    args.cos = cos;
    args.sin = sin;
    args.x = x;
    return args;
  }
  fastdecode_rope_append_args append() {
    fastdecode_rope_append_args args;
    CHECK(fastdecode_rope_append_args_init(&args) == FASTDECODE_OK);
    set(args);
    args.qkv = qkv;
    args.cos = cos;
    args.sin = sin;
    args.q_norm = args.k_norm = norms;
    args.keys = keys[0];
    args.values = values[0];
    args.queries = queries;
    return args;
  }
  fastdecode_attend_args attend() {
    fastdecode_attend_args args;
    CHECK(fastdecode_attend_args_init(&args) == FASTDECODE_OK);
    set(args);
    args.queries = queries;
    args.keys = keys[0];
    args.values = values[0];
    args.out = out;
    return args;
  }
};

void overlapping_steps() {
  Decoding own;
  const fastdecode_decode_args good = own.step();
  for (const Named& read : {Named{own.cos, "cos"},
                            {own.sin, "sin"},
                            {own.ones, "norm"},
                            {own.table, "table"},
                            {own.lengths, "lengths"}}) {
    fastdecode_decode_args args = good;
    args.x = static_cast<float*>(read.array);
    overlaps(fastdecode_decode_step(&args), "x", read.name);
    own.layers[1].keys = read.array;
    overlaps(fastdecode_decode_step(&good), "layers[1].keys", read.name);
    own.layers[1].keys = own.keys[1];
  }
  own.layers[1].values = own.x;
  overlaps(fastdecode_decode_step(&good), "layers[1].values", "x");
  own.layers[1].values = own.values[0];
  overlaps(fastdecode_decode_step(&good), "layers[1].values", "layers[0].values");
  own.layers[1].values = own.keys[0] + 4;
  overlaps(fastdecode_decode_step(&good), "layers[1].values", "layers[0].keys");
  own.layers[1].values = own.keys[1];
  overlaps(fastdecode_decode_step(&good), "layers[1].values", "layers[1].keys");
  own.layers[1].values = own.values[1];
  CHECK(fastdecode_decode_step(&good) == FASTDECODE_OK);
}

void overlapping_operations() {
  Decoding own;
  const fastdecode_rope_append_args append = own.append();
  const fastdecode_attend_args attend = own.attend();
  for (const Named& read :
       {Named{own.table, "table"}, {own.lengths, "lengths"}, {own.norms, "q_norm"}}) {
    fastdecode_rope_append_args args = append;
    args.queries = static_cast<float*>(read.array);
    overlaps(fastdecode_rope_append(&args), "queries", read.name);
    if (read.array == own.norms) continue;
    fastdecode_attend_args other = attend;
    other.out = static_cast<float*>(read.array);
    overlaps(fastdecode_attend(&other), "out", read.name);
  }
  CHECK(fastdecode_rope_append(&append) == FASTDECODE_OK);
  CHECK(fastdecode_attend(&attend) == FASTDECODE_OK);

  // out may be x, but then the residual is no part of it: row 1's would be row 0's result.
  float rows[12] = {}, sum[8];
  overlaps(fastdecode_rms_norm(rows + 4, rows, own.ones, 0, 2, 4, sum, rows + 4, 1), "out",
           "residual");
  CHECK(fastdecode_rms_norm(rows, rows, own.ones, 0, 2, 4, rows, rows, 1) == FASTDECODE_OK);
  // With a larger stride, other arrays may lie between the rows of `out`, but not in them.
  float wide[40] = {};
  CHECK(fastdecode_linear(own.weights, FASTDECODE_FLOAT32, nullptr, wide + 4, 2, 4, 4, wide, 16,
                          1) == FASTDECODE_OK);
  overlaps(
      fastdecode_linear(own.weights, FASTDECODE_FLOAT32, nullptr, wide + 12, 2, 4, 4, wide, 16, 1),
      "out", "x");
  overlaps(
      fastdecode_linear(own.weights, FASTDECODE_FLOAT32, wide + 19, own.x, 2, 4, 4, wide, 16, 1),
      "out", "bias");
}

// How weights of 8 bits and less are stored, of a linear layer, of embeddings and of a step.
void small_weights() {
  Decoding own;
  const int64_t token = 0;
  float out[64];
  const auto linear = [&](const fastdecode_weights* how, int64_t k = 32, float* to = nullptr) {
    return fastdecode_linear_of(own.weights, how, nullptr, own.x, 1, k, 1, to ? to : out, 1, 1);
  };
  const auto embed = [&](const fastdecode_weights* how, int64_t hidden = 32, float* to = nullptr) {
    return fastdecode_embed_of(&token, 1, own.weights, how, 1, hidden, to ? to : out, 1);
  };
  const auto step = [&](const fastdecode_weights& one, int matrix) {
    fastdecode_weights all[7] = {};
    all[matrix] = one;
    fastdecode_decode_args args = own.step();
    own.layers[1].weights = all;
    const fastdecode_result result = fastdecode_decode_step(&args);
    own.layers[1].weights = nullptr;
    return result;
  };
  float* const scale = own.norms;
  const struct {
    fastdecode_weights how;
    const char* fault;
  } wrong[] = {
      {{-1, 0, nullptr, nullptr, 0}, "type = -1: must be a fastdecode_weight_type, 0 to 7"},
      {{8, 0, nullptr, nullptr, 0}, "type = 8: must be a fastdecode_weight_type, 0 to 7"},
      {{3, 0, scale, nullptr, 1}, "first = 1: must be 0 for int8 weights"},
      {{0, 0, nullptr, nullptr, -1}, "first = -1: must be 0 for float32 weights"},
      {{0, 32, nullptr, nullptr, 0}, "group = 32: must be 0 for float32 weights"},
      {{3, 64, scale, nullptr, 0}, "group = 64: must be 0 for int8 weights"},
      {{3, 0, nullptr, nullptr, 0}, "scale = NULL: must not be for int8 weights"},
      {{3, 0, scale, scale, 0}, "offset: must be NULL for int8 weights"},
      {{1, 0, scale, nullptr, 0}, "scale: must be NULL for bfloat16 weights"},
      {{2, 0, nullptr, scale, 0}, "offset: must be NULL for float16 weights"}};
  const struct {
    fastdecode_weights how;
    const char* fault;
  } wrong_blocks[] = {
      {{4, 0, scale, nullptr, 0}, "group = 0: must be 32 or a multiple of 64"},
      {{4, 48, scale, nullptr, 0}, "group = 48: must be 32 or a multiple of 64"},
      {{4, -64, scale, nullptr, 0}, "group = -64: must be 32 or a multiple of 64"},
      {{4, 32, nullptr, nullptr, 0}, "scale = NULL: must not be for int4 weights"},
      {{5, 32, nullptr, nullptr, 0}, "group = 32: must be 0 for q8_0 weights"},
      {{5, 0, scale, nullptr, 0}, "scale: must be NULL for q8_0 weights"},
      {{6, 0, nullptr, scale, 0}, "offset: must be NULL for q4_0 weights"},
      {{4, 32, scale, nullptr, 16}, "first = 16: must be 0 to 15 for int4 weights"},
      {{7, 0, scale, nullptr, -1}, "first = -1: must be 0 to 15 for int8x16 weights"},
      {{7, 32, scale, nullptr, 0}, "group = 32: must be 0 for int8x16 weights"},
      {{7, 0, nullptr, nullptr, 0}, "scale = NULL: must not be for int8x16 weights"}};
  for (const auto& one : wrong) {
    said(linear(&one.how), std::string("how.") + one.fault);
    said(embed(&one.how), std::string("how.") + one.fault);
    for (const int matrix : {0, 6}) {
      const std::string name = "layers[1].weights[" + std::to_string(matrix) + "].";
      said(step(one.how, matrix), name + one.fault);
    }
  }
  for (const auto& one : wrong_blocks) {
    said(linear(&one.how), std::string("how.") + one.fault);
    said(embed(&one.how), std::string("how.") + one.fault);
  }
  said(linear(nullptr), "how = NULL: must say how the weights are stored");
  said(embed(nullptr), "how = NULL: must say how the weights are stored");
  const char* const names[] = {"hidden", "hidden", "hidden", "heads * head_dim",
                               "hidden", "hidden", "inner"};
  for (int32_t type = 4; type <= 7; ++type) {
    const fastdecode_weights how = {type, type == 4 ? 32 : 0,
                                    type == 4 || type == 7 ? scale : nullptr, nullptr, 0};
    const std::string rule = std::string(" = 8: must be a multiple of 32 for ") +
                             (type == 4   ? "int4"
                              : type == 5 ? "q8_0"
                              : type == 6 ? "q4_0"
                                          : "int8x16") +
                             " weights";
    said(linear(&how, 8), "k" + rule);
    said(embed(&how, 8), "hidden" + rule);
    for (int matrix = 0; matrix < 7; ++matrix) said(step(how, matrix), names[matrix] + rule);
    CHECK(linear(&how) == FASTDECODE_OK);
    CHECK(embed(&how) == FASTDECODE_OK);
  }
  const fastdecode_weights int8 = {3, 0, scale, nullptr, 0}, int4 = {4, 32, scale, scale + 8, 0};
  CHECK(step(int8, 3) == FASTDECODE_OK);
  overlaps(linear(&int8, 32, own.weights + 7), "out", "weight");
  CHECK(linear(&int8, 32, own.weights + 8) == FASTDECODE_OK);
  overlaps(linear(&int8, 32, scale), "out", "how.scale");
  overlaps(linear(&int4, 32, scale + 8), "out", "how.offset");
  overlaps(embed(&int4, 32, scale), "out", "how.scale");
  const fastdecode_weights aside = {4, 32, own.queries, scale + 4, 0};
  overlaps(embed(&aside, 32, scale), "out", "how.offset");
}

void sizes() {
  // Without `sequences` their capacity is not read: its product with groups does not fit an
  // int64_t.
  constexpr int64_t kMany = int64_t{1} << 17;
  const std::vector<int64_t> tokens(kMany);
  std::vector<int64_t> step(kMany);
  std::vector<int32_t> mode(kMany);
  std::vector<uint8_t> finished(kMany, FASTDECODE_ENDED);
  Arrays own;
  fastdecode_advance_args advance = own.advance();
  advance.groups = advance.rows = kMany;
  advance.capacity = int64_t{1} << 47;
  advance.streams = nullptr;
  advance.limit = advance.inputs = advance.lengths = advance.sequences = nullptr;
  advance.seen = nullptr;
  advance.token = tokens.data();
  advance.step = step.data();
  advance.mode = mode.data();
  advance.finished = finished.data();
  CHECK(fastdecode_advance(&advance) == FASTDECODE_OK);

  Decoding decoding;
  fastdecode_attend_args attend = decoding.attend();
  attend.rows = 1 << 24;
  attend.heads = 1 << 20;
  attend.head_dim = 128;
  said(fastdecode_attend(&attend),
       "rows = 16777216, heads = 1048576, head_dim = 128: queries would have more than 2^47 "
       "elements; the sizes must be smaller");

  fastdecode_decode_args decode = decoding.step();
  decode.layer_size = 8;
  said(fastdecode_decode_step(&decode),
       "args->layer_size = 8: fastdecode_layer has at least 176 bytes; call "
       "fastdecode_decode_args_init, and compile the program again if it was compiled against "
       "version 1 of fastdecode.h");
}

}  // namespace

int main() {
  overlapping_samples();
  overlapping_advances();
  overlapping_sample_advances();
  overlapping_steps();
  overlapping_operations();
  small_weights();
  sizes();
  printf("calls %ld, wrong %ld\n", checked, wrong);
  return wrong == 0 ? 0 : 1;
}
