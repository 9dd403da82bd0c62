// What a client asks for, one line of words each, and the queue between clients and workers.
#pragma once

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <limits>
#include <mutex>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "grammar.h"

struct Sampling {
  float temperature = 0.0f;        // greedy
  bool given_temperature = false;  // without it, a filter that is given sets it to 1
  int32_t top_k = 0;
  float top_p = 1.0f;
  float min_p = 0.0f;
  float penalty = 1.0f;
};

struct Request {
  int64_t number = 0;  // of its line
  std::vector<int32_t> prompt;
  Mode mode = kTextOnly;
  Sampling text, image;
  double guidance = 1.0;  // 1: none
  int64_t seed = 0;
  int64_t limit = 0;  // most tokens, those of the prompt included
};

constexpr char kLineHelp[] =
    "A request is a line of words: options as NAME=VALUE and the tokens of its prompt, as "
    "numbers.\n"
    "  mode=M          text-only (default), image-only or interleaved-text-image\n"
    "  max_tokens=N    most tokens to answer with (default: as many as fit into the model's "
    "context;\n"
    "                  with image-only, one picture)\n"
    "  guidance=S      classifier-free guidance: 1 is none (default). Guides pictures; with\n"
    "                  text-only, every token\n"
    "  seed=N          a whole number of 64 bits (default 0)\n"
    "  temperature=T   0 is greedy; default 0, or 1 if one of the next three is given\n"
    "  top_k=K top_p=P min_p=P    0, 1 and 0 are off (default)\n"
    "  penalty=R       of tokens that are there already; 1 is none (default)\n"
    "The last five are for text and pictures. text.temperature=T, image.top_k=K and so on are for\n"
    "one of them. Of two that set the same, the later counts.\n";

// Reads the words of a line. Throws a sentence that says what is wrong with it.
class RequestReader {
 public:
  RequestReader(const Config& config, const Grammar& grammar)
      : config_(config), grammar_(grammar) {}

  Request read(int64_t number, const std::string& line) const {
    Request request;
    request.number = number;
    int64_t most = 0;
    std::istringstream words(line);
    if (line.find('\0') != std::string::npos) fail("there is a zero byte in the line");
    for (std::string word; words >> word;) {
      const size_t equals = word.find('=');
      if (equals == std::string::npos) {
        request.prompt.push_back(static_cast<int32_t>(token(word)));
      } else if (word.compare(0, equals, "max_tokens") == 0) {
        most = whole_number(word, equals + 1, 1, std::numeric_limits<int32_t>::max());
      } else {
        set(request, word, word.substr(0, equals), equals + 1);
      }
    }
    check(request, most);
    return request;
  }

 private:
  [[noreturn]] static void fail(const std::string& what) { throw std::invalid_argument(what); }

  static int64_t whole_number(const std::string& word, size_t from, int64_t least, int64_t most) {
    const char* begin = word.c_str() + from;
    char* end = nullptr;
    errno = 0;
    const long long value = std::strtoll(begin, &end, 10);
    if (*begin == '\0' || *end != '\0' || errno != 0 || value < least || value > most) {
      fail(word + ": must be a whole number from " + std::to_string(least) + " to " +
           std::to_string(most));
    }
    return value;
  }

  static double number(const std::string& word, size_t from, double least, double most,
                       const char* right) {
    const char* begin = word.c_str() + from;
    char* end = nullptr;
    const double value = std::strtod(begin, &end);
    if (*begin == '\0' || *end != '\0' || !(value >= least && value <= most)) {
      fail(word + ": must be " + right);
    }
    return value;
  }

  int64_t token(const std::string& word) const {
    const char* begin = word.c_str();
    char* end = nullptr;
    errno = 0;
    const long long value = std::strtoll(begin, &end, 10);
    if (*end != '\0') fail(word + ": is neither a token's number nor an option (NAME=VALUE)");
    if (errno != 0 || value < 0 || value >= config_.vocab) {
      fail("token " + word + ": must be from 0 to " + std::to_string(config_.vocab - 1));
    }
    if (value == config_.placeholder) {
      fail("token " + word + " stands for a picture: give the picture's own tokens instead, " +
           std::to_string(config_.begin_image) + ", " + std::to_string(config_.image_length) +
           " of its codes and " + std::to_string(config_.end_image));
    }
    return value;
  }

