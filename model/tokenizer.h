// Text to token ids and the bytes that each token stands for (SentencePiece, Kudo and Richardson 2018).
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace recalld {

// ids[i] covers the bytes [ends[i - 1], ends[i]) of the text, ends[-1] being 0; a character of several pieces belongs
// whole to the first of them, so ends never falls, and text cut at any token is valid UTF-8.
struct Tokens {
  std::vector<uint32_t> ids;
  std::vector<uint32_t> ends;
};

// Const functions may be called from any thread. Where the model cuts every word alike wherever it stands, as byte-pair
// encoding does when no piece goes on over a word's beginning, words are remembered (word_cache.h: one cache for all
// threads, of fixed size) and the library cuts only those that are not; ids and ends are the same.
class Tokenizer {
 public:
  // Reads a SentencePiece model file. recall_id and newline_id come from the checkpoint's config.
  static Expected<Tokenizer> open(const std::filesystem::path& model_file, uint32_t recall_id, uint32_t newline_id);
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  // `text` is valid UTF-8, NUL bytes included. Special-token strings in it (<|recall|> and its like) become the pieces
  // of their characters, never the special id; a newline becomes the newline piece. Long text is encoded in blocks
  // whose ids equal those of the whole, but for a word of more than 64 KiB, which is cut there.
  Tokens encode(std::string_view text) const;

  // A turn of the stream: encode(prefix + content) and then the newline piece; ends count from the first byte of
  // prefix + content + "\n".
  Tokens encode_turn(std::string_view prefix, std::string_view content) const;

  // A question asked of memory: newline piece, the query, <|recall|>.
  std::vector<uint32_t> encode_query(std::string_view query) const;

  std::string decode(const std::vector<uint32_t>& ids) const;

  // What a token is in the vocabulary: "▁" stands for a space, and one byte of a character is told as "<0x9E>".
  std::string piece(uint32_t id) const;

  uint32_t vocab_size() const;
  uint32_t recall_id() const;
  uint32_t newline_id() const;

 private:
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace recalld
