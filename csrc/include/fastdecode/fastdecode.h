/* fastdecode: the C interface, version 2. C99 and C++; no torch, no Python.
 *
 * Results. Functions return a fastdecode_result. If it is not FASTDECODE_OK,
 * fastdecode_last_error() of the same thread says which argument was wrong, what it was, and what
 * would be right. With FASTDECODE_INVALID_ARGUMENT no output has been written.
 *
 * Structs of arguments. Call the struct's `_init` first: it sets every field to its default, which
 * the comments name (a field without one is 0 or NULL), and `size` to the size that the struct had
 * when the program was compiled. Then set the fields that you need. Later versions of the library
 * may have more fields, at the end of a struct. They then use the defaults of those that an older
 * program does not have. A struct that is larger than the library's is refused.
 *
 * Arrays. They are dense and row-major unless a stride is named. Shapes are written (rows,
 * columns). Strides count elements, not bytes. An array is aligned as its elements are: 8 bytes for
 * int64_t, 4 for float and int32_t, and for arrays of a fastdecode_dtype 4 (float32) or 2. More
 * alignment is not needed. Arrays are read and written only during the call.
 *
 * Aliasing. An array that is written must not overlap any other array of the call, unless the
 * comment of the function says so. Arrays that are only read may overlap. The functions on the CPU
 * check it, but for the weights of a step's layers.
 *
 * Threads. Every function may be called from several threads at the same time, as long as none
 * writes an array that another one uses. Each thread keeps its own working memory, which it frees
 * when it ends, and its own last error. `threads` in the arguments is how many threads a call may
 * use. A process that was forked after the library was loaded works on one thread.
 *
 * Sizes. Every number of rows, groups, heads and so on is at most 2^31 - 1, and no array may have
 * more than 2^47 elements. The library checks every size, and every index that it reads on the CPU.
 * It cannot check that an array is as long as the sizes say.
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

/* Increased when a struct or function changes incompatibly, not when a struct gets more fields at
 * its end. It is also the number in the library's name, libfastdecode.so.2.
 *
 * Version 1 had `_init` functions that did not know the size of the caller's struct. The library
 * still has functions of these names for programs that were compiled against version 1. They write
 * nothing but size = 0, so that every call of such a program that takes a struct is refused with a
 * message that says so. Compile the program again. Its source need not change where its calls were
 * right: version 2 refuses some that version 1 took without a word, such as a stride of 0, a
 * penalty without `seen` and a step without `scale`. */
#define FASTDECODE_ABI_VERSION 2

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

/* The sampler's result for a group; a group that is not OK gets token -1, and does not change the
 * results of other groups. */
typedef enum fastdecode_status {
  FASTDECODE_STATUS_OK = 0,
  FASTDECODE_STATUS_INVALID_LOGITS = 1, /* NaN or +inf, nothing but -inf, or no stream: see below */
  FASTDECODE_STATUS_EMPTY_SET = 2,      /* whatever the logits are */
  FASTDECODE_STATUS_FINISHED = 3 /* fastdecode_sample_advance: the group ended without a token, now
                                  * or before */
} fastdecode_status;

/* A row_stride or noise_stride that says that every row is the same one, stored once. (A stride of
 * 0 is taken for a forgotten one.) */
#define FASTDECODE_REPEAT INT64_MIN

