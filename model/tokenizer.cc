#include "model/tokenizer.h"

#include <sentencepiece_processor.h>

#include <algorithm>
#include <bit>
#include <cassert>
#include <cstdlib>
#include <limits>
#include <unordered_map>
#include <utility>

#include "base/bytes.h"

namespace recalld {
namespace {

constexpr uint32_t none = std::numeric_limits<uint32_t>::max();
constexpr std::string_view space_mark = "\xe2\x96\x81";  // U+2581, SentencePiece's written form of a space

// Bytes of the character that starts at `text[at]`; 1 for a byte that starts none.
size_t character_bytes(std::string_view text, size_t at) {
  const auto lead = static_cast<uint8_t>(text[at]);
  const size_t bytes = lead < 0xc2 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : lead < 0xf5 ? 4 : 1;
  return std::min(bytes, text.size() - at);
}

// The library does not tell which pieces are user-defined, so their types are read from the model's own bytes: a
// protobuf ModelProto, whose field 1 is a piece and whose field 3 in turn is the piece's type.
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

// What two neighbouring symbols become, and how early: a flat hash table, since it is asked for every pair of symbols.
class MergeTable {
 public:
  struct Merge {
    uint32_t merged = none;
    float score = 0;
  };

  explicit MergeTable(size_t entries_max) : slots_(std::bit_ceil(2 * entries_max + 2)) {}

  void add(uint32_t left, uint32_t right, Merge merge) { slots_[place(left, right)] = {left, right, merge}; }
  const Merge& find(uint32_t left, uint32_t right) const { return slots_[place(left, right)].merge; }

 private:
  struct Slot {
    uint32_t left = none;
    uint32_t right = none;
    Merge merge;
  };

  size_t place(uint32_t left, uint32_t right) const {
    const size_t mask = slots_.size() - 1;
    size_t at = ((uint64_t{left} << 32 | right) * 0x9e3779b97f4a7c15) >> 32 & mask;
    while (slots_[at].left != none && (slots_[at].left != left || slots_[at].right != right)) at = (at + 1) & mask;
    return at;
  }

  std::vector<Slot> slots_;
};

}  // namespace

// The vocabulary comes from SentencePiece's library, the merging is ours: byte-pair encoding as the library does it
// (of all neighbours whose joined text is a piece, the best score first, of equals the leftmost), but a word at a time,
// with the bytes of every piece known, and with no special pieces in content. The library takes 2 s and 75 MB for 1
// MiB.
struct Tokenizer::Impl {
  sentencepiece::SentencePieceProcessor processor;
  uint32_t recall_id = 0;
  uint32_t newline_id = 0;
  // A symbol is a piece's id, or vocab_size + i for a character that occurs in pieces but is none itself.
  uint32_t vocab_size = 0;
  std::unordered_map<std::string, uint32_t> symbol_of_text;
  uint32_t symbol_of_ascii[128];
  uint32_t symbol_of_space = none;
  uint32_t byte_ids[256];
  MergeTable merges{0};
  // No piece has a space mark after another character, so that what stands before a space never joins it.
  bool spaces_only_lead = true;

  struct Symbol {
    uint32_t symbol = none;  // none: a character outside the vocabulary, or joined to its left neighbour
    uint32_t begin = 0;      // bytes in the text
    uint32_t end = 0;
    uint32_t left = none;
    uint32_t right = none;
  };
  struct Candidate {
    float score;
    uint32_t left, right;                // places in Scratch::symbols
    uint32_t left_symbol, right_symbol;  // what stood there when the pair was seen
    uint32_t merged;
    bool operator<(const Candidate& other) const {
      return score != other.score ? score < other.score : left > other.left;
    }
  };
  struct Scratch {
    std::vector<Symbol> symbols;
    std::vector<Candidate> heap;
  };

  Expected<void> load(const std::string& path);
  Expected<void> check_against_library() const;
  void encode(std::string_view text, Tokens& out) const;

