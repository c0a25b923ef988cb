#include "model/tokenizer.h"

#include <sentencepiece_processor.h>

#include <algorithm>
#include <cassert>
#include <optional>
#include <utility>

#include "base/bytes.h"
#include "model/word_cache.h"

namespace recalld {
namespace {

constexpr std::string_view space_mark = "\xe2\x96\x81";  // U+2581, SentencePiece's written form of a space

// The library's time and memory grow faster than the length of a text: it gets about this much at a time.
constexpr size_t block_bytes = 2048;

// Where no space comes after that (encoded bytes, rows of blanks), this much: the library takes some 200 times as much.
constexpr size_t word_bytes_max = size_t{64} << 10;

// What the library does not tell is read from the model's own bytes, a protobuf ModelProto: field 1 is a piece, 2 how
// it was trained, 3 how text is normalised.
class ProtoFields {
 public:
  explicit ProtoFields(std::string_view message) : in_(message) {}

  bool next() {
    if (in_.rest().empty()) return false;
    const uint64_t tag = in_.varint();
    field = tag >> 3;
    switch (tag & 7) {
      case 0:
        number = in_.varint();
        break;
      case 1:
        bytes = in_.take(8);
        break;
      case 2:
        bytes = in_.text();
        break;
      case 5:
        bytes = in_.take(4);
        break;
      default:
        return false;
    }
    return in_.ok();
  }

  uint64_t field = 0;
  uint64_t number = 0;     // of a field of type varint
  std::string_view bytes;  // of any other

 private:
  ByteReader in_;
};

constexpr uint64_t type_normal = 1;
constexpr uint64_t type_user_defined = 4;
constexpr uint64_t type_unused = 5;

std::vector<uint64_t> piece_types(std::string_view model) {
  std::vector<uint64_t> types;
  for (ProtoFields fields(model); fields.next();) {
    if (fields.field != 1) continue;
    uint64_t type = type_normal;
    for (ProtoFields piece(fields.bytes); piece.next();) {
      if (piece.field == 3) type = piece.number;
    }
    types.push_back(type);
  }
  return types;
}

// Whether words are cut one by one, as far as that does not depend on the pieces: byte-pair encoding, in which two
// neighbours only join where the vocabulary has both as one piece, of text as it is but for one mark a space.
bool cuts_word_by_word(std::string_view model) {
  constexpr uint64_t byte_pair_encoding = 2;
  uint64_t kind = 0, byte_fallback = 0, spaces_behind = 0;
  uint64_t dummy_prefix = 1, remove_spaces = 1, mark_spaces = 1;
  bool maps_characters = false;
  for (ProtoFields fields(model); fields.next();) {
    if (fields.field == 2) {
      for (ProtoFields trained(fields.bytes); trained.next();) {
        if (trained.field == 3) kind = trained.number;
        if (trained.field == 24) spaces_behind = trained.number;
        if (trained.field == 35) byte_fallback = trained.number;
      }
    } else if (fields.field == 3) {
      for (ProtoFields normalised(fields.bytes); normalised.next();) {
        if (normalised.field == 2) maps_characters = !normalised.bytes.empty();
        if (normalised.field == 3) dummy_prefix = normalised.number;
        if (normalised.field == 4) remove_spaces = normalised.number;
        if (normalised.field == 5) mark_spaces = normalised.number;
      }
    }
  }
  return kind == byte_pair_encoding && byte_fallback != 0 && spaces_behind == 0 && !maps_characters &&
         dummy_prefix != 0 && remove_spaces == 0 && mark_spaces != 0;
}

// Where the word that begins at `at` ends: before the next space, in either of its forms, before a newline and after
// one, or at `end`. One that is prefixed has the dummy prefix for its space, and may be empty.
size_t end_of_word(std::string_view text, size_t at, size_t end, bool prefixed) {
  if (!prefixed && text[at++] == '\n') return at;
  for (; at < end; ++at) {
    const char c = text[at];
    if (c == ' ' || c == '\n' || (c == space_mark[0] && text.substr(at).starts_with(space_mark))) break;
  }
  return at;
}

// The word as the cache has it; nothing where it is too long for it.
std::optional<WordCache::Word> word_of(std::string_view text, bool prefixed) {
  if (text.size() + (prefixed ? 1 : 0) > WordCache::word_bytes_max) return std::nullopt;
  return prefixed ? WordCache::Word::behind_space(text) : WordCache::Word(text);
}

// How a block of text begins, which decides how it is encoded so that its ids are those of the whole text.
enum class Lead {
  text,   // the beginning of the text: the library's dummy prefix belongs here
  space,  // a space, which is left out, because the dummy prefix stands for it
  none,   // in the middle of a word: encoded behind a newline, after which the library puts no dummy prefix
};

}  // namespace

struct Tokenizer::Impl {
  sentencepiece::SentencePieceProcessor processor;
  uint32_t recall_id = 0;
  uint32_t newline_id = 0;
  uint32_t vocab_size = 0;
  std::vector<std::string> specials;  // user-defined pieces that content must not become, that is all but the newline
  // No piece has a space after another character, so that a text may be cut before any space.
  bool spaces_only_lead = true;
  // There where every word's pieces are the same in any text: no piece goes on over the beginning of a word.
  std::unique_ptr<WordCache> words;

