// Endless made-up chat for benchmarks: seeded, our own words, about four bytes a token like real prose.
#pragma once

#include <cstdint>
#include <random>
#include <string>

namespace recalld::bench {

class Prose {
 public:
  explicit Prose(uint64_t seed) : random_(seed) {}

  std::string sentence();
  std::string turn();  // one to five sentences

 private:
  template <size_t n>
  const char* pick(const char* const (&words)[n]) {
    return words[random_() % n];
  }

  std::mt19937_64 random_;
};

}  // namespace recalld::bench
