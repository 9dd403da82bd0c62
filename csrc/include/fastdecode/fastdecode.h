/* fastdecode: the C interface. C99 and C++; no torch, no Python.
 *
 * Conventions: functions return a fastdecode_result; on anything but FASTDECODE_OK
 * fastdecode_last_error() of the same thread says what was wrong, where, and what would be right.
 * On FASTDECODE_INVALID_ARGUMENT no output has been written. Outputs must not overlap anything
 * else. A forked child works on one thread. Arrays are dense and row-major unless a stride is
 * named. Pointers are borrowed for the call. Every function may be called from any thread.
 */
#ifndef FASTDECODE_FASTDECODE_H
#define FASTDECODE_FASTDECODE_H

#include <stddef.h>
#include <stdint.h>

#if defined(FASTDECODE_BUILDING)
#define FASTDECODE_API __attribute__((visibility("default")))
#else
#define FASTDECODE_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Raised when a struct or function changes incompatibly; added tail fields do not raise it. */
#define FASTDECODE_ABI_VERSION 1

typedef enum fastdecode_result {
  FASTDECODE_OK = 0,
  FASTDECODE_INVALID_ARGUMENT = 1,
  FASTDECODE_OUT_OF_MEMORY = 2
} fastdecode_result;

typedef enum fastdecode_dtype {
  FASTDECODE_FLOAT32 = 0,
  FASTDECODE_BFLOAT16 = 1,
  FASTDECODE_FLOAT16 = 2
} fastdecode_dtype;

/* What the sampler found in a group; a group that is not OK gets token -1. */
typedef enum fastdecode_status {
  FASTDECODE_STATUS_OK = 0,
  FASTDECODE_STATUS_INVALID_LOGITS = 1, /* NaN or +inf read or computed, or nothing but -inf */
  FASTDECODE_STATUS_EMPTY_SET = 2,
  FASTDECODE_STATUS_FINISHED = 3 /* of fastdecode_sample_advance: had ended before */
} fastdecode_status;

/* Arguments of fastdecode_sample. Set up with fastdecode_sample_args_init, then fill in.
 *
 * A parameter `x` of a group is x[group], or x_value for every group where the pointer x is NULL.
 * Ids are positions in a row of logits. Limits: vocab <= 2^22.
 */
typedef struct fastdecode_sample_args {
  size_t size; /* sizeof(fastdecode_sample_args); set by init */

  const void* logits; /* (rows, vocab) of dtype; row r begins r * row_stride elements in */
  int32_t dtype;      /* fastdecode_dtype */
  int32_t threads;    /* at most this many threads; 0: one per processor; default 1 */
  int64_t rows;
  int64_t vocab;
  int64_t row_stride;

  int64_t groups;
  int64_t streams_per_group; /* S; default 1 */
  const int32_t* streams; /* (groups, S) row of each stream, -1: absent. NULL: row = group, S = 1 */
  const float* weights;   /* (groups, S) finite; streams of weight 0 are not read. NULL: 1 */

  const int32_t* ranges;      /* (n, 2) half-open [lo, hi) ids; sorted and disjoint per set */
  const int32_t* set_offsets; /* (sets + 1): set s owns ranges set_offsets[s] .. [s + 1] */
  int64_t sets;               /* 0: one set, the whole vocabulary; ranges are not read */
  const int32_t* set_index;   /* (groups,) set of each group. NULL: 0 */

  const float* temperature; /* >= 0; 0: greedy */
  const int32_t* top_k;     /* <= 0: off */
  const float* top_p;       /* in [0, 1]; 1: off */
  const float* min_p;       /* in [0, 1]; 0: off */
  const float* penalty;     /* repetition penalty, > 0; 1: off */
  const int64_t* seed;
  const int64_t* step;
  float temperature_value; /* default 1 */
  int32_t top_k_value;     /* default 0 */
  float top_p_value;       /* default 1 */
  float min_p_value;       /* default 0 */
  float penalty_value;     /* default 1 */
  int64_t seed_value;      /* default 0 */
  int64_t step_value;      /* default 0 */

  float contrast_alpha; /* in [0, 1]: with contrast_k > 0 an id stays only if its probability in the
                         */
  int32_t contrast_k;   /* first stream is >= alpha times the k-th largest there; default 0: off */

  const int32_t* seen;  /* (groups, (vocab + 31) / 32) bit set: id t is bit t & 31 of word t >> 5 */
  const float* noise;   /* (groups, vocab) Gumbel noise in place of drawn noise, or NULL */
  int64_t noise_stride; /* elements from one group's noise to the next */

  int64_t* token;  /* out (groups,): drawn id, -1 where status is not 0 */
  float* logprob;  /* out (groups,): of the drawn id under the final distribution; -inf where status
                    * is not 0 */
  int32_t* kept;   /* out (groups,): number of ids kept; else 0 */
  int32_t* status; /* out (groups,): fastdecode_status */
} fastdecode_sample_args;

