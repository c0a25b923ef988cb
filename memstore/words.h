// The words of a text as search terms: cut, folded, stemmed and hashed.
//
// A word is a run of letters, marks and digits of any script. Between two letters an apostrophe belongs to it
// ("don't"), between two digits a full stop, a comma or a colon ("3.14", "1,200", "10:30"); letters and digits stand
// together in one word ("EH7TX", "v1.2"). Scripts that put no space between words (Han, Kana, Thai, Lao, Khmer,
// Myanmar), and Hangul, whose words have endings, give a term for each pair of neighbouring characters instead, and for
// a character that stands alone. The marks of Kana and the jamo of a Hangul syllable make one character, at most 16 of
// them. Words are compared by NFKC_Casefold; those of ASCII letters by their English (Porter2) stem. Of a longer word
// the first 64 characters count.
//
// Whether a word begins at a byte depends on the 8 bytes before it alone, and which term it is on at most
// word_bytes_max bytes from there on: so a text may be read in parts and gives the same terms however it is cut.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

struct sb_stemmer;

namespace recalld {

using Term = uint64_t;  // XXH3 of a word's folded stem, never 0: no text of users stands in the catalog's keys

inline constexpr size_t word_bytes_before = 8;  // of the text, that decide whether a word begins
inline constexpr size_t word_bytes_max = 272;   // from its beginning on, that decide which term it is

struct Word {
  uint64_t begin = 0;  // byte of the text
  Term term = 0;
};

// Whether a text has nothing that could be read: only white space of any script (Unicode's White_Space), control and
// format characters, and others that are not drawn (Default_Ignorable_Code_Point), such as U+200B.
bool is_blank(std::string_view text);

// Used by one thread at a time.
class WordReader {
 public:
  WordReader();
  ~WordReader();
  WordReader(WordReader&&) noexcept;
  WordReader& operator=(WordReader&&) = delete;

  // Adds the words that begin in bytes [from, to) of the text, in order. `text` has the bytes around these that the
  // words depend on, as far as there are any. What is no UTF-8 separates words.
  void read(std::string_view text, size_t from, size_t to, std::vector<Word>& out);

  // The different terms of a whole text, in order of their numbers.
  std::vector<Term> terms(std::string_view text);

 private:
  // Of a word of UTF-8; 0 when nothing is left of it.
  Term term(std::string_view word);
  Term term_of_folded();

  std::unique_ptr<sb_stemmer, void (*)(sb_stemmer*)> stemmer_;
  std::string folded_;
  std::unordered_map<std::string, Term> known_;  // what lower-case ASCII words are, as far as they were met
};

// How often a term stands in a chunk.
struct TermCount {
  Term term = 0;
  uint32_t count = 0;
  bool operator==(const TermCount&) const = default;
};

// The words that begin in one chunk.
struct ChunkWords {
  uint32_t words = 0;            // the sum of all counts
  std::vector<TermCount> terms;  // by term

  static ChunkWords of(std::vector<Term> terms);  // in any order
  bool operator==(const ChunkWords&) const = default;
};

}  // namespace recalld