/* Arguments of fastdecode_sample.
 *
 * A group is one sequence that gets a token. Its streams are the rows of logits that are mixed for
 * it: one row, or with guidance several (for example the prompt, and the prompt without text). A
 * token is an index into a row of logits, in [0, vocab).
 *
 * A parameter `x` of a group is x[group], or x_value for every group if the pointer x is NULL.
 *
 * How a token is chosen. All arithmetic is float32, in exactly this order, without fused
 * multiply-add. For the set of tokens that the group may draw from:
 *
 *   1. Mix. z[t] = w0 * l0[t], then z[t] = z[t] + wk * lk[t] for the other streams in their order.
 *      Streams of weight 0 and absent ones (row -1) are not read, nor are tokens outside the set. A
 *      token with -inf in any stream that is read is never drawn, whatever the sign of the weight.
 *      A NaN or +inf that is read, or computed in steps 1, 3 and 4 for a token that step 2 keeps,
 *      gives the group FASTDECODE_STATUS_INVALID_LOGITS. So does a set in which every token has
 *      -inf, and a group none of whose streams is read.
 *   2. Contrast, if contrast_k > 0. p is the softmax, over the set, of the first stream that is
 *      read. A token is kept only if p[t] >= contrast_alpha * (the contrast_k-th largest p of the
 *      set, or, where it has fewer tokens without -inf, the smallest p of those).
 *   3. Penalty, for tokens whose bit is set in `seen`: z[t] * penalty if z[t] < 0, else
 *      z[t] / penalty.
 *   4. Temperature. z[t] = z[t] / temperature. With temperature 0 the token is the kept one with
 *      the largest z, of equal ones the lowest, with logprob 0 and kept 1, and steps 5 to 8 are
 *      left out.
 *   5. Top-k. Tokens are kept whose z is at least the top_k-th largest z. All tokens that are equal
 *      to the top_k-th are kept.
 *   6. Top-p, of the softmax of what is kept so far. A token is kept if the probabilities of all
 *      tokens with a strictly larger z sum to less than top_p. So the token that crosses the
 *      threshold is kept, tokens of equal z are kept or dropped together, and the largest is always
 *      kept: top_p = 0 keeps the largest and those equal to it.
 *   7. Min-p. A token is kept if its probability is at least min_p times the largest one.
 *   8. Draw. The token is the kept one with the largest z[t] + g[t], of equal ones the lowest. g is
 *      standard Gumbel noise, -log(-log(u)), so that each kept token is drawn with its probability.
 *      (In noise that is given: a sum that is NaN is never the largest, and if none is more than
 *      -inf, the token is the lowest kept one.)
 *
 * Noise. g[t] depends on the group's seed, its step and t alone (Philox 4x32-10), not on the batch,
 * the group's number, the other tokens, the instruction set or the number of threads. u is finer
 * than 2^-40 near 0 and near 1. The same seed and step give the same token, so use the number of
 * the token in its sequence as `step`.
 *
 * The result is the same bits for every instruction set and number of threads.
 */
typedef struct fastdecode_sample_args {
  size_t size; /* set by init */

  const void* logits; /* (rows, vocab) of dtype; row r begins r * row_stride elements in */
  int32_t dtype;      /* fastdecode_dtype of logits; default FASTDECODE_FLOAT32 */
  int32_t threads;    /* at most this many threads; 0: one per processor; default 1 */
  int64_t rows;       /* 0 is allowed: then no stream can be there */
  int64_t vocab;      /* tokens in a row, in [1, 2^22]; required */
  int64_t row_stride; /* at least vocab, or FASTDECODE_REPEAT; not read if rows <= 1 */

  int64_t groups;            /* 0 is allowed: nothing is done */
  int64_t streams_per_group; /* S, at least 1; default 1 */
  const int32_t* streams; /* (groups, S) row of each stream, -1: absent. NULL: row = group, S = 1 */
  const float* weights;   /* (groups, S) finite, of any sign. NULL: 1 for every stream */

  /* Sets of tokens. Set s is the ranges set_offsets[s] .. set_offsets[s + 1] - 1, each [lo, hi). A
   * set may be empty: its groups get FASTDECODE_STATUS_EMPTY_SET. */
  const int32_t* ranges;      /* (n, 2) [lo, hi) of tokens; sorted and disjoint in a set */
  const int32_t* set_offsets; /* (sets + 1); not decreasing */
  int64_t sets;               /* default 0: one set, the whole vocabulary. ranges and set_offsets
                               * must then be NULL */
  const int32_t* set_index;   /* (groups,) set of each group. NULL: 0 */

  const float* temperature; /* finite and >= 0; 0: the largest z (greedy) */
  const int32_t* top_k;     /* <= 0: off */
  const float* top_p;       /* in [0, 1]; 1: off */
  const float* min_p;       /* in [0, 1]; 0: off */
  const float* penalty;     /* repetition penalty, finite and > 0; 1: off. Needs `seen` */
  const int64_t* seed;      /* any number */
  const int64_t* step;      /* the token's number in its sequence; any number */
  float temperature_value;  /* default 1 */
  int32_t top_k_value;      /* default 0 */
  float top_p_value;        /* default 1 */
  float min_p_value;        /* default 0 */
  float penalty_value;      /* default 1; another value needs `seen` */
  int64_t seed_value;       /* default 0 */
  int64_t step_value;       /* default 0 */

  float contrast_alpha; /* in [0, 1]; default 0. More than 0 needs contrast_k > 0 */
  int32_t contrast_k;   /* >= 0; default 0: no contrast */

  const int32_t* seen; /* (groups, (vocab + 31) / 32) bits: token t is bit t & 31 of word t >> 5;
                        * bits from vocab on are not read. NULL: no token is penalised */
  const float* noise;  /* (groups, vocab) g to use instead of the noise that is computed, or NULL */
  int64_t noise_stride; /* elements from one group's noise to the next; at least vocab, or
                         * FASTDECODE_REPEAT; not read without noise or if groups <= 1 */

  int64_t* token;  /* out (groups,): the token; -1 where status is not 0 */
  float* logprob;  /* out (groups,): log of the token's probability among the kept ones; -inf where
                    * status is not 0 */
  int32_t* kept;   /* out (groups,): how many tokens the filters kept; 0 where status is not 0 */
  int32_t* status; /* out (groups,): fastdecode_status */
} fastdecode_sample_args;