/* Sets `size` and every default. */
FASTDECODE_API void fastdecode_sample_args_init(fastdecode_sample_args* args);

/* Draws one token per group on the CPU. Arguments are checked before an output is written. */
FASTDECODE_API fastdecode_result fastdecode_sample(const fastdecode_sample_args* args);

/* Which token may come next, as tables over modes; all ids and sets are those of the sampler.
 *
 * In mode m a token is drawn from set set_of[m] or, where fewer than room[m] more tokens fit below
 * the group's limit, from tight_set_of[m]; if that is -1 the token is forced[m]; if that is -1 too
 * the group has ended. A token of class c leads to following[m * classes + c]. The class of a token
 * is that of the range it lies in, else 0. */
typedef struct fastdecode_grammar {
  int64_t modes;
  int64_t classes;
  const int32_t* set_of;       /* (modes,) */
  const int32_t* tight_set_of; /* (modes,); NULL: set_of */
  const int32_t* room;         /* (modes,); NULL: 0 */
  const int32_t* forced;       /* (modes,) */
  const int32_t* following;    /* (modes, classes) */
  const int32_t* class_ranges; /* (class_range_count, 3) lo, hi, class; sorted and disjoint */
  int64_t class_range_count;
} fastdecode_grammar;

/* What became of a group. */
typedef enum fastdecode_finished {
  FASTDECODE_RUNNING = 0,
  FASTDECODE_ENDED = 1, /* its grammar or its limit ended it */
  FASTDECODE_FAILED = 2 /* it had no token */
} fastdecode_finished;

/* Arguments of fastdecode_advance. Set up with fastdecode_advance_args_init, then fill in. */
typedef struct fastdecode_advance_args {
  size_t size; /* sizeof(fastdecode_advance_args); set by init */
  fastdecode_grammar grammar;

  int64_t groups;
  int64_t streams_per_group; /* S; default 1 */
  const int32_t* streams; /* (groups, S) row of each stream, -1: absent. NULL: row = group, S = 1 */
  int64_t rows;
  int64_t vocab;
  const int64_t* token; /* (groups,) what was drawn; -1: nothing, which fails the group */

  int32_t* mode;        /* (groups,) in and out */
  int64_t* step;        /* (groups,) in and out: ids in the sequence, which numbers the next one */
  const int64_t* limit; /* (groups,) a sequence of so many ids ends. NULL: none does */
  uint8_t* finished;    /* (groups,) in and out: fastdecode_finished; only 0 is advanced */
  int64_t* inputs;      /* (rows,) out: the token, for each stream of its group. NULL: not wanted */
  int64_t* lengths;     /* (rows,) in and out: one more for each stream of the group, or NULL */
  int32_t* seen;      /* (groups, (vocab + 31) / 32) in and out: the token's bit is set, or NULL */
  int64_t* sequences; /* (groups, capacity) out: the token at place `step`, or NULL */
  int64_t capacity;
} fastdecode_advance_args;

/* Sets `size` and every default. */
FASTDECODE_API void fastdecode_advance_args_init(fastdecode_advance_args* args);

/* Appends one token to every running group on the CPU: to its sequence, to the inputs of all its
 * streams and to what it has seen; moves its mode, adds one to step and lengths, and notes whether
 * it has finished. Two streams must not share a row. Arguments are checked before any is written.
 */
FASTDECODE_API fastdecode_result fastdecode_advance(const fastdecode_advance_args* args);

/* fastdecode_sample, then fastdecode_advance by what was drawn; forced tokens are appended without
 * a draw, with logprob 0 and kept 1. Groups that have finished get token -1 and
 * FASTDECODE_STATUS_FINISHED, also those that failed: the reason is the status of the call in which
 * they did. Their logits are not read; their parameters must be valid all the same.
 *
 * The grammar chooses the sets, and the steps number the tokens: sample->set_index and sample->step
 * must be NULL. advance's groups, streams, rows, vocab and token are not read: the sample's are
 * used. sample->seen must be NULL or advance->seen. */
FASTDECODE_API fastdecode_result fastdecode_sample_advance(const fastdecode_sample_args* sample,
                                                           const fastdecode_advance_args* advance);

/* One layer of fastdecode_decode_step. Matrices are (out, in), dense, of the step's dtype; biases
 * may be NULL. */