 private:
  uint32_t symbol_of(std::string_view character) const {
    const auto lead = static_cast<uint8_t>(character[0]);
    if (lead < 128) return symbol_of_ascii[lead];
    const auto found = symbol_of_text.find(std::string(character));
    return found == symbol_of_text.end() ? none : found->second;
  }
  void consider(Scratch& scratch, uint32_t left, uint32_t right) const;
  void flush_word(std::string_view text, Scratch& scratch, Tokens& out) const;
};

Expected<void> Tokenizer::Impl::load(const std::string& path) {
  const auto status = processor.Load(path);
  if (!status.ok()) return fail(ErrorKind::invalid_request, "read " + path + ": " + status.ToString());
  vocab_size = static_cast<uint32_t>(processor.GetPieceSize());
  const std::vector<uint64_t> types = piece_types(processor.serialized_model_proto());
  if (types.size() != vocab_size) return fail(ErrorKind::corrupt, "read " + path + ": its list of pieces is damaged");
  std::fill(std::begin(byte_ids), std::end(byte_ids), static_cast<uint32_t>(processor.unk_id()));
  std::vector<uint32_t> normal;
  for (uint32_t id = 0; id < vocab_size; ++id) {
    const int piece_id = static_cast<int>(id);
    if (processor.IsUnused(piece_id)) {
      return fail(ErrorKind::invalid_request,
                  "read " + path + ": piece " + std::to_string(id) + " is marked unused, which is not supported");
    }
    const std::string& piece = processor.IdToPiece(piece_id);
    if (processor.IsByte(piece_id)) {
      const unsigned long byte = std::strtoul(piece.c_str() + 3, nullptr, 16);  // "<0x2F>"
      if (piece.size() == 6 && byte < 256) byte_ids[byte] = id;
    } else if (types[id] == type_normal && !piece.empty()) {
      symbol_of_text.emplace(piece, id);
      normal.push_back(id);
    }  // control and user-defined pieces never come from content; their characters do
  }
  for (const auto& [id, wanted] : {std::pair{newline_id, "\n"}, std::pair{recall_id, "<|recall|>"}}) {
    if (id >= vocab_size || processor.IdToPiece(static_cast<int>(id)) != wanted) {
      return fail(ErrorKind::invalid_request,
                  "read " + path + ": piece " + std::to_string(id) +
                      " is not the one that config.json says it is (newline or <|recall|>)");
    }
  }

  uint32_t next_symbol = vocab_size;
  size_t splits = 0;
  for (const uint32_t id : normal) {
    const std::string& piece = processor.IdToPiece(static_cast<int>(id));
    for (size_t at = 0; at < piece.size(); at += character_bytes(piece, at)) {
      const std::string character = piece.substr(at, character_bytes(piece, at));
      if (symbol_of_text.emplace(character, next_symbol).second) ++next_symbol;
      if (at > 0 && character == space_mark && !piece.substr(0, at).ends_with(space_mark)) spaces_only_lead = false;
      ++splits;
    }
  }
  merges = MergeTable(splits);
  for (const uint32_t id : normal) {
    const std::string& piece = processor.IdToPiece(static_cast<int>(id));
    for (size_t at = 0; at < piece.size(); at += character_bytes(piece, at)) {
      const auto left = symbol_of_text.find(piece.substr(0, at)), right = symbol_of_text.find(piece.substr(at));
      if (at == 0 || left == symbol_of_text.end() || right == symbol_of_text.end()) continue;
      merges.add(left->second, right->second, {id, processor.GetScore(static_cast<int>(id))});
    }
  }
  for (size_t c = 0; c < 128; ++c) {
    const auto found = symbol_of_text.find(std::string(1, static_cast<char>(c)));
    symbol_of_ascii[c] = found == symbol_of_text.end() ? none : found->second;
  }
  const auto space = symbol_of_text.find(std::string(space_mark));
  if (space != symbol_of_text.end()) symbol_of_space = space->second;
  symbol_of_ascii[static_cast<size_t>(' ')] = symbol_of_space;
  return check_against_library();
}

// A model of another kind (unigram, or with a normalisation that changes text) would load and then encode wrongly.
Expected<void> Tokenizer::Impl::check_against_library() const {
  constexpr std::string_view samples[] = {
      "Anna met Boris on the 27th of May;  they'd 3 caf\xc3\xa9s left & 1,250 euros.\nThen -- nothing?",
      " two spaces  lead, A\xcc\x8angstr\xc3\xb6m \xef\xac\x81ne \xe2\x84\xa2 \xe4\xbd\xa0\xe5\xa5\xbd "
      "\xf0\x9f\x99\x82 ",
  };
  for (const std::string_view sample : samples) {
    std::vector<int> wanted;
    const auto status = processor.Encode(sample, &wanted);
    Tokens got;
    encode(sample, got);
    if (!status.ok() || !std::equal(wanted.begin(), wanted.end(), got.ids.begin(), got.ids.end(),
                                    [](int a, uint32_t b) { return static_cast<uint32_t>(a) == b; })) {
      return fail(ErrorKind::invalid_request,
                  "the tokenizer model is not supported: it must be SentencePiece BPE with identity normalisation, a "
                  "dummy prefix and all whitespace kept");
    }
  }
  return {};
}

void Tokenizer::Impl::consider(Scratch& scratch, uint32_t left, uint32_t right) const {
  const uint32_t left_symbol = scratch.symbols[left].symbol, right_symbol = scratch.symbols[right].symbol;
  if (left_symbol == none || right_symbol == none) return;
  const MergeTable::Merge& merge = merges.find(left_symbol, right_symbol);
  if (merge.merged == none) return;
  scratch.heap.push_back({merge.score, left, right, left_symbol, right_symbol, merge.merged});
  std::push_heap(scratch.heap.begin(), scratch.heap.end());
}

// Joins the scratch's symbols as far as they go, appends them to `out` and clears the scratch.
void Tokenizer::Impl::flush_word(std::string_view text, Scratch& scratch, Tokens& out) const {
  auto& [symbols, heap] = scratch;
  const uint32_t count = static_cast<uint32_t>(symbols.size());
  for (uint32_t i = 0; i < count; ++i) {
    symbols[i].left = i == 0 ? none : i - 1;
    symbols[i].right = i + 1 == count ? none : i + 1;
    if (i > 0) consider(scratch, i - 1, i);
  }
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end());
    const Candidate best = heap.back();
    heap.pop_back();
    Symbol& left = symbols[best.left];
    Symbol& right = symbols[best.right];
    if (left.symbol != best.left_symbol || right.symbol != best.right_symbol || left.right != best.right) continue;
    left.symbol = best.merged;
    left.end = right.end;
    left.right = right.right;
    right.symbol = none;
    if (left.right != none) symbols[left.right].left = best.left;
    if (left.left != none) consider(scratch, left.left, best.left);
    if (left.right != none) consider(scratch, best.left, left.right);
  }
  for (uint32_t i = 0; i < count; i = symbols[i].right) {
    const Symbol& symbol = symbols[i];
    if (symbol.symbol < vocab_size) {
      out.ids.push_back(symbol.symbol);
      out.ends.push_back(symbol.end);
    } else {
      // A character outside the vocabulary: its bytes, all of them counted to the first.
      const std::string_view bytes = symbol.begin == symbol.end  ? space_mark
                                     : text[symbol.begin] == ' ' ? space_mark
                                                                 : text.substr(symbol.begin, symbol.end - symbol.begin);
      for (const char byte : bytes) {
        out.ids.push_back(byte_ids[static_cast<uint8_t>(byte)]);
        out.ends.push_back(symbol.end);
      }
    }
  }
  symbols.clear();
}

void Tokenizer::Impl::encode(std::string_view text, Tokens& out) const {
  if (text.empty()) return;
  assert(text.size() < none);
  Scratch scratch;
  scratch.symbols.push_back({symbol_of_space, 0, 0});  // the dummy prefix: a space that stands for no byte
  bool after_space = true;
  for (size_t at = 0; at < text.size();) {
    const size_t bytes = character_bytes(text, at);
    const uint32_t begin = static_cast<uint32_t>(at), end = static_cast<uint32_t>(at + bytes);
    at += bytes;
    if (text[begin] == '\n') {
      flush_word(text, scratch, out);
      out.ids.push_back(newline_id);
      out.ends.push_back(end);
      after_space = false;
      continue;
    }
    const uint32_t symbol = symbol_of(text.substr(begin, bytes));
    const bool is_space = symbol == symbol_of_space;
    if (is_space && !after_space && spaces_only_lead) flush_word(text, scratch, out);
    after_space = is_space;
    scratch.symbols.push_back({symbol, begin, end});
  }
  flush_word(text, scratch, out);
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