/* Sets every field of a struct of `size` bytes to its default. FASTDECODE_INVALID_ARGUMENT
 * if `args` is NULL, or `size` is no size that the struct has had since version 2; then no later
 * call accepts the struct. For programs that cannot use the function below. */
FASTDECODE_API fastdecode_result fastdecode_sample_args_init_sized(fastdecode_sample_args* args,
                                                                   size_t size);

/* Sets `size` and every default. */
static inline fastdecode_result fastdecode_sample_args_init(fastdecode_sample_args* args) {
  return fastdecode_sample_args_init_sized(args, sizeof(fastdecode_sample_args));
}

/* Samples one token per group on the CPU. Arguments are checked before any output is written. */
FASTDECODE_API fastdecode_result fastdecode_sample(const fastdecode_sample_args* args);

/* Which token may come next, as tables over modes. Tokens and sets are those of the sampler.
 *
 * In mode m the next token is drawn from the set set_of[m] or, if fewer than room[m] more tokens
 * fit below the group's limit, from the set tight_set_of[m]. If that is -1, the next token is
 * forced[m]. If that is -1 too, the group has ended. A token of class c leads from mode m to mode
 * following[m * classes + c]. The class of a token is that of the range that contains it, else 0.
 * Of all modes' entries a call checks only those that its running groups need.
 * This struct gets no further fields: they would come at the end of fastdecode_advance_args.
 */
typedef struct fastdecode_grammar {
  int64_t modes;               /* at least 1 */
  int64_t classes;             /* at least 1 */
  const int32_t* set_of;       /* (modes,) a set, or -1 */
  const int32_t* tight_set_of; /* (modes,) a set, or -1. NULL: set_of */
  const int32_t* room;         /* (modes,) tokens. NULL: 0 */
  const int32_t* forced;       /* (modes,) a token, or -1 */
  const int32_t* following;    /* (modes, classes) a mode */
  const int32_t* class_ranges; /* (class_range_count, 3) lo, hi, class: [lo, hi) of tokens, sorted
                                * and disjoint */
  int64_t class_range_count;   /* default 0: every token is of class 0 */
} fastdecode_grammar;

/* The state of a group. */
typedef enum fastdecode_finished {
  FASTDECODE_RUNNING = 0,
  FASTDECODE_ENDED = 1, /* its grammar or its limit ended it */
  FASTDECODE_FAILED = 2 /* it was running, but got no token */
} fastdecode_finished;