typedef struct fastdecode_layer {
  const void *q, *k, *v, *o, *gate, *up, *down;
  const float *q_bias, *k_bias, *v_bias, *o_bias, *gate_bias, *up_bias, *down_bias;
  const float *norm_attention, *norm_mlp; /* (hidden,) weights of the RMS norms */
  /* (heads, head_dim) and (kv_heads, head_dim): of the norms of each head of q and k. Biases NULL:
   * RMS norms, else layer norms; weights NULL: none. */
  const float *q_norm, *q_norm_bias, *k_norm, *k_norm_bias;
  void *keys,
      *values; /* (pages, kv_heads, page_slots, head_dim) of dtype; the new ids' are stored */
} fastdecode_layer;

/* Arguments of fastdecode_decode_step. Set up with fastdecode_decode_args_init, then fill in. */
typedef struct fastdecode_decode_args {
  size_t size; /* sizeof(fastdecode_decode_args); set by init */

  const fastdecode_layer* layers; /* (layer_count,) */
  int64_t layer_count;
  int64_t hidden;
  int64_t inner; /* features of gate and up */
  int64_t heads;
  int64_t kv_heads;  /* divides heads */
  int64_t head_dim;  /* even */
  int32_t dtype;     /* fastdecode_dtype of matrices, keys and values; the rest is float32 */
  int32_t swin;      /* not 0: RMS norms stand behind attention and MLP, before they are added */
  int32_t threads;   /* at most this many threads; 0: one per processor; default 1 */
  float epsilon;     /* of the RMS norms; default 1e-5 */
  float qk_epsilon;  /* of the heads' norms; default 1e-5 */
  float scale;       /* of the products of queries and keys */
  const float* norm; /* (hidden,) weights of the last RMS norm */

  /* Row r's id i has its keys and values in slot i % page_slots of page table[r * table_stride +
   * i / page_slots]. Rows may share pages: with `chained` also the one that is written, of another
   * slot (the ids of one sequence as rows of one call: each sees those before it). */
  int64_t pages;
  int64_t page_slots;
  const int32_t* table;
  int64_t table_stride;
  int64_t table_width; /* entries of a row that may be read */
  int32_t chained;     /* default 0 */

  int64_t rows;
  const int64_t* lengths; /* (rows,) ids stored so far; the new one goes behind them */
  const float* cos;       /* (rows, head_dim) rotation of the new id's position */
  const float* sin;       /* (rows, head_dim) the same; the first half negated */
  float* x; /* (rows, hidden) in: embeddings of the new ids; out: normed last hidden states */
} fastdecode_decode_args;

/* Sets `size` and every default. */
FASTDECODE_API void fastdecode_decode_args_init(fastdecode_decode_args* args);

/* Feeds one id to every row of a model's layers (Chameleon's, or others of Llama's shape) on the
 * CPU. A row's result is the same bits whatever the other rows, the pages and the number of
 * threads.
 */
FASTDECODE_API fastdecode_result fastdecode_decode_step(const fastdecode_decode_args* args);

/* out[r * out_stride + f] = x[r] . weight[f] + bias[f] for few rows on the CPU: x (rows, k)
 * float32, weight (features, k) of a fastdecode_dtype, bias (features,) float32 or NULL, out
 * float32; threads: at most, 0: one per processor. Sums are float32; where the processor multiplies
 * bfloat16 x is rounded to that for such weights. A row's result is the same bits whatever the
 * other rows and the number of threads. */
FASTDECODE_API fastdecode_result fastdecode_linear(const void* weight, int32_t dtype,
                                                   const float* bias, const float* x, int64_t rows,
                                                   int64_t k, int64_t features, float* out,
                                                   int64_t out_stride, int32_t threads);

/* The other operations of a decode step, each on its own, on the CPU: the same arithmetic.
 * `threads`: at most, 0: one per processor. Numbers are float32 unless they are said to be of
 * `dtype`, a fastdecode_dtype. A row's result is the same bits whatever the other rows, the pages
 * and the number of threads. */

/* out (rows, n) = x / sqrt(mean of x^2 in its row + epsilon) * weight, with x (rows, n), weight
 * (n,). With a residual (rows, n) the same of sum (rows, n) = x + residual, which is stored too;
 * residual and sum are both NULL or neither is. */
FASTDECODE_API fastdecode_result fastdecode_rms_norm(const float* x, const float* residual,
                                                     const float* weight, float epsilon,
                                                     int64_t rows, int64_t n, float* sum,
                                                     float* out, int32_t threads);

