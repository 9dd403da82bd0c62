// A reader of JSON: as much as a checkpoint's files need, and nothing that it accepts by mistake.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

struct Json {
  enum Kind { kNull, kBool, kNumber, kString, kArray, kObject };
  Kind kind = kNull;
  bool flag = false;
  double number = 0;
  std::string text;
  std::vector<Json> items;
  std::vector<std::pair<std::string, Json>> members;  // in the order of their names

  // The member of that name; nullptr where this is not an object, or has none, or it is null.
  const Json* find(const std::string& name) const {
    const auto at = std::lower_bound(members.begin(), members.end(), name, before);
    return at == members.end() || at->first != name || at->second.kind == kNull ? nullptr
                                                                                : &at->second;
  }
  static bool before(const std::pair<std::string, Json>& member, const std::string& name) {
    return member.first < name;
  }
  // A whole number from 0 to 2^53, which a double holds exactly.
  bool is_count() const {
    return kind == kNumber && number >= 0 && number <= 9007199254740992.0 &&
           number == std::floor(number);
  }
};

class JsonReader {
 public:
  // `name`: of the file, for errors. Throws where the text is not one JSON value.
  static Json read(const char* begin, const char* end, const std::string& name) {
    JsonReader reader(begin, end, name);
    Json value = reader.value(0);
    reader.skip_space();
    if (reader.at_ != end) reader.fail("more follows the value");
    return value;
  }

 private:
  static constexpr int kDeepest = 64;  // so that brackets without end cannot use up the stack

  JsonReader(const char* begin, const char* end, const std::string& name)
      : begin_(begin), at_(begin), end_(end), name_(name) {}

  [[noreturn]] void fail(const std::string& what) const {
    throw std::runtime_error(name_ + " is not valid JSON: " + what + " at byte " +
                             std::to_string(at_ - begin_));
  }
  void skip_space() {
    while (at_ < end_ && (*at_ == ' ' || *at_ == '\t' || *at_ == '\n' || *at_ == '\r')) ++at_;
  }
  bool accept(char c) {
    skip_space();
    if (at_ == end_ || *at_ != c) return false;
    ++at_;
    return true;
  }
  void expect(char c) {
    if (!accept(c)) fail(std::string("'") + c + "' is missing");
  }
  bool accept(const char* word) {
    const std::string wanted = word;
    if (static_cast<size_t>(end_ - at_) < wanted.size()) return false;
    if (std::string(at_, wanted.size()) != wanted) return false;
    at_ += wanted.size();
    return true;
  }

  Json value(int depth) {
    if (depth > kDeepest) fail("too many brackets are open");
    skip_space();
    Json json;
    if (accept('{')) {
      json.kind = Json::kObject;
      if (accept('}')) return json;
      do {
        skip_space();
        std::string key = string();
        expect(':');
        json.members.emplace_back(std::move(key), value(depth + 1));
      } while (accept(','));
      expect('}');
      sort_members(json);
    } else if (accept('[')) {
      json.kind = Json::kArray;
      if (accept(']')) return json;
      do json.items.push_back(value(depth + 1));
      while (accept(','));
      expect(']');
    } else if (at_ < end_ && *at_ == '"') {
      json.kind = Json::kString;
      json.text = string();
    } else if (accept("true") || accept("false")) {
      json.kind = Json::kBool;
      json.flag = at_[-2] == 'u';
    } else if (!accept("null")) {
      json.kind = Json::kNumber;
      json.number = number();
    }
    return json;
  }

  void sort_members(Json& json) const {
    const auto name_order = [](const auto& a, const auto& b) { return a.first < b.first; };
    const auto same_name = [](const auto& a, const auto& b) { return a.first == b.first; };
    std::sort(json.members.begin(), json.members.end(), name_order);
    const auto twice = std::adjacent_find(json.members.begin(), json.members.end(), same_name);
    if (twice != json.members.end()) fail("'" + twice->first + "' is there twice, in what ends");
  }

  double number() {
    std::string digits;  // a copy: the text need not end with a zero byte
    while (at_ < end_ && std::string("+-.0123456789eE").find(*at_) != std::string::npos) {
      digits += *at_++;
    }
    const double found = is_number(digits) ? std::strtod(digits.c_str(), nullptr) : NAN;
    if (!std::isfinite(found)) fail("a value is missing or wrong");
    return found;
  }
  // As JSON has it: strtod alone would take +1, 01, .5 and 1. too.
  static bool is_number(const std::string& text) {
    const char* at = text.c_str();  // ends with a zero byte
    const auto digits = [&at] {
      const char* first = at;
      while (*at >= '0' && *at <= '9') ++at;
      return at > first;
    };
    if (*at == '-') ++at;
    if (*at == '0') {
      ++at;
    } else if (!digits()) {
      return false;
    }
    if (*at == '.' && (++at, !digits())) return false;
    if (*at == 'e' || *at == 'E') {
      ++at;
      if (*at == '+' || *at == '-') ++at;
      if (!digits()) return false;
    }
    return *at == '\0';
  }

  std::string string() {
    if (at_ == end_ || *at_ != '"') fail("a string is missing");
    std::string text;
    for (++at_; at_ < end_ && *at_ != '"'; ++at_) {
      if (static_cast<unsigned char>(*at_) < ' ') fail("a string holds a control character");
      if (*at_ != '\\') {
        text += *at_;
        continue;
      }
      if (++at_ == end_) break;
      const std::string from = "\"\\/bfnrt", to = "\"\\/\b\f\n\r\t";
      if (*at_ == 'u') {
        append_utf8(code_point(), text);
      } else if (from.find(*at_) != std::string::npos) {
        text += to[from.find(*at_)];
      } else {
        fail("JSON has no such escape");
      }
    }
    if (at_ == end_) fail("a string does not end");
    ++at_;
    return text;
  }

  // Of the escape whose 'u' is here; its last digit is here afterwards.
  uint32_t code_point() {
    const uint32_t first = four_digits();
    if (first < 0xD800 || first >= 0xE000) return first;
    if (first >= 0xDC00 || end_ - at_ < 3 || at_[1] != '\\' || at_[2] != 'u') {
      fail("half of a surrogate pair is missing");
    }
    at_ += 2;
    const uint32_t second = four_digits();
    if (second < 0xDC00 || second >= 0xE000) fail("half of a surrogate pair is missing");
    return 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00);
  }
  uint32_t four_digits() {
    uint32_t code = 0;
    for (int i = 0; i < 4; ++i) {
      const std::string digits = "0123456789abcdef";
      const bool more = ++at_ < end_;
      const size_t digit = more ? digits.find(*at_ < 'a' ? *at_ | ' ' : *at_) : std::string::npos;
      if (digit == std::string::npos) fail("an escape needs four hexadecimal digits");
      code = code * 16 + static_cast<uint32_t>(digit);
    }
    return code;
  }
  static void append_utf8(uint32_t code, std::string& text) {
    if (code < 0x80) {
      text += static_cast<char>(code);
      return;
    }
    const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    text += static_cast<char>((0xFF00 >> (more + 1) & 0xFF) | code >> 6 * more);
    for (int i = more - 1; i >= 0; --i) text += static_cast<char>(0x80 | (code >> 6 * i & 0x3F));
  }

  const char *begin_, *at_, *end_;
  const std::string& name_;
};
