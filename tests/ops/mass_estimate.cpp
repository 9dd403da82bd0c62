// The estimate by which top-p is cut, against the sum of all masses: how far it is off, over the
// bound that the sampler relies on. Prints the largest such ratio and the number of cases; built
// once for each instruction set.
#define SAMPLE_GROUP sample_group_here
#include "cpu/sample_kernel.inc"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

namespace fastdecode {

void parallel_for(int64_t items, int, void (*run)(void*, int64_t), void* context) {
  for (int64_t item = 0; item < items; ++item) run(context, item);
}

}  // namespace fastdecode

namespace {

using namespace fastdecode;

// Logits of many sizes, shifts and shapes: normal, squared, half of them -inf, few values, a ramp.
std::vector<float> logits(std::mt19937& random, int vocab, int streams) {
  std::normal_distribution<float> normal;
  const double scale = std::pow(10.0, random() % 600 / 100.0 - 2.5);
  const double shift = random() % 3 == 0 ? std::pow(10.0, random() % 500 / 100.0 - 1.0) : 0.0;
  const int kind = static_cast<int>(random() % 5);
  std::vector<float> all(static_cast<size_t>(vocab) * static_cast<size_t>(streams));
  for (size_t i = 0; i < all.size(); ++i) {
    const double x = normal(random) * scale + (random() % 2 ? shift : -shift);
    all[i] = static_cast<float>(kind == 1   ? x * std::fabs(x)
                                : kind == 3 ? random() % 3 * scale
                                : kind == 4 ? scale * 50.0 * static_cast<double>(i) / vocab
                                            : x);
    if (kind == 2 && random() % 2) all[i] = -kInf;
  }
  return all;
}

// The error of one estimate over its bound; -1 where there is none, or it would not be used.
double ratio(std::mt19937& random, int vocab, int streams) {
  const std::vector<float> row = logits(random, vocab, streams);
  std::vector<int32_t> rows(streams);
  std::vector<float> weights(streams, -0.7f);
  for (int k = 0; k < streams; ++k) rows[k] = k;
  weights[0] = 2.0f;
  fastdecode_sample_args args = {};
  args.logits = row.data();
  args.rows = streams;
  args.vocab = args.row_stride = vocab;
  args.groups = 1;
  args.streams_per_group = streams;
  args.streams = rows.data();
  args.weights = weights.data();
  args.temperature_value =
      static_cast<float>(std::ldexp(1.3, static_cast<int>(random() % 20) - 10));
  args.top_p_value = 0.9f;

  const size_t room = static_cast<size_t>(vocab) + 2 * kTile;
  std::vector<float> values(room), tops(room / kTile + 1);
  Gathered gathered = {};
  gathered.values = values.data();
  gathered.tops = tops.data();
  gathered.top = -kInf;
  gather<float>(args, 0, parameters(args, 0, 0), ranges_of(args, 0), 1, gathered);
  if (gathered.invalid || gathered.possible == 0 || !(gathered.sum > 0.0)) return -1.0;
  const double bound = error_of_sum(gathered);
  if (bound >= kUsefulError) return -1.0;
  const double sum = static_cast<double>(gathered_mass(gathered, 1)) * 0x1p-40;
  return std::fabs(gathered.sum - sum) / sum / bound;
}

}  // namespace

int main() {
  std::mt19937 random(1);
  double worst = 0.0;
  int cases = 0;
  for (int i = 0; i < 2000; ++i) {
    const int vocab = i % 50 == 0 ? 70000 : 1 + static_cast<int>(random() % 20000);
    const double found = ratio(random, vocab, 1 + static_cast<int>(random() % 3));
    if (found < 0.0) continue;
    worst = found > worst ? found : worst;
    ++cases;
  }
  std::printf("%.3f %d\n", worst, cases);
  return 0;
}