/* out (rows, inner) = gate / (1 + exp(-gate)) * up, where gate_up (rows, 2 * inner) has a row's
 * gate and then its up. */
FASTDECODE_API fastdecode_result fastdecode_swiglu(const float* gate_up, int64_t rows,
                                                   int64_t inner, float* out, int32_t threads);

/* out (rows, hidden) = weight[tokens[row]], of weight (vocab, hidden) of dtype. */
FASTDECODE_API fastdecode_result fastdecode_embed(const int64_t* tokens, int64_t rows,
                                                  const void* weight, int32_t dtype, int64_t vocab,
                                                  int64_t hidden, float* out, int32_t threads);

/* Arguments of fastdecode_rope_append. Set up with fastdecode_rope_append_args_init, then fill in.
 */
typedef struct fastdecode_rope_append_args {
  size_t size; /* sizeof(fastdecode_rope_append_args); set by init */

  int64_t rows;
  int64_t heads;
  int64_t kv_heads; /* divides heads */
  int64_t head_dim; /* even */
  int32_t dtype;    /* of keys and values */
  int32_t threads;  /* default 1 */
  const float* qkv; /* (rows, heads + 2 * kv_heads, head_dim): queries, then keys, then values */
  /* (heads, head_dim) and (kv_heads, head_dim): norms as in fastdecode_layer */
  const float *q_norm, *q_norm_bias, *k_norm, *k_norm_bias;
  float epsilon;    /* of the norms; default 1e-5 */
  const float* cos; /* (rows, head_dim) */
  const float* sin; /* (rows, head_dim), the first half negated */

  int64_t pages; /* these as in fastdecode_decode_args */
  int64_t page_slots;
  const int32_t* table;
  int64_t table_stride;
  int64_t table_width;
  const int64_t* lengths; /* (rows,) ids stored so far; the new one goes behind them */

  void *keys, *values; /* (pages, kv_heads, page_slots, head_dim) out: the new ids' slots */
  float* queries;      /* (rows, heads, head_dim) out */
} fastdecode_rope_append_args;

/* Sets `size` and every default. */
FASTDECODE_API void fastdecode_rope_append_args_init(fastdecode_rope_append_args* args);

/* Norms each head of the queries and keys of new ids, rotates them (head * cos + head with its
 * halves exchanged * sin), and stores keys and values into the rows' pages. Two rows must not share
 * a slot that is written. */
FASTDECODE_API fastdecode_result fastdecode_rope_append(const fastdecode_rope_append_args* args);

/* Arguments of fastdecode_attend. Set up with fastdecode_attend_args_init, then fill in. */
typedef struct fastdecode_attend_args {
  size_t size; /* sizeof(fastdecode_attend_args); set by init */

  int64_t rows;
  int64_t heads;
  int64_t kv_heads; /* divides heads: query head h sees head h / (heads / kv_heads) of keys */
  int64_t head_dim;
  int32_t dtype;   /* of keys and values */
  int32_t threads; /* default 1 */
  float scale;     /* of the products of queries and keys; default 1 */

  const float* queries;      /* (rows, heads, head_dim) */
  const void *keys, *values; /* (pages, kv_heads, page_slots, head_dim) */
  int64_t pages;             /* these as in fastdecode_decode_args */
  int64_t page_slots;
  const int32_t* table;
  int64_t table_stride;
  int64_t table_width;
  const int64_t* lengths; /* (rows,) at least 1: a row's query sees its ids [0, length) */

  float* out; /* (rows, heads, head_dim) */
} fastdecode_attend_args;

/* Sets `size` and every default. */
FASTDECODE_API void fastdecode_attend_args_init(fastdecode_attend_args* args);

/* out = sum over a row's ids of softmax(scale * query . key) * value. Slots that hold none of the
 * row's ids are not read. */
FASTDECODE_API fastdecode_result fastdecode_attend(const fastdecode_attend_args* args);

/* Message of this thread's last failed call; "" before the first. Valid until the next failure. */
FASTDECODE_API const char* fastdecode_last_error(void);

/* FASTDECODE_ABI_VERSION of the library that is loaded. */
FASTDECODE_API int32_t fastdecode_abi_version(void);

/* Instruction set that the library runs with: "portable", "avx2", "avx512" or "avx512bf16", the
 * best that there is or what the environment variable FASTDECODE_CPU_ISA lowers it to. NULL, with
 * an error, if that names another: every function that computes fails then. */
FASTDECODE_API const char* fastdecode_cpu_isa(void);

#ifdef __cplusplus
}
#endif

#endif /* FASTDECODE_FASTDECODE_H */
