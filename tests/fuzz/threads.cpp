// For the thread sanitizer: several threads draw, multiply (weights of float32 and of int8, which
// round their inputs in memory of their own) and attend at the same time, each call
// on several threads of the one pool, and each must get what it gets alone.
//
//   threads [ROUNDS]      rounds of each thread; 2000 if not given

#include <atomic>
#include <cstdlib>
#include <thread>

#include "fuzz.h"

namespace {

constexpr int64_t kPages = 40, kSlots = 16, kHeads = 2, kDim = 16;

struct Job {
  std::vector<float> logits;
  fastdecode_sample_args args;
  std::vector<int64_t> token;
  std::vector<float> weight, x, product, keys, found;
  std::vector<int8_t> bytes;
  int64_t k, features;
};

Job make_job(int64_t vocab, int64_t groups, uint64_t seed) {
  Job job;
  fuzz::Random random(seed);
  const auto fill = [&](std::vector<float>& values, int64_t n) {
    values.resize(static_cast<size_t>(n));
    for (float& x : values) x = static_cast<float>(random.below(8192)) / 1024.0f - 4.0f;
  };
  fill(job.logits, vocab * groups);
  fastdecode_sample_args& a = job.args;
  fastdecode_sample_args_init(&a);
  a.logits = job.logits.data();
  a.rows = a.groups = groups;
  a.vocab = a.row_stride = vocab;
  a.seed_value = static_cast<int64_t>(seed);
  a.top_k_value = seed % 3 == 0 ? 40 : 0;
  a.top_p_value = seed % 2 == 0 ? 0.8f : 1.0f;
  job.k = 256 + static_cast<int64_t>(seed % 5);
  job.features = 300;
  fill(job.weight, job.k * job.features);
  fill(job.x, job.k * 3);
  for (int64_t i = 0; i < job.k * job.features; ++i) {
    job.bytes.push_back(static_cast<int8_t>(random.next()));
  }
  fill(job.keys, kPages * kHeads * kSlots * kDim);
  return job;
}

std::vector<int64_t> draw(const Job& job, int32_t threads) {
  const size_t groups = static_cast<size_t>(job.args.groups);
  std::vector<int64_t> token(groups);
  std::vector<float> logprob(groups);
  std::vector<int32_t> kept(groups), status(groups);
  fastdecode_sample_args a = job.args;
  a.threads = threads;
  a.token = token.data();
  a.logprob = logprob.data();
  a.kept = kept.data();
  a.status = status.data();
  CHECK(fastdecode_sample(&a) == FASTDECODE_OK);
  return token;
}

std::vector<float> multiply(const Job& job, int32_t threads) {
  const size_t count = static_cast<size_t>(3 * job.features);
  std::vector<float> out(2 * count);
  CHECK(fastdecode_linear(job.weight.data(), FASTDECODE_FLOAT32, nullptr, job.x.data(), 3, job.k,
                          job.features, out.data(), job.features, threads) == FASTDECODE_OK);
  const fastdecode_weights how = {FASTDECODE_WEIGHTS_INT8, 0, job.weight.data(), nullptr, 0};
  CHECK(fastdecode_linear_of(job.bytes.data(), &how, nullptr, job.x.data(), 3, job.k, job.features,
                             out.data() + count, job.features, threads) == FASTDECODE_OK);
  return out;
}

// Three rows, in several stretches, of the same pages.
std::vector<float> attend(const Job& job, int32_t threads) {
  int32_t table[3 * kPages];
  for (int32_t i = 0; i < 3 * kPages; ++i) table[i] = i % static_cast<int32_t>(kPages);
  const int64_t lengths[] = {640, 3, 600};
  std::vector<float> out(3 * kHeads * kDim);
  fastdecode_attend_args a;
  fastdecode_attend_args_init(&a);
  a.rows = 3;
  a.heads = a.kv_heads = kHeads;
  a.head_dim = kDim;
  a.threads = threads;
  a.queries = job.x.data();
  a.keys = a.values = job.keys.data();
  a.pages = a.table_stride = a.table_width = kPages;
  a.page_slots = kSlots;
  a.table = table;
  a.lengths = lengths;
  a.out = out.data();
  CHECK(fastdecode_attend(&a) == FASTDECODE_OK);
  return out;
}

void refuse(int64_t number) {
  fastdecode_sample_args a;
  fastdecode_sample_args_init(&a);
  a.vocab = -number;
  CHECK(fastdecode_sample(&a) == FASTDECODE_INVALID_ARGUMENT);
  // The message is this thread's own.
  CHECK(strtoll(strchr(fastdecode_last_error(), '=') + 1, nullptr, 10) == -number);
}

}  // namespace

int main(int argc, char** argv) {
  const size_t rounds = argc > 1 ? strtoull(argv[1], nullptr, 10) : 2000;
  std::vector<Job> jobs;
  uint64_t seed = 0;
  for (const int64_t vocab : {100, 3000, 20000, 33, 8192, 40000}) {
    ++seed;
    jobs.push_back(make_job(vocab, seed % 2 == 0 ? 1 : 4, seed));
    jobs.back().token = draw(jobs.back(), 1);
    jobs.back().product = multiply(jobs.back(), 1);
    jobs.back().found = attend(jobs.back(), 1);
  }
  std::atomic<int64_t> calls{0};
  const auto work = [&](size_t me) {
    for (size_t i = me; i < me + rounds; ++i) {
      const Job& job = jobs[i % jobs.size()];
      const int32_t threads = static_cast<int32_t>(1 + (i + me) % 4);
      CHECK(draw(job, threads) == job.token);
      CHECK(multiply(job, threads) == job.product);
      CHECK(attend(job, threads) == job.found);
      refuse(static_cast<int64_t>(1 + me));
      calls += 4;
    }
  };
  std::vector<std::thread> workers;
  for (size_t me = 0; me < 4; ++me) workers.emplace_back(work, me);
  for (std::thread& worker : workers) worker.join();
  printf("calls %lld, threads 4, %s\n", static_cast<long long>(calls.load()), fastdecode_cpu_isa());
  return 0;
}

uint64_t fuzz::outcome = 0;