/* Arguments of fastdecode_advance. */
typedef struct fastdecode_advance_args {
  size_t size; /* set by init */
  fastdecode_grammar grammar;

  int64_t groups;            /* 0 is allowed: nothing is done */
  int64_t streams_per_group; /* S, at least 1; default 1 */
  const int32_t* streams; /* (groups, S) row of each stream, -1: absent. NULL: row = group, S = 1 */
  int64_t rows;           /* of inputs and lengths; streams are numbers of these */
  int64_t vocab;          /* in [1, 2^22]; required */
  const int64_t* token;   /* (groups,) tokens to append; -1: none, which fails the group. Those of
                           * groups that do not run are not read */

  int32_t* mode;        /* (groups,) in and out */
  int64_t* step;        /* (groups,) in and out: tokens in the sequence, the next one's number; in
                         * [0, 2^62), and with `sequences` less than capacity */
  const int64_t* limit; /* (groups,) most tokens of the sequence: a group that has so many ends
                         * without another. NULL: no limit */
  uint8_t* finished;    /* (groups,) in and out: fastdecode_finished; only 0 is advanced */
  int64_t* inputs;      /* (rows,) out: the token, for each stream of the group. NULL: not wanted */
  int64_t* lengths;     /* (rows,) in and out: one more for each stream of the group, or NULL */
  int32_t* seen;      /* (groups, (vocab + 31) / 32) in and out: the token's bit is set, or NULL */
  int64_t* sequences; /* (groups, capacity) out: the token at place `step`, or NULL */
  int64_t capacity;   /* places in a group's sequence, in [0, 2^47]; used only with sequences */
} fastdecode_advance_args;

/* Sets every field of a struct of `size` bytes to its default. FASTDECODE_INVALID_ARGUMENT
 * if `args` is NULL, or `size` is no size that the struct has had since version 2; then no later
 * call accepts the struct. For programs that cannot use the function below. */
FASTDECODE_API fastdecode_result fastdecode_advance_args_init_sized(fastdecode_advance_args* args,
                                                                    size_t size);

/* Sets `size` and every default. */
static inline fastdecode_result fastdecode_advance_args_init(fastdecode_advance_args* args) {
  return fastdecode_advance_args_init_sized(args, sizeof(fastdecode_advance_args));
}

/* Appends one token to every running group on the CPU: stores it in the group's sequence, in the
 * inputs of all its streams and in `seen`, moves the mode, adds one to step and lengths, and
 * updates `finished`. Two streams must not share a row. Arguments are checked before any is
 * written. */
FASTDECODE_API fastdecode_result fastdecode_advance(const fastdecode_advance_args* args);

/* fastdecode_sample, then fastdecode_advance with the sampled tokens. A forced token is appended
 * without sampling, with logprob 0 and kept 1. Groups that have finished or failed before, and
 * those that end without a token, get token -1 and FASTDECODE_STATUS_FINISHED. (The reason of a
 * failure is the status of the call in which the group failed.) Their logits are not read, but
 * their parameters must be valid.
 *
 * sample->set_index and sample->step must be NULL: the grammar chooses the sets, and advance->step
 * numbers the tokens; sample->step_value must be 0. advance's groups, streams, rows, vocab and
 * token are not read: those of `sample` are used. sample->seen must be NULL or advance->seen: a
 * penalty needs both. */
FASTDECODE_API fastdecode_result fastdecode_sample_advance(const fastdecode_sample_args* sample,
                                                           const fastdecode_advance_args* advance);

