#include "memstore/words.h"

#include <libstemmer.h>
#include <unicode/bytestream.h>
#include <unicode/normalizer2.h>
#include <unicode/uchar.h>
#include <unicode/uscript.h>
#include <unicode/utf8.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <optional>
#include <utility>

namespace recalld {
namespace {

constexpr size_t word_characters_max = 64;
constexpr size_t parts_max = 16;     // of a paired character
constexpr size_t known_max = 8'192;  // words that a reader remembers

enum class Kind : uint8_t {
  between,  // no part of a word by itself
  letter,   // or a mark
  digit,
  paired,  // of a script without spaces
};

struct Character {
  UChar32 code = ' ';
  Kind kind = Kind::between;
  bool in_word() const { return kind == Kind::letter || kind == Kind::digit; }
};

constexpr std::array<Kind, 128> ascii_kinds = [] {
  std::array<Kind, 128> kinds{};
  for (size_t c = 0; c < kinds.size(); ++c) {
    if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) kinds.at(c) = Kind::letter;
    if (c >= '0' && c <= '9') kinds.at(c) = Kind::digit;
  }
  return kinds;
}();

// Whether it belongs to the character before it wherever that is one of a script without spaces: the marks of Kana that
// change a sound, and what chooses a form of a Han character.
bool is_mark_of_paired(UChar32 code) {
  return code == 0x3099 || code == 0x309a || code == 0xff9e || code == 0xff9f || (code >= 0xe0100 && code <= 0xe01ef);
}

bool is_paired(UChar32 code) {
  constexpr UChar32 first_paired = 0x0e00;  // no script without spaces begins before Thai
  constexpr UChar32 sound_mark = 0x30fc, narrow_sound_mark = 0xff70;
  if (code < first_paired) return false;
  // Of both Kana, and so of no script.
  if (code == sound_mark || code == narrow_sound_mark || is_mark_of_paired(code)) return true;
  UErrorCode status = U_ZERO_ERROR;
  switch (uscript_getScript(code, &status)) {
    case USCRIPT_HAN:
    case USCRIPT_HIRAGANA:
    case USCRIPT_KATAKANA:
    case USCRIPT_BOPOMOFO:
    case USCRIPT_HANGUL:
    case USCRIPT_YI:
    case USCRIPT_THAI:
    case USCRIPT_LAO:
    case USCRIPT_KHMER:
    case USCRIPT_MYANMAR:
      return true;
    default:
      return false;
  }
}

Kind kind_of(UChar32 code) {
  if (code < 0) return Kind::between;
  if (code < 128) return ascii_kinds.at(static_cast<size_t>(code));
  switch (u_charType(code)) {
    case U_DECIMAL_DIGIT_NUMBER:
    case U_LETTER_NUMBER:
    case U_OTHER_NUMBER:
      return Kind::digit;
    case U_UPPERCASE_LETTER:
    case U_LOWERCASE_LETTER:
    case U_TITLECASE_LETTER:
    case U_MODIFIER_LETTER:
    case U_OTHER_LETTER:
    case U_NON_SPACING_MARK:
    case U_ENCLOSING_MARK:
    case U_COMBINING_SPACING_MARK:
      return is_paired(code) ? Kind::paired : Kind::letter;
    default:
      // Such as soft hyphens and joiners inside words, which folding drops.
      return u_hasBinaryProperty(code, UCHAR_DEFAULT_IGNORABLE_CODE_POINT) ? Kind::letter : Kind::between;
  }
}

// Whether what stands behind a character of a script without spaces is a part of it: a mark, or a letter (jamo) of the
// same Hangul syllable (Unicode Standard Annex 29, rules GB6 to GB8). So a text has the same characters however it is
// composed.
bool is_part(const Character& before, const Character& here) {
  if (before.kind != Kind::paired || here.kind != Kind::paired) return false;
  if (is_mark_of_paired(here.code)) return true;
  constexpr UChar32 behind_jamo = 0x1200, before_jamo = 0xa960;  // most of Kana and Han lies between
  if (here.code >= behind_jamo && here.code < before_jamo) return false;
  const auto type = [](UChar32 code) {
    return static_cast<UHangulSyllableType>(u_getIntPropertyValue(code, UCHAR_HANGUL_SYLLABLE_TYPE));
  };
  const UHangulSyllableType of_here = type(here.code);
  if (of_here == U_HST_NOT_APPLICABLE) return false;
  switch (type(before.code)) {
    case U_HST_LEADING_JAMO:
      return of_here != U_HST_TRAILING_JAMO;
    case U_HST_VOWEL_JAMO:
    case U_HST_LV_SYLLABLE:
      return of_here == U_HST_VOWEL_JAMO || of_here == U_HST_TRAILING_JAMO;
    case U_HST_TRAILING_JAMO:
    case U_HST_LVT_SYLLABLE:
      return of_here == U_HST_TRAILING_JAMO;
    default:
      return false;
  }
}

constexpr UChar32 curly_apostrophe = 0x2019;

// Whether `middle`, which is in no word by itself, belongs to a word between these two.
bool joins(const Character& before, UChar32 middle, const Character& after) {
  if (before.kind != after.kind) return false;
  if (middle == '\'' || middle == curly_apostrophe) return before.kind == Kind::letter;
  if (middle == '.' || middle == ',' || middle == ':') return before.kind == Kind::digit;
  return false;
}

// The character at byte `at`, which is moved behind it; one that separates words at the end.
Character next(std::string_view text, size_t& at) {
  if (at >= text.size()) return {};
  const auto* bytes = reinterpret_cast<const uint8_t*>(text.data());
  const auto length = static_cast<int64_t>(text.size());
  auto index = static_cast<int64_t>(at);
  UChar32 code = 0;
  U8_NEXT(bytes, index, length, code);
  at = static_cast<size_t>(index);
  return {code, kind_of(code)};
}

// The character before byte `at`, which is moved to it.
Character before(std::string_view text, size_t& at) {
  if (at == 0) return {};
  size_t begin = at - 1, end = 0;
  while (begin > 0 && at - begin < U8_MAX_LENGTH && U8_IS_TRAIL(static_cast<uint8_t>(text[begin]))) --begin;
  end = begin;
  const Character found = next(text, end);
  const bool whole = end == at;
  at = whole ? begin : at - 1;
  return whole ? found : Character();
}

// Where the word that begins at `begin` with `first`, which ends at `at`, ends, or its first characters.
size_t end_of_word(std::string_view text, Character first, size_t at) {
  Character last = first;
  for (size_t characters = 1; characters < word_characters_max; ++characters) {
    size_t behind = at;
    const Character following = next(text, behind);
    if (following.in_word()) {
      last = following;
      at = behind;
      continue;
    }
    size_t further = behind;
    const Character beyond = next(text, further);
    if (!beyond.in_word() || !joins(last, following.code, beyond)) break;
    last = beyond;
    at = further;
    ++characters;
  }
  return at;
}

// Where the paired character ends whose first part is `first` and ends at `at`; none: it has too many parts.
std::optional<size_t> end_of_paired(std::string_view text, Character first, size_t at) {
  Character last = first;
  for (size_t parts = 1; parts <= parts_max; ++parts) {
    size_t behind = at;
    const Character following = next(text, behind);
    if (!is_part(last, following)) return at;
    last = following;
    at = behind;
  }
  return std::nullopt;
}

// The pair that begins at `begin` with a character whose first part `first` ends at `at`, or the character alone where
// none stands behind it and it `follows` none. Else nothing, and where one of both has too many parts.
std::string_view pair_of(std::string_view text, size_t begin, Character first, size_t at, bool follows) {
  const std::optional<size_t> end = end_of_paired(text, first, at);
  if (!end) return {};
  size_t behind = *end;
  const Character other = next(text, behind);
  if (other.kind != Kind::paired) return follows ? std::string_view() : text.substr(begin, *end - begin);
  const std::optional<size_t> end_of_other = end_of_paired(text, other, behind);
  return end_of_other ? text.substr(begin, *end_of_other - begin) : std::string_view();
}

constexpr bool is_ascii_letter(char c) {
  return c >= 'a' && c <= 'z';
}

}  // namespace