  void set(Request& request, const std::string& word, std::string name, size_t from) const {
    constexpr double kLargest = std::numeric_limits<float>::max();
    const bool text = name.compare(0, 5, "text.") == 0, image = name.compare(0, 6, "image.") == 0;
    if (text || image) name = name.substr(text ? 5 : 6);
    if (name == "mode" && !text && !image) {
      request.mode = mode(word, word.substr(from));
    } else if (name == "seed" && !text && !image) {
      request.seed = whole_number(word, from, std::numeric_limits<int64_t>::min(),
                                  std::numeric_limits<int64_t>::max());
    } else if (name == "guidance" && !text && !image) {
      request.guidance = number(word, from, -kLargest, kLargest, "a number");
    } else {
      for (Sampling* sampling : {&request.text, &request.image}) {
        if (sampling == (text ? &request.image : image ? &request.text : nullptr)) continue;
        if (name == "temperature") {
          sampling->temperature =
              static_cast<float>(number(word, from, 0.0, kLargest, "a number, at least 0"));
          sampling->given_temperature = true;
        } else if (name == "top_k" || name == "top_p" || name == "min_p") {
          if (name == "top_k") {
            sampling->top_k = static_cast<int32_t>(
                whole_number(word, from, 0, std::numeric_limits<int32_t>::max()));
          } else {
            float& filter = name == "top_p" ? sampling->top_p : sampling->min_p;
            filter = static_cast<float>(number(word, from, 0.0, 1.0, "from 0 to 1"));
          }
          // Greedy decoding would ignore the filter without a word.
          if (!sampling->given_temperature) sampling->temperature = 1.0f;
        } else if (name == "penalty") {
          // The least number is the least that float32 holds.
          sampling->penalty = static_cast<float>(
              number(word, from, std::numeric_limits<float>::min(), kLargest, "a number above 0"));
        } else {
          fail(word + ": is no option; --help lists them");
        }
      }
    }
  }

  static Mode mode(const std::string& word, const std::string& name) {
    if (name == "text-only") return kTextOnly;
    if (name == "image-only") return kImageOnly;
    if (name == "interleaved-text-image") return kInterleaved;
    fail(word + ": must be text-only, image-only or interleaved-text-image");
  }

  // What the request needs as a whole. `most`: its max_tokens; 0: not given.
  void check(Request& request, int64_t most) const {
    const int64_t length = static_cast<int64_t>(request.prompt.size());
    if (length == 0)
      fail("there is no prompt: give at least one token, such as the begin of sequence");
    const int64_t left = config_.context - length;
    const std::string context = "the context of " + std::to_string(config_.context) + " tokens";
    if (left < 1)
      fail("no room: the prompt's " + std::to_string(length) + " tokens fill " + context);
    const int64_t picture =
        config_.image_length + 2 - grammar_.begun_tokens(request.mode, request.prompt);
    if (most == 0) most = request.mode == kImageOnly ? std::min(picture, left) : left;
    if (most > left) {
      fail("max_tokens=" + std::to_string(most) + ": no room: after the prompt's " +
           std::to_string(length) + " tokens " + std::to_string(left) + " fit into " + context);
    }
    if (request.mode != kTextOnly && most < picture) {
      fail("no room for a picture: it takes " + std::to_string(picture) + " tokens, and " +
           std::to_string(most) + " are left of max_tokens or of " + context);
    }
    if (request.mode != kTextOnly && request.guidance != 1.0 && config_.begin_sequence < 0) {
      fail("guidance of pictures needs a begin of sequence, and the vocabulary has no <s>");
    }
    request.limit = length + most;
  }

  const Config& config_;
  const Grammar& grammar_;
};

// Requests that wait. Clients put in, and workers take, at the same time.
class Queue {
 public:
  // False: no worker takes requests any more.
  bool put(Request request) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (closed_) return false;
    waiting_.push_back(std::move(request));
    arrived_.notify_one();
    return true;
  }
  // No more requests come.
  void close() {
    const std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
    arrived_.notify_all();
  }
  // False: none waits. With `wait` only after the queue was closed.
  bool take(Request& request, bool wait) {
    std::unique_lock<std::mutex> lock(mutex_);
    if (wait) arrived_.wait(lock, [this] { return closed_ || !waiting_.empty(); });
    if (waiting_.empty()) return false;
    request = std::move(waiting_.front());
    waiting_.pop_front();
    return true;
  }

 private:
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::deque<Request> waiting_;
  bool closed_ = false;
};

// Where answers go: a line each on standard output, as soon as they are there.
class Answers {
 public:
  // The tokens behind the prompt's.
  void tokens(int64_t number, const std::vector<int32_t>& tokens, size_t prompt) {
    std::string words;
    for (size_t i = prompt; i < tokens.size(); ++i) words += " " + std::to_string(tokens[i]);
    const std::lock_guard<std::mutex> lock(mutex_);
    print(number, "ok", words);
    made_ += static_cast<int64_t>(tokens.size() - prompt);
  }
  void error(int64_t number, const std::string& what) {
    const std::lock_guard<std::mutex> lock(mutex_);
    print(number, "error", " " + what);
    failed_ = true;
  }

  // After the last answer: how many tokens there were, and whether some requests failed.
  int64_t made() const { return made_; }
  bool failed() const { return failed_; }

 private:
  static void print(int64_t number, const char* status, const std::string& rest) {
    std::printf("%lld %s%s\n", static_cast<long long>(number), status, rest.c_str());
    std::fflush(stdout);
  }
  std::mutex mutex_;
  int64_t made_ = 0;
  bool failed_ = false;
};