/* How the weights of a linear layer, a matrix (features, k), are stored. */
typedef enum fastdecode_weight_type {
  FASTDECODE_WEIGHTS_FLOAT32 = FASTDECODE_FLOAT32, /* dense */
  FASTDECODE_WEIGHTS_BFLOAT16 = FASTDECODE_BFLOAT16,
  FASTDECODE_WEIGHTS_FLOAT16 = FASTDECODE_FLOAT16,
  /* Dense int8. A weight is its int8 * scale[feature], with scale (features,) float32. */
  FASTDECODE_WEIGHTS_INT8 = 3,
  /* In panels of 16 features side by side, the last one filled up with any values: 64 bytes hold 8
   * half bytes q in 0 .. 15 of each. Value i of feature f is in byte i % 4 + 4 * (f % 16) of line
   * i / 8 of panel f / 16, in the low half where i % 8 < 4, else in the high half. With number
   * g = i / group, a weight is (q - 8) * scale[f / 16, g, f % 16], plus the same of offset if there
   * are offsets; scale (panels, ceil(k / group), 16) float16, offset the same in float32. k is a
   * multiple of 32; `group` is 32 or a multiple of 64. */
  FASTDECODE_WEIGHTS_INT4 = 4,
  /* The blocks of GGUF files: 32 values behind their factor in float16. k is a multiple of 32. */
  FASTDECODE_WEIGHTS_Q8_0 = 5, /* 34 bytes: int8 */
  /* 18 bytes, 16 of them half bytes q: value i is in the low half of byte i, and value i + 16 in
   * its high half. Weights are (q - 8) * factor. */
  FASTDECODE_WEIGHTS_Q4_0 = 6,
  /* int8 in panels: 64 bytes hold 4 values of each of 16 features. Value i of feature f is byte
   * i % 4 + 4 * (f % 16) of line i / 4 of panel f / 16. A weight is its int8 * scale[f], with scale
   * (panels, 16) float32. k is a multiple of 32. */
  FASTDECODE_WEIGHTS_INT8X16 = 7
} fastdecode_weight_type;

/* Matrices of 8 bits or less are multiplied with x rounded to int8, each block of 256 values (the
 * last may have fewer) by a factor of its own: its largest magnitude / 127 in float32. A value is
 * then the nearest multiple of the factor, ties to even. A block whose largest magnitude is below
 * 2^-100 counts as zeros; infinity or NaN in a block makes the row's results NaN. The products of a
 * block are summed exactly, the rest in float32. */
typedef struct fastdecode_weights {
  int32_t type;       /* fastdecode_weight_type */
  int32_t group;      /* of INT4, else 0 */
  const void* scale;  /* of INT8, INT8X16 and INT4, else NULL */
  const void* offset; /* of INT4, or NULL */
  int64_t first;      /* in panels: features of the first one that are skipped, 0 to 15; else 0 */
} fastdecode_weights;

/* What a gated MLP applies to its gate g. */
typedef enum fastdecode_activation {
  FASTDECODE_SILU = 0,      /* g / (1 + exp(-g)) */
  FASTDECODE_GELU_TANH = 1, /* g / 2 * (1 + tanh(sqrt(2 / pi) * (g + 0.044715 * g^3))) */
  FASTDECODE_GELU = 2       /* g / 2 * (1 + erf(g / sqrt(2))) */
} fastdecode_activation;

/* One layer of fastdecode_decode_step. Matrices are (out, in), dense and of the step's dtype unless
 * `weights` says otherwise; biases are (out,) and may be NULL, the other arrays must not unless
 * their comment says so. */
typedef struct fastdecode_layer {
  /* q (heads * head_dim, hidden), k and v (kv_heads * head_dim, hidden), o (hidden,
   * heads * head_dim), gate and up (inner, hidden), down (hidden, inner) */
  const void *q, *k, *v, *o, *gate, *up, *down;
  const float *q_bias, *k_bias, *v_bias, *o_bias, *gate_bias, *up_bias, *down_bias;
  const float *norm_attention, *norm_mlp; /* (hidden,) weights of the RMS norms */
  /* (heads, head_dim) and (kv_heads, head_dim): weights and biases of the norms of each head of q
   * and k. Both: layer norms; weights alone: RMS norms; both NULL: no norms. */
  const float *q_norm, *q_norm_bias, *k_norm, *k_norm_bias;
  void *keys,
      *values; /* (pages, kv_heads, page_slots, head_dim) of dtype; the new tokens' are stored */
  /* (7,) how q, k, v, o, gate, up and down are stored; NULL: dense, of the step's dtype */
  const fastdecode_weights* weights;
} fastdecode_layer;

