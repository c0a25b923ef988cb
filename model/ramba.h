// RAMba: Mamba-2 with Hierarchical Sparse Attention (arXiv 2504.16795; chunk encoder with CLS token and bypassing
// residual path: arXiv 2510.17196). The front door of the model: lower half, chunk encoder, query, upper half.
//
// A memory's tokens go through lower() chunk by chunk; encode_chunk() turns 64 hidden states into what is stored.
// Both give the same bits however the tokens were cut into calls and however many threads work: every product has a
// fixed shape of 64 (or 65) rows and is computed by one thread.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/error.h"
#include "base/hash.h"
#include "kernels/bf16.h"
#include "kernels/worker_pool.h"
#include "model/config.h"

namespace recalld {

enum class Precision {
  automatic,  // bf16 where the CPU multiplies it (AVX-512 BF16 or AMX), f32 elsewhere
  f32,
  bf16,  // inputs of the matrix products rounded to bf16, sums in f32
};

// The recurrent state of the lower (or of the upper) half of one stream: for each Mamba-2 layer the last
// conv_kernel - 1 inputs of the convolution and the SSM state, in f32.
struct RecurrentState {
  std::vector<float> values;
};

// What one chunk leaves behind, before any rounding for storage.
struct EncodedChunk {
  std::vector<float> landmark;  // [retrieval_dim], unit RMS, before the gain of lmk_k_norm
  std::vector<float> k;         // [chunk_size, kv_heads, head_dim]
  std::vector<float> v;         // [chunk_size, kv_heads, head_dim]
};

// Chunks that one retrieval head of one token attends to, newest first.
struct Selection {
  std::vector<uint64_t> chunks;  // at most top-k
  std::vector<float> weights;    // softmax or stick-breaking, same length
};

// Not thread-safe: one thread at a time calls the functions that compute. Const accessors may be called from any.
class Ramba {
 public:
  // Maps DIRECTORY/model.safetensors and reads DIRECTORY/config.json. Fails with invalid_request when a key, a tensor
  // or a shape is missing or unsupported (it names which), with io or corrupt when a file cannot be read.
  // `pool` outlives the model.
  static Expected<std::unique_ptr<Ramba>> open(const std::filesystem::path& directory, Precision precision, WorkerPool& pool);
  ~Ramba();

  const Config& config() const;
  Hash128 hash() const;                 // of config.json, model.safetensors and tokenizer.model
  Precision precision() const;          // f32 or bf16
  std::string describe() const;         // "bf16 products (AMX), 2 threads": for logs and stats

  size_t kv_bytes() const;              // of packed K and V of a chunk
  size_t landmark_dim() const;
  size_t lower_state_bytes() const;

  RecurrentState lower_zero_state() const;
  RecurrentState upper_zero_state() const;
  // States as bytes: little-endian f32. from_bytes wants exactly lower_state_bytes().
  static std::string to_bytes(const RecurrentState& state);
  RecurrentState lower_state_from_bytes(ByteView bytes) const;

  // Lower half over whole chunks. tokens: [n * 64], each < vocab_size · hidden out: [n * 64, hidden_size]
  void lower(RecurrentState& state, std::span<const uint32_t> tokens, std::span<float> hidden);

  // Chunk encoder. hidden: [n * 64, hidden_size] · returns n chunks
  std::vector<EncodedChunk> encode_chunks(std::span<const float> hidden);

  // K then V in bf16, each [chunk_size, kv_heads, head_dim] · out: [kv_bytes]
  void pack_kv(const EncodedChunk& chunk, ByteSpan out) const;
  std::vector<Bf16> pack_landmark(const EncodedChunk& chunk) const;

  // Lower half over any number of tokens from a zero state (the last block padded inside).
  // tokens: [n] · returns [n, hidden_size]
  std::vector<float> lower_from_zero(std::span<const uint32_t> tokens);

  // Retrieval embedding of hidden states, with the gain of lmk_q_norm; group 0 unless said.
  // hidden: [n, hidden_size] · returns [n, retrieval_dim]
  std::vector<float> retrieval_embedding(std::span<const float> hidden, size_t group = 0);

  // The query vector of a search: the embedding of the last of `tokens` (newline, question, <|recall|>) read from a
  // zero state, with the landmarks' gain folded in, rounded to bf16. Score = dot * score_scale(). [landmark_dim]
  std::vector<Bf16> query(std::span<const uint32_t> tokens);
  float score_scale() const;  // 1 / sqrt(width of a retrieval head)

 private:
  struct Impl;
  explicit Ramba(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace recalld
