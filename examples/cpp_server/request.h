// What a client asks for, what it gets, and the queue between clients and workers.
#pragma once

#include <atomic>
#include <vector>

#include "model.h"

struct Sampling {
  float temperature = 1.0f;
  int32_t top_k = 0;
  float top_p = 1.0f;
  float min_p = 0.0f;
  float penalty = 1.0f;
};

// One of the prompts that a picture is guided by.
struct Stream {
  std::vector<int32_t> prompt;
  float weight;
};

constexpr int64_t kMaxStreams = 3;
constexpr int64_t kMaxLimit = 220;  // ids that a slot has room for

struct Request {
  std::vector<Stream> streams;  // the first is the request's own prompt; weights add up to 1
  Sampling text, picture;
  int64_t seed = 0;
  int64_t limit = kMaxLimit;  // ids to make at most
};

struct Result {
  std::vector<int64_t> ids;
  double logprob = 0.0;
  int32_t status = FASTDECODE_STATUS_OK;  // else the fastdecode_status that it failed with
};

// A made-up request: every number gives another mixture of parameters.
inline Request make_request(int64_t number) {
  const uint32_t n = static_cast<uint32_t>(number);
  std::vector<int32_t> prompt = {kBeginSequence};
  for (uint32_t i = 0; i < 2 + n % 7; ++i) {
    prompt.push_back(kFirstText + static_cast<int32_t>(mix(n, i) % (kVocab - kFirstText)));
  }
  const std::vector<int32_t> begin(prompt.begin(), prompt.begin() + 2), nothing = {kBeginSequence};

  Request request;
  switch (n % 4) {
    case 0:  // not guided
      request.streams = {{prompt, 1.0f}};
      break;
    case 1:
      request.streams = {{prompt, 3.0f}, {nothing, -2.0f}};
      break;
    case 2:
      request.streams = {{prompt, 1.5f}, {nothing, -0.5f}};
      break;
    case 3:  // towards the whole prompt, and by less towards the beginning of it
      request.streams = {{prompt, 3.0f}, {begin, -1.75f}, {nothing, -0.25f}};
      break;
  }
  if (n % 5 < 4) request.text = {0.75f, 0, 0.9375f, 0.0f, n % 3 == 0 ? 1.25f : 1.0f};
  if (n % 5 == 4) request.text = {0.0f, 0, 1.0f, 0.0f, 1.0f};  // greedy
  if (n % 3 > 0) request.picture = {0.875f, n % 3 == 1 ? 100 : 0, 0.9375f, 0.0f, 1.0f};
  if (n % 3 == 0) request.picture.min_p = 0.0625f;
  request.seed = 1000 + number;
  request.limit = 20 + mix(n, 99) % (kMaxLimit - 20 + 1);
  return request;
}

struct Job {
  const Request* request = nullptr;
  Result* result = nullptr;
};

// Requests that wait, and room for their results. Workers take from it at the same time.
class Queue {
 public:
  explicit Queue(int64_t count) : results_(count) {
    for (int64_t number = 0; number < count; ++number) requests_.push_back(make_request(number));
  }

  // A job without a request: none is left.
  Job take() {
    const size_t number = next_.fetch_add(1);
    if (number >= requests_.size()) return {};
    return {&requests_[number], &results_[number]};
  }

  const std::vector<Result>& results() const { return results_; }

 private:
  std::vector<Request> requests_;
  std::vector<Result> results_;
  std::atomic<size_t> next_{0};
};