/* Arguments of fastdecode_decode_step. */
typedef struct fastdecode_decode_args {
  size_t size; /* set by init */

  size_t layer_size; /* sizeof(fastdecode_layer) of the program; set by init. Layer i begins
                      * i * layer_size bytes after `layers` */

  const fastdecode_layer* layers; /* (layer_count,) */
  int64_t layer_count;            /* 0 is allowed: x is only normed */
  int64_t hidden;                 /* at least 1; required, as are the next four */
  int64_t inner;                  /* features of gate and up, at least 1 */
  int64_t heads;                  /* at least 1 */
  int64_t kv_heads;  /* divides heads: query head h uses head h / (heads / kv_heads) of keys */
  int64_t head_dim;  /* even, at least 2 */
  int32_t dtype;     /* fastdecode_dtype of matrices, keys and values; the rest is float32. Default
                      * FASTDECODE_FLOAT32 */
  int32_t swin;      /* not 0: RMS norms are applied to the results of attention and MLP; default 0:
                      * to their inputs */
  int32_t threads;   /* at most this many threads; 0: one per processor; default 1 */
  float epsilon;     /* of the RMS norms, finite and >= 0; default 1e-5 */
  float qk_epsilon;  /* of the heads' norms, finite and >= 0; default 1e-5 */
  float scale;       /* of the products of queries and keys, finite and not 0; required: mostly
                      * 1 / sqrt(head_dim) */
  const float* norm; /* (hidden,) weights of the last RMS norm */

  /* The keys and values of row r's token i are in slot i % page_slots of page
   * table[r * table_stride + i / page_slots]. Rows may share pages. With `chained` they may also
   * share the page that is written: the rows can then be successive tokens of one sequence, each of
   * which attends to those before it. No two rows may write the same slot. */
  int64_t pages;
  int64_t page_slots;   /* tokens of a page, at least 1; required */
  const int32_t* table; /* (rows, table_width) numbers of pages, in [0, pages) as far as a row has
                         * tokens; what follows is not read */
  int64_t table_stride; /* from one row to the next, at least table_width */
  int64_t table_width;  /* entries of a row that may be read */
  int32_t chained;      /* not 0: as above; default 0 */
  int32_t stores_only;  /* not 0: only keys and values are wanted. The last layer computes nothing
                         * else, and what x holds afterwards means nothing; default 0 */

  int64_t rows;           /* 0 is allowed: nothing is done */
  const int64_t* lengths; /* (rows,) tokens stored so far, less than table_width * page_slots; the
                           * new one comes after them */
  const float* cos;       /* (rows, head_dim) rotation at the new token's position */
  const float* sin;       /* (rows, head_dim) the same; the first half negated */
  float* x; /* (rows, hidden) in: embeddings of the new tokens; out: normed last hidden states */
  int64_t activation; /* fastdecode_activation of the MLPs; default FASTDECODE_SILU. (64 bits, since
                       * no struct of arguments ends with padding) */
} fastdecode_decode_args;

/* Sets every field of a struct of `size` bytes to its default, and layer_size.
 * FASTDECODE_INVALID_ARGUMENT if `args` is NULL, or `size` is no size that the struct has had since
 * version 2; then no later call accepts the struct. For programs that cannot use the function
 * below. */
FASTDECODE_API fastdecode_result fastdecode_decode_args_init_sized(fastdecode_decode_args* args,
                                                                   size_t size, size_t layer_size);

/* Sets `size` and every default. */
static inline fastdecode_result fastdecode_decode_args_init(fastdecode_decode_args* args) {
  return fastdecode_decode_args_init_sized(args, sizeof(fastdecode_decode_args),
                                           sizeof(fastdecode_layer));
}

/* One decode step on the CPU: runs a model's layers (Chameleon's, or others of Llama's shape) for
 * one new token in every row. (Gemma's norms are `weight` + 1 here, and its embeddings scaled.) A
 * row's result is the same bits whatever the other rows, the pages and the number of threads. */
FASTDECODE_API fastdecode_result fastdecode_decode_step(const fastdecode_decode_args* args);

/* out[r * out_stride + f] = x[r] . weight[f] + bias[f] for few rows on the CPU: x (rows, k)
 * float32, weight (features, k) of a fastdecode_dtype, bias (features,) float32 or NULL, out
 * float32, out_stride at least `features` (what lies between the rows is not written); `threads`:
 * at most so many threads, 0: one per processor. k is at least 1. Sums are float32. If the
 * processor multiplies bfloat16 and the weights are bfloat16, x is rounded to bfloat16. A row's
 * result is the same bits whatever the other rows and the number of threads. */
