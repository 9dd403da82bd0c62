// What the server needs to know of a Chameleon checkpoint, from its config.json: sizes and tokens.
#pragma once

#include <fastdecode/fastdecode.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include "json.h"

class Config {
 public:
  explicit Config(const std::string& folder) : path_(folder + "/config.json") {
    const Json json = read(path_);
    if (name(json, "model_type") != "chameleon") {
      fail("model_type is '" + name(json, "model_type") + "'; this server decodes 'chameleon'");
    }
    hidden = count(json, "hidden_size");
    inner = count(json, "intermediate_size");
    layers = count(json, "num_hidden_layers");
    heads = count(json, "num_attention_heads");
    kv_heads = count(json, "num_key_value_heads");
    vocab = count(json, "vocab_size");
    context = count(json, "max_position_embeddings");
    if (hidden % (2 * heads) != 0)
      fail("hidden_size must be a multiple of 2 * num_attention_heads");
    head_dim = hidden / heads;
    epsilon = static_cast<float>(number(json, "rms_norm_eps"));
    swin = flag(json, "swin_norm");
    attention_bias = flag(json, "attention_bias");
    mlp_bias = flag(json, "mlp_bias");
    tied = flag(json, "tie_word_embeddings");
    if (name(json, "hidden_act") != "silu") fail("hidden_act must be 'silu'");
    read_rope(json);
    read_dtype(json);
    read_tokens(json);
    read_ends(folder, json);
  }

  int64_t hidden, inner, layers, heads, kv_heads, head_dim, vocab, context;
  float epsilon;
  double rope_theta;
  bool swin, attention_bias, mlp_bias, tied;
  int32_t dtype;  // fastdecode_dtype to compute in, which is not always that of the file

  // -1: the checkpoint has no such token
  int32_t begin_sequence, pad, begin_image, end_image, placeholder;
  std::vector<bool> is_image, is_end;  // by token
  int64_t image_length;                // tokens of a picture, without its begin and its end

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw std::runtime_error(path_ + ": " + what);
  }
  static Json read(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    file.peek();  // a folder can be opened, but not read
    if (file.fail()) throw std::runtime_error(path + " cannot be read");
    const std::string text{std::istreambuf_iterator<char>(file), {}};
    return JsonReader::read(text.data(), text.data() + text.size(), path);
  }

  int64_t count(const Json& json, const std::string& key) const {
    const Json* found = json.find(key);
    // The bound keeps products of two of them far from overflow.
    if (found == nullptr || !found->is_count() || found->number < 1 || found->number > 1 << 30) {
      fail(key + " must be a whole number from 1 to 2^30");
    }
    return static_cast<int64_t>(found->number);
  }
  double number(const Json& json, const std::string& key) const {
    const Json* found = json.find(key);
    if (found == nullptr || found->kind != Json::kNumber) fail(key + " must be a number");
    return found->number;
  }
  std::string name(const Json& json, const std::string& key) const {
    const Json* found = json.find(key);
    if (found == nullptr || found->kind != Json::kString) fail(key + " must be a string");
    return found->text;
  }
  bool flag(const Json& json, const std::string& key) const {
    const Json* found = json.find(key);
    if (found == nullptr) return false;
    if (found->kind != Json::kBool) fail(key + " must be true or false");
    return found->flag;
  }

  // transformers 5 writes rope_parameters; older versions rope_theta, and rope_scaling if any.
  void read_rope(const Json& json) {
    const Json* rope = json.find("rope_parameters");
    if (rope != nullptr && name(*rope, "rope_type") != "default") {
      fail("rope_type is '" + name(*rope, "rope_type") + "'; this server knows 'default'");
    }
    if (json.find("rope_scaling") != nullptr) fail("rope_scaling must be null");
    rope_theta = number(rope == nullptr ? json : *rope, "rope_theta");
    if (rope_theta <= 0) fail("rope_theta must be more than 0");
  }

  void read_dtype(const Json& json) {
    const std::string text = name(json, json.find("dtype") != nullptr ? "dtype" : "torch_dtype");
    if (text == "float32") {
      dtype = FASTDECODE_FLOAT32;
    } else if (text == "bfloat16") {
      dtype = FASTDECODE_BFLOAT16;
    } else if (text == "float16") {
      dtype = FASTDECODE_FLOAT16;
    } else {
      fail("dtype is '" + text + "'; it must be 'float32', 'bfloat16' or 'float16'");
    }
  }

  void read_tokens(const Json& json) {
    const Json *map = json.find("vocabulary_map"), *pictures = json.find("vq_config");
    if (map == nullptr || pictures == nullptr) fail("vocabulary_map or vq_config is missing");
    is_image.resize(vocab);
    int64_t images = 0;
    for (const auto& [text, value] : map->members) {
      if (!value.is_count() || value.number >= static_cast<double>(vocab)) {
        fail("vocabulary_map maps '" + text + "' to what is no token of this checkpoint");
      }
      if (text.compare(0, 6, "IMGIMG") != 0) continue;
      is_image[static_cast<size_t>(value.number)] = true;
      ++images;
    }
    const int64_t codes = count(*pictures, "num_embeddings");
    if (images != codes || std::count(is_image.begin(), is_image.end(), true) != codes) {
      fail("vocabulary_map must name a token of its own, IMGIMG..., for each of num_embeddings = " +
           std::to_string(codes));
    }
    begin_sequence = token(*map, "<s>", false);
    pad = token(*map, "<pad>", false);
    begin_image = token(*map, "<racm3:break>", true);
    end_image = token(*map, "<eoss>", true);
    placeholder = token(*map, "<image>", true);
    // The picture tokenizer halves a picture's sides between two of its levels.
    const Json* levels = pictures->find("channel_multiplier");
    if (levels == nullptr || levels->items.empty() || levels->items.size() > 16) {
      fail("channel_multiplier of vq_config must be a list of 1 to 16 numbers");
    }
    const int64_t side = count(*pictures, "resolution") >> (levels->items.size() - 1);
    if (side < 1 || side > 1024) fail("a picture must have 1 to 1024 tokens in a row");
    image_length = side * side;
  }
  int32_t token(const Json& map, const std::string& text, bool needed) const {
    const Json* found = map.find(text);
    if (found == nullptr && needed) fail("vocabulary_map has no " + text);
    return found == nullptr ? -1 : static_cast<int32_t>(found->number);
  }

  // The tokens that end a sequence: generation_config.json comes first where there is one, as in
  // transformers.
  void read_ends(const std::string& folder, const Json& json) {
    is_end.resize(vocab);
    const std::string path = folder + "/generation_config.json";
    const Json generation = std::ifstream(path) ? read(path) : Json();
    const Json* ends = generation.find("eos_token_id");
    if (ends == nullptr) ends = json.find("eos_token_id");
    if (ends == nullptr) return;  // only the number of tokens ends a sequence
    const std::vector<Json> one = {*ends};
    for (const Json& end : ends->kind == Json::kArray ? ends->items : one) {
      if (!end.is_count() || end.number >= static_cast<double>(vocab)) {
        fail("eos_token_id must be a token of this checkpoint, or a list of such");
      }
      is_end[static_cast<size_t>(end.number)] = true;
    }
  }

  const std::string path_;
};