WordReader::WordReader() : stemmer_(sb_stemmer_new("english", nullptr), sb_stemmer_delete) {
  assert(stemmer_ != nullptr);
}
WordReader::~WordReader() = default;
WordReader::WordReader(WordReader&&) noexcept = default;

void WordReader::read(std::string_view text, size_t from, size_t to, std::vector<Word>& out) {
  to = std::min(to, text.size());
  while (from < to && U8_IS_TRAIL(static_cast<uint8_t>(text[from]))) ++from;  // of a character before
  size_t back = from;
  Character last = before(text, back);
  Character last_but_one = before(text, back);
  for (size_t at = from; at < to;) {
    const size_t begin = at;
    const Character here = next(text, at);
    Term found = 0;
    if (here.in_word()) {
      const bool goes_on = last.in_word() || (last_but_one.in_word() && joins(last_but_one, last.code, here));
      if (!goes_on) found = term(text.substr(begin, end_of_word(text, here, at) - begin));
    } else if (here.kind == Kind::paired && !is_part(last, here)) {
      found = term(pair_of(text, begin, here, at, last.kind == Kind::paired));
    }
    if (found != 0) out.push_back({begin, found});
    last_but_one = last;
    last = here;
  }
}

std::vector<Term> WordReader::terms(std::string_view text) {
  std::vector<Word> words;
  read(text, 0, text.size(), words);
  std::vector<Term> terms;
  terms.reserve(words.size());
  for (const Word& word : words) terms.push_back(word.term);
  std::ranges::sort(terms);
  const auto [end, last] = std::ranges::unique(terms);
  terms.erase(end, last);
  return terms;
}