FASTDECODE_API fastdecode_result fastdecode_linear(const void* weight, int32_t dtype,
                                                   const float* bias, const float* x, int64_t rows,
                                                   int64_t k, int64_t features, float* out,
                                                   int64_t out_stride, int32_t threads);

/* The same, with weights that are stored as `how` says. Weights of 8 bits and less round x: see
 * fastdecode_weights. */
FASTDECODE_API fastdecode_result fastdecode_linear_of(
    const void* weight, const fastdecode_weights* how, const float* bias, const float* x,
    int64_t rows, int64_t k, int64_t features, float* out, int64_t out_stride, int32_t threads);

/* The other operations of a decode step on the CPU, each as a function of its own, with the same
 * arithmetic. `threads`: at most so many threads, 0: one per processor. Arrays are float32 unless
 * they are of `dtype`, a fastdecode_dtype. A row's result is the same bits whatever the other rows,
 * the pages and the number of threads. */

/* out (rows, n) = x / sqrt(mean of x^2 in its row + epsilon) * weight, with x (rows, n), weight
 * (n,). With a residual (rows, n), the same of sum (rows, n) = x + residual, which is stored too.
 * Either both residual and sum are NULL, or neither. `out` may be x or sum, and `sum` may be x or
 * residual, each the same array and not a part of it. n is at least 1; `epsilon` is finite and
 * >= 0. */
FASTDECODE_API fastdecode_result fastdecode_rms_norm(const float* x, const float* residual,
                                                     const float* weight, float epsilon,
                                                     int64_t rows, int64_t n, float* sum,
                                                     float* out, int32_t threads);

/* out (rows, inner) = gate / (1 + exp(-gate)) * up, where each row of gate_up (rows, 2 * inner)
 * holds gate and then up. inner is at least 1. */
FASTDECODE_API fastdecode_result fastdecode_swiglu(const float* gate_up, int64_t rows,
                                                   int64_t inner, float* out, int32_t threads);

/* The same with a fastdecode_activation: out = activation(gate) * up. */
FASTDECODE_API fastdecode_result fastdecode_glu(const float* gate_up, int32_t activation,
                                                int64_t rows, int64_t inner, float* out,
                                                int32_t threads);

/* out (rows, hidden) = weight[tokens[row]], of weight (vocab, hidden) of dtype. Tokens are in
 * [0, vocab), and hidden is at least 1. */
FASTDECODE_API fastdecode_result fastdecode_embed(const int64_t* tokens, int64_t rows,
                                                  const void* weight, int32_t dtype, int64_t vocab,
                                                  int64_t hidden, float* out, int32_t threads);

/* The same, with weights that are stored as `how` says: one feature for each token. */
FASTDECODE_API fastdecode_result fastdecode_embed_of(const int64_t* tokens, int64_t rows,
                                                     const void* weight,
                                                     const fastdecode_weights* how, int64_t vocab,
                                                     int64_t hidden, float* out, int32_t threads);

/* Arguments of fastdecode_rope_append. */
typedef struct fastdecode_rope_append_args {
  size_t size; /* set by init */

  int64_t rows;     /* 0 is allowed: nothing is done */
  int64_t heads;    /* at least 1; required, as are kv_heads and head_dim */
  int64_t kv_heads; /* divides heads */
  int64_t head_dim; /* even, at least 2 */
  int32_t dtype;    /* of keys and values; default FASTDECODE_FLOAT32 */
  int32_t threads;  /* at most this many threads; 0: one per processor; default 1 */
  const float* qkv; /* (rows, heads + 2 * kv_heads, head_dim): queries, then keys, then values */
  /* (heads, head_dim) and (kv_heads, head_dim): norms as in fastdecode_layer */
  const float *q_norm, *q_norm_bias, *k_norm, *k_norm_bias;
  float epsilon;    /* of the norms, finite and >= 0; default 1e-5 */
  const float* cos; /* (rows, head_dim) */
  const float* sin; /* (rows, head_dim), the first half negated */

  int64_t pages; /* these as in fastdecode_decode_args */
  int64_t page_slots;
  const int32_t* table;
  int64_t table_stride;
  int64_t table_width;
  const int64_t* lengths; /* (rows,) tokens stored so far; the new one comes after them */

  void *keys, *values; /* (pages, kv_heads, page_slots, head_dim) out: the new tokens' slots */
  float* queries;      /* (rows, heads, head_dim) out */
} fastdecode_rope_append_args;