  Expected<void> load(const std::string& path);
  void encode(std::string_view text, Tokens& out) const;
  void encode_block(std::string_view text, size_t begin, size_t end, Lead lead, Tokens& out) const;
  void encode_words(std::string_view text, size_t begin, size_t end, Lead lead, Tokens& out) const;
  void keep_words(std::string_view text, size_t begin, size_t end, Lead lead, const Tokens& from, size_t piece) const;
  bool space_cut(std::string_view text, size_t at) const;
};

Expected<void> Tokenizer::Impl::load(const std::string& path) {
  const auto status = processor.Load(path);
  if (!status.ok()) return fail(ErrorKind::invalid_request, "read " + path + ": " + status.ToString());
  vocab_size = static_cast<uint32_t>(processor.GetPieceSize());
  const std::vector<uint64_t> types = piece_types(processor.serialized_model_proto());
  if (types.size() != vocab_size) return fail(ErrorKind::corrupt, "read " + path + ": its list of pieces is damaged");
  for (const auto& [id, wanted] : {std::pair{newline_id, "\n"}, std::pair{recall_id, "<|recall|>"}}) {
    if (id >= vocab_size || processor.IdToPiece(static_cast<int>(id)) != wanted || types[id] != type_user_defined)
      return fail(ErrorKind::invalid_request,
                  "read " + path + ": piece " + std::to_string(id) +
                      " is not the user-defined one that config.json says it is (newline or <|recall|>)");
  }
  bool word_by_word = vocab_size <= WordCache::ids_max && cuts_word_by_word(processor.serialized_model_proto());
  for (uint32_t id = 0; id < vocab_size; ++id) {
    const std::string& piece = processor.IdToPiece(static_cast<int>(id));
    if (types[id] == type_user_defined && id != newline_id && piece.size() > 1) specials.push_back(piece);
    if (types[id] == type_normal) {
      const size_t first_other =
          piece.find_first_not_of(space_mark);  // the mark's bytes begin no other character alone
      if (first_other != std::string::npos && piece.find(space_mark, first_other) != std::string::npos)
        spaces_only_lead = false;
    }
    // The library takes unused pieces apart by what it met last, anywhere in the text.
    word_by_word = word_by_word && types[id] != type_unused && piece.find(space_mark, 1) == std::string::npos &&
                   (types[id] != type_user_defined || piece != " ");
  }
  if (word_by_word) words = std::make_unique<WordCache>();
  return {};
}

// A space between two characters that are none, in either of its forms.
bool Tokenizer::Impl::space_cut(std::string_view text, size_t at) const {
  if (!spaces_only_lead || at == 0 || at + 1 >= text.size() || text[at] != ' ') return false;
  const std::string_view before = text.substr(0, at), after = text.substr(at + 1);
  return !before.ends_with(' ') && !before.ends_with(space_mark) && !after.starts_with(' ') &&
         !after.starts_with(space_mark);
}

void Tokenizer::Impl::encode(std::string_view text, Tokens& out) const {
  // Inside every special string one cut, so that the library meets no whole one.
  std::vector<size_t> broken_at;
  for (const std::string& special : specials)
    for (size_t at = text.find(special); at != std::string_view::npos; at = text.find(special, at + 1))
      broken_at.push_back(at + 1);
  std::sort(broken_at.begin(), broken_at.end());

  size_t begin = 0;
  Lead lead = Lead::text;
  auto next_break = broken_at.begin();
  while (begin < text.size()) {
    while (next_break != broken_at.end() && *next_break <= begin) ++next_break;
    const size_t limit = next_break == broken_at.end() ? text.size() : *next_break;
    size_t end = std::min(begin + block_bytes, limit);
    const size_t end_max = std::min(begin + word_bytes_max, limit);
    while (end < end_max && !space_cut(text, end)) ++end;
    while (end < limit && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) ++end;  // not inside a character
    if (words)
      encode_words(text, begin, end, lead, out);
    else
      encode_block(text, begin, end, lead, out);
    lead = end < limit && space_cut(text, end) ? Lead::space : Lead::none;
    begin = end;
  }
}

void Tokenizer::Impl::encode_block(std::string_view text, size_t begin, size_t end, Lead lead, Tokens& out) const {
  const std::string_view block = text.substr(begin, end - begin);
  const std::string behind_newline = lead == Lead::none ? "\n" + std::string(block) : std::string();
  const auto encoded = processor.EncodeAsImmutableProto(lead == Lead::none    ? std::string_view(behind_newline)
                                                        : lead == Lead::space ? block.substr(1)
                                                                              : block);
  // Where the library's byte 0 lies in the text, and how many of its pieces are not the text's: the dummy prefix and
  // the newline.
  const size_t first_piece = lead == Lead::none ? 2 : 0;
  const size_t shift_back = lead == Lead::none ? 1 : 0, shift = begin + (lead == Lead::space ? 1 : 0);
  const size_t first = out.ids.size(), count = encoded.pieces_size() - first_piece;
  out.ids.resize(first + count);
  out.ends.resize(first + count);
  for (size_t i = count; i-- > 0;) {
    const auto piece = encoded.pieces(static_cast<int>(first_piece + i));
    // The library counts a character's bytes to the last of its byte pieces, and we to the first.
    const bool more_bytes =
        i + 1 < count && piece.begin() == piece.end() && processor.IsByte(static_cast<int>(piece.id()));
    out.ids[first + i] = piece.id();
    out.ends[first + i] =
        more_bytes ? out.ends[first + i + 1] : static_cast<uint32_t>(shift + piece.end() - shift_back);
  }
}

// The same word by word: those that are known from the cache, and what lies between them from the library at once.
void Tokenizer::Impl::encode_words(std::string_view text, size_t begin, size_t end, Lead lead, Tokens& out) const {
  size_t done = begin;
  const auto encode_until = [&](size_t at) {
    if (done == at) return;
    const size_t piece = out.ids.size();
    encode_block(text, done, at, lead, out);
    keep_words(text, done, at, lead, out, piece);
  };
  if (lead == Lead::space) lead = Lead::none;  // its space begins its first word
  WordCache::Pieces pieces;
  bool prefixed = lead == Lead::text;
  for (size_t at = begin, next = 0; at < end || prefixed; at = next, prefixed = false) {
    next = end_of_word(text, at, end, prefixed);
    // The library puts no prefix before nothing: an empty first word that is unknown goes with the next one.
    if (lead == Lead::text && done == at && !prefixed) continue;
    const auto word = word_of(text.substr(at, next - at), prefixed);
    if (!word || !words->find(*word, pieces)) continue;
    encode_until(at);
    const size_t shift = at - (prefixed ? 1 : 0);
    for (size_t i = 0; i < pieces.count; ++i) {
      out.ids.push_back(pieces.ids[i]);
      out.ends.push_back(static_cast<uint32_t>(shift + pieces.ends[i]));
    }
    done = next;
    lead = Lead::none;
  }
  encode_until(end);
}

// Keeps the words of a block that was encoded, of which `piece` is the first piece.
void Tokenizer::Impl::keep_words(std::string_view text, size_t begin, size_t end, Lead lead, const Tokens& from,
                                 size_t piece) const {
  WordCache::Pieces pieces;
  bool prefixed = lead == Lead::text;
  for (size_t at = begin, next = 0; at < end || prefixed; at = next, prefixed = false) {
    next = end_of_word(text, at, end, prefixed);
    const size_t first = piece;
    while (piece < from.ids.size() && from.ends[piece] <= next) ++piece;
    const auto word = word_of(text.substr(at, next - at), prefixed);
    pieces.count = piece - first;
    if (!word || pieces.count == 0 || pieces.count > WordCache::pieces_max || from.ends[piece - 1] != next) continue;
    const size_t shift = at - (prefixed ? 1 : 0);
    for (size_t i = 0; i < pieces.count; ++i) {
      pieces.ids[i] = from.ids[first + i];
      pieces.ends[i] = static_cast<uint8_t>(from.ends[first + i] - shift);
    }
    words->keep(*word, pieces);
  }
}

Expected<Tokenizer> Tokenizer::open(const std::filesystem::path& model_file, uint32_t recall_id, uint32_t newline_id) {
  auto impl = std::make_unique<Impl>();
  impl->recall_id = recall_id;
  impl->newline_id = newline_id;
  RECALLD_CHECK(impl->load(model_file.string()));
  return Tokenizer(std::move(impl));
}

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Tokens Tokenizer::encode(std::string_view text) const {
  Tokens out;
  out.ids.reserve(text.size() / 3 + 8);
  out.ends.reserve(text.size() / 3 + 8);
  impl_->encode(text, out);
  return out;
}

Tokens Tokenizer::encode_turn(std::string_view prefix, std::string_view content) const {
  std::string text;
  text.reserve(prefix.size() + content.size());
  text.append(prefix).append(content);
  Tokens out = encode(text);
  out.ids.push_back(impl_->newline_id);
  out.ends.push_back(static_cast<uint32_t>(text.size() + 1));
  return out;
}

std::vector<uint32_t> Tokenizer::encode_query(std::string_view query) const {
  Tokens tokens;
  tokens.ids.push_back(impl_->newline_id);
  impl_->encode(query, tokens);
  tokens.ids.push_back(impl_->recall_id);
  return std::move(tokens.ids);
}

std::string Tokenizer::decode(const std::vector<uint32_t>& ids) const {
  std::vector<int> known;
  known.reserve(ids.size());
  for (const uint32_t id : ids) {
    if (id < impl_->vocab_size) known.push_back(static_cast<int>(id));
  }
  std::string text;
  if (!impl_->processor.Decode(known, &text).ok()) text.clear();
  return text;
}

std::string Tokenizer::piece(uint32_t id) const {
  return id < impl_->vocab_size ? impl_->processor.IdToPiece(static_cast<int>(id)) : std::string();
}

uint32_t Tokenizer::vocab_size() const {
  return impl_->vocab_size;
}
uint32_t Tokenizer::recall_id() const {
  return impl_->recall_id;
}
uint32_t Tokenizer::newline_id() const {
  return impl_->newline_id;
}

}  // namespace recalld
