// Takes the arguments of a request out of a JSON object one by one, and is judged once: after the first argument that
// is missing or wrong every further one reads as its default, and done() reports that first one. An argument that
// nobody asked for is an error too.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "daemon/json_rpc.h"

namespace recalld {

// What was got, for a message: a short value as it is, a long one by its kind and size.
std::string described(const Json& value);

class Arguments {
 public:
  // Borrows `value`, which should be an object. `path` is where it stands ("turns[3]"), empty for a request's params.
  Arguments(Json& value, std::string path);

  // A string of bytes_min to bytes_max bytes.
  std::string text(std::string_view argument, size_t bytes_min, size_t bytes_max);
  std::optional<std::string> optional_text(std::string_view argument, size_t bytes_min, size_t bytes_max);

  // A whole number from min to max.
  uint64_t integer(std::string_view argument, uint64_t min, uint64_t max);
  std::optional<uint64_t> optional_integer(std::string_view argument, uint64_t min, uint64_t max);

  std::optional<double> optional_number(std::string_view argument, double min, double max);

  std::optional<bool> optional_flag(std::string_view argument);

  // A non-empty array of at most items_max elements.
  Json::array_t array(std::string_view argument, size_t items_max);

  template <class T>
  using Word = std::pair<std::string_view, T>;

  // One of some words; the first is the default of optional_choice.
  template <class T>
  T choice(std::string_view argument, std::initializer_list<Word<T>> words) {
    return chosen(argument, required(argument), words);
  }
  template <class T>
  T optional_choice(std::string_view argument, std::initializer_list<Word<T>> words) {
    return chosen(argument, take(argument), words);
  }

  // The argument as it is; nothing when it is not there.
  Json* take(std::string_view argument);

  // Reports an argument. `expected` completes "expected ..."; what was got is added.
  void refuse(std::string_view argument, std::string_view expected, const Json& got);
  // Reports an argument in words of one's own.
  void refuse(std::string_view argument, std::string message);
  // Takes over what went wrong further inside.
  void refuse(Error error);

  bool ok() const { return !error_; }

  // Refuses the arguments that are left, and passes `value` on unless something was refused.
  template <class T>
  Expected<T> done(T value) {
    refuse_the_rest();
    if (error_) return std::unexpected(*std::move(error_));
    return value;
  }

 private:
  Json* required(std::string_view argument);
  std::string path_of(std::string_view argument) const;
  void refuse_the_rest();

  template <class T>
  T chosen(std::string_view argument, const Json* value, std::initializer_list<Word<T>> words) {
    if (!value) return words.begin()->second;
    std::string expected;
    for (const auto& [word, meaning] : words) {
      if (*value == word) return meaning;
      expected.append(expected.empty() ? "" : " or ").append(json_string(word));
    }
    refuse(argument, expected, *value);
    return words.begin()->second;
  }

  Json& value_;
  std::string path_;
  std::vector<std::string_view> known_;  // literals: every argument that was asked for
  std::optional<Error> error_;           // the first
};

}  // namespace recalld
