// The command line.
#pragma once

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

struct Options {
  static constexpr char kHelp[] =
      "usage: guided MODEL.gguf [options] PROMPT [PROMPT ...]\n"
      "\n"
      "Continues every prompt, guided away from a negative prompt, all in one batch.\n"
      "  --scale S          1 is no guidance (default 1.5)\n"
      "  --negative TEXT    what to guide away from (default: no text)\n"
      "  --tokens N         most tokens to write (default 32)\n"
      "  --seed N           of the first prompt; the next has N + 1, and so on (default 0)\n"
      "  --temperature T    0 is greedy (default 0.8)\n"
      "  --top-k K --top-p P --min-p P    filters; 0, 1 and 0 are off (defaults: 40, 0.95, 0)\n"
      "  --threads T        of llama.cpp (default 4)\n"
      "  --dump-logits F    write each sample's request, step, token and logits to this file\n";

  std::string model, negative, dump;
  std::vector<std::string> prompts;
  float scale = 1.5f, temperature = 0.8f, top_p = 0.95f, min_p = 0.0f;
  int32_t top_k = 40, tokens = 32, threads = 4;
  int64_t seed = 0;
  bool help = false;

  // Throws a sentence that says which word is wrong.
  static Options parse(const std::vector<std::string>& words) {
    Options options;
    for (size_t i = 0; i < words.size(); ++i) {
      const std::string& name = words[i];
      if (name == "--help" || name == "-h") {
        options.help = true;
        return options;
      }
      if (name.compare(0, 2, "--") != 0) {
        (options.model.empty() ? options.model : options.prompts.emplace_back()) = name;
        continue;
      }
      if (++i == words.size()) throw std::runtime_error(name + ": a value must follow");
      options.set(name, words[i]);
    }
    if (options.prompts.empty()) throw std::runtime_error("give a model and a prompt; see --help");
    // llama.cpp has room for so many sequences; each prompt is two.
    if (options.prompts.size() > 128) throw std::runtime_error("give at most 128 prompts");
    return options;
  }

 private:
  void set(const std::string& name, const std::string& text) {
    constexpr double kLargest = std::numeric_limits<float>::max();
    if (name == "--negative") {
      negative = text;
    } else if (name == "--dump-logits") {
      dump = text;
    } else if (name == "--scale") {
      scale = number(name, text, -kLargest, kLargest);
    } else if (name == "--temperature") {
      temperature = number(name, text, 0, kLargest);
    } else if (name == "--top-p") {
      top_p = number(name, text, 0, 1);
    } else if (name == "--min-p") {
      min_p = number(name, text, 0, 1);
    } else if (name == "--top-k") {
      top_k = static_cast<int32_t>(whole_number(name, text, 0, 1 << 30));
    } else if (name == "--tokens") {
      tokens = static_cast<int32_t>(whole_number(name, text, 1, 1 << 20));
    } else if (name == "--threads") {
      threads = static_cast<int32_t>(whole_number(name, text, 1, 512));
    } else if (name == "--seed") {
      seed = whole_number(name, text, std::numeric_limits<int32_t>::min(),
                          std::numeric_limits<int32_t>::max());
    } else {
      throw std::runtime_error(name + ": is no option; --help lists them");
    }
  }

  static float number(const std::string& name, const std::string& text, double least, double most) {
    char* end = nullptr;
    const double value = std::strtod(text.c_str(), &end);
    if (!text.empty() && *end == '\0' && value >= least && value <= most) {
      return static_cast<float>(value);
    }
    throw std::runtime_error(name + " " + text + ": must be a number" +
                             (least < 0    ? ""
                              : most > 1.0 ? ", at least 0"
                                           : " from 0 to 1"));
  }
  static int64_t whole_number(const std::string& name, const std::string& text, int64_t least,
                              int64_t most) {
    char* end = nullptr;
    errno = 0;
    const long long value = std::strtoll(text.c_str(), &end, 10);
    if (!text.empty() && *end == '\0' && errno == 0 && value >= least && value <= most) {
      return value;
    }
    throw std::runtime_error(name + " " + text + ": must be a whole number from " +
                             std::to_string(least) + " to " + std::to_string(most));
  }
};