/* Sets every field of a struct of `size` bytes to its default. FASTDECODE_INVALID_ARGUMENT
 * if `args` is NULL, or `size` is no size that the struct has had since version 2; then no later
 * call accepts the struct. For programs that cannot use the function below. */
FASTDECODE_API fastdecode_result
fastdecode_rope_append_args_init_sized(fastdecode_rope_append_args* args, size_t size);

/* Sets `size` and every default. */
static inline fastdecode_result fastdecode_rope_append_args_init(
    fastdecode_rope_append_args* args) {
  return fastdecode_rope_append_args_init_sized(args, sizeof(fastdecode_rope_append_args));
}

/* For the new token of each row: norms each head of its queries and keys, rotates the heads
 * (head * cos + head with its halves exchanged * sin), and stores keys and values in the row's
 * pages. Two rows must not write the same slot. */
FASTDECODE_API fastdecode_result fastdecode_rope_append(const fastdecode_rope_append_args* args);

/* Arguments of fastdecode_attend. */
typedef struct fastdecode_attend_args {
  size_t size; /* set by init */

  int64_t rows;     /* 0 is allowed: nothing is done */
  int64_t heads;    /* at least 1; required, as are kv_heads and head_dim */
  int64_t kv_heads; /* divides heads: query head h uses head h / (heads / kv_heads) of keys */
  int64_t head_dim; /* at least 1 */
  int32_t dtype;    /* of keys and values; default FASTDECODE_FLOAT32 */
  int32_t threads;  /* at most this many threads; 0: one per processor; default 1 */
  float scale;      /* of the products of queries and keys, finite; default 1. Most models have
                     * 1 / sqrt(head_dim) */

  const float* queries;      /* (rows, heads, head_dim) */
  const void *keys, *values; /* (pages, kv_heads, page_slots, head_dim) */
  int64_t pages;             /* these as in fastdecode_decode_args */
  int64_t page_slots;
  const int32_t* table;
  int64_t table_stride;
  int64_t table_width;
  const int64_t* lengths; /* (rows,) in [1, table_width * page_slots]: a row's query attends to its
                           * tokens [0, length) */

  float* out; /* (rows, heads, head_dim) */
} fastdecode_attend_args;

/* Sets every field of a struct of `size` bytes to its default. FASTDECODE_INVALID_ARGUMENT
 * if `args` is NULL, or `size` is no size that the struct has had since version 2; then no later
 * call accepts the struct. For programs that cannot use the function below. */
FASTDECODE_API fastdecode_result fastdecode_attend_args_init_sized(fastdecode_attend_args* args,
                                                                   size_t size);

/* Sets `size` and every default. */
static inline fastdecode_result fastdecode_attend_args_init(fastdecode_attend_args* args) {
  return fastdecode_attend_args_init_sized(args, sizeof(fastdecode_attend_args));
}

/* out = sum over a row's tokens of softmax(scale * query . key) * value. Slots that hold no token
 * of the row are not read. */
FASTDECODE_API fastdecode_result fastdecode_attend(const fastdecode_attend_args* args);

/* Message of this thread's last failed call; "" before the first. Valid until the next failure. */
FASTDECODE_API const char* fastdecode_last_error(void);

/* FASTDECODE_ABI_VERSION of the loaded library. */
FASTDECODE_API int32_t fastdecode_abi_version(void);

/* The instruction set that the library uses: "portable", "avx2", "avx512" or "avx512bf16". It is
 * the best that the processor has, unless the environment variable FASTDECODE_CPU_ISA names a lower
 * one. If that variable names anything else, this returns NULL with an error, and every function
 * that computes fails. */
FASTDECODE_API const char* fastdecode_cpu_isa(void);

#ifdef __cplusplus
}
#endif

#endif /* FASTDECODE_FASTDECODE_H */