Term WordReader::term(std::string_view word) {
  folded_.clear();
  const bool ascii = std::ranges::none_of(word, [](char c) { return static_cast<unsigned char>(c) >= 128; });
  if (ascii) {
    for (const char c : word) folded_ += c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
    if (const auto known = known_.find(folded_); known != known_.end()) return known->second;
    if (known_.size() >= known_max) known_.clear();
    Term& known = known_[folded_];
    return known = term_of_folded();
  }
  UErrorCode status = U_ZERO_ERROR;
  const icu::Normalizer2* fold = icu::Normalizer2::getNFKCCasefoldInstance(status);
  if (U_SUCCESS(status)) {
    icu::StringByteSink<std::string> sink(&folded_);
    fold->normalizeUTF8(0, icu::StringPiece(word.data(), static_cast<int32_t>(word.size())), sink, nullptr, status);
  }
  assert(U_SUCCESS(status));
  constexpr std::string_view curly = "\xe2\x80\x99";
  for (size_t at = 0; (at = folded_.find(curly, at)) != std::string::npos;) folded_.replace(at, curly.size(), 1, '\'');
  return term_of_folded();
}

Term WordReader::term_of_folded() {
  std::string_view stem = folded_;
  if (stem.empty()) return 0;
  if (std::ranges::all_of(stem, [](char c) { return is_ascii_letter(c) || c == '\''; })) {
    const auto* stemmed =
        sb_stemmer_stem(stemmer_.get(), reinterpret_cast<const sb_symbol*>(stem.data()), static_cast<int>(stem.size()));
    if (stemmed != nullptr)
      stem = {reinterpret_cast<const char*>(stemmed), static_cast<size_t>(sb_stemmer_length(stemmer_.get()))};
  }
  return std::max<Term>(1, XXH3_64bits(stem.data(), stem.size()));
}

namespace {

// Whether nothing of a character is to be seen. Of those that only format text, signs that stand around numbers are.
bool is_unseen(UChar32 code) {
  if (code < 0) return false;
  if (u_isUWhiteSpace(code) || u_hasBinaryProperty(code, UCHAR_DEFAULT_IGNORABLE_CODE_POINT)) return true;
  const int8_t type = u_charType(code);
  return type == U_CONTROL_CHAR ||
         (type == U_FORMAT_CHAR && !u_hasBinaryProperty(code, UCHAR_PREPENDED_CONCATENATION_MARK));
}

}  // namespace

bool is_blank(std::string_view text) {
  for (size_t at = 0; at < text.size();)
    if (!is_unseen(next(text, at).code)) return false;
  return true;
}

ChunkWords ChunkWords::of(std::vector<Term> terms) {
  ChunkWords chunk{.words = static_cast<uint32_t>(terms.size()), .terms = {}};
  std::ranges::sort(terms);
  for (const Term term : terms) {
    if (chunk.terms.empty() || chunk.terms.back().term != term) chunk.terms.push_back({term, 0});
    ++chunk.terms.back().count;
  }
  return chunk;
}

}  // namespace recalld
