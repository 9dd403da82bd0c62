// Runs the package that test_torch_library.py makes of its `Step`, and prints what each step
// returns and where the state is then. Arguments: the package, rows, vocab, steps.

#include <ATen/ATen.h>
#include <fastdecode/fastdecode_torch.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdio>
#include <cstdlib>
#include <exception>

static void print(const char* name, const at::Tensor& tensor) {
  std::printf("%s", name);
  const at::Tensor values = tensor.to(at::kDouble).flatten();
  for (int64_t i = 0; i < values.numel(); ++i) {
    std::printf(" %.9g", values.data_ptr<double>()[i]);
  }
  std::printf("\n");
}

static void run(const char* package, int64_t rows, int64_t vocab, int64_t steps) {
  torch::inductor::AOTIModelPackageLoader loader(package);
  const int64_t groups = rows / 2;
  const at::Tensor streams = at::arange(rows, at::kInt).view({groups, 2});
  const at::Tensor weights =
      at::stack({at::full({groups}, 3.0), at::full({groups}, -2.0)}, 1).contiguous();
  const at::Tensor seed = at::arange(groups, at::kLong);
  const at::Tensor mode = at::zeros({groups}, at::kInt), step = at::zeros({groups}, at::kLong);
  const at::Tensor finished = at::zeros({groups}, at::kByte);
  const at::Tensor inputs = at::zeros({rows}, at::kLong);
  for (int64_t i = 0; i < steps; ++i) {
    const at::Tensor numbers = at::arange(rows * vocab, at::kLong).mul(7919).add(i * 104729);
    const at::Tensor logits = numbers.remainder(1009).to(at::kFloat).div(100).view({rows, vocab});
    const auto out = loader.run({logits, streams, weights, seed, mode, step, finished, inputs});
    print("free", out.at(0));
    print("logprob", out.at(1));
    print("token", out.at(2));
    print("kept", out.at(3));
    print("inputs", inputs);
    print("mode", mode);
    print("step", step);
    print("finished", finished);
  }
}

int main(int count, char** arguments) {
  if (count != 5) {
    std::fprintf(stderr, "usage: run_package PACKAGE ROWS VOCAB STEPS\n");
    return 2;
  }
  if (fastdecode_torch_registered() != 1) return 3;
  try {
    run(arguments[1], std::atoll(arguments[2]), std::atoll(arguments[3]), std::atoll(arguments[4]));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
