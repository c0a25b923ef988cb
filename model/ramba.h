// RAMba: Mamba-2 with Hierarchical Sparse Attention (arXiv 2504.16795; chunk encoder with CLS token and bypassing
// residual path: arXiv 2510.17196). The front door of the model: lower half, chunk encoder, query, upper half. Models
// of the other family (arXiv 2510.17196) have blocks of sliding-window attention in place of Mamba-2.
//
// A memory's tokens go through lower() chunk by chunk; encode_chunks() turns 64 hidden states each into what is stored.
// Both give the same bits however the tokens were cut into calls and however many threads work: every product has a
// fixed shape of 64 (or 65) rows and is computed by one thread.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/error.h"
#include "base/hash.h"
#include "kernels/bf16.h"
#include "kernels/worker_pool.h"
#include "model/backend.h"
#include "model/chunk_encoder.h"
#include "model/config.h"
#include "model/hsa.h"

namespace recalld {

enum class Precision {
  automatic,  // bf16 where the CPU multiplies it (AVX-512 BF16 or AMX), f32 elsewhere
  f32,
  bf16,  // inputs of the matrix products rounded to bf16, sums in f32
};

// Which parts of a checkpoint are made ready to run.
enum class Parts {
  lower,  // appending and searching: the lower half, the chunk encoder, the first retrieval and the first HSA query
  all,    // the upper half too
};

// Not thread-safe: one thread at a time calls the functions that compute. Const accessors may be called from any.
class Ramba {
 public:
  // Maps DIRECTORY/model.safetensors and reads DIRECTORY/config.json. Fails with invalid_request when a key, a tensor
  // or a shape is missing or unsupported (it names which), with io or corrupt when a file cannot be read.
  // `pool` outlives the model.
  static Expected<std::unique_ptr<Ramba>> open(const std::filesystem::path& directory, Precision precision, Parts parts,
                                               WorkerPool& pool);
  ~Ramba();

  const Config& config() const;
  Hash128 hash() const;          // of config.json, model.safetensors and tokenizer.model
  Precision precision() const;   // f32 or bf16
  std::string describe() const;  // "bf16 products (AMX), 2 threads": for logs and stats

  // ---- Appending
  size_t lower_state_bytes() const;
  RecurrentState lower_zero_state() const;
  // Lower half over chunks, of which the last may have less than 64 tokens where nothing but a generation goes on.
  // tokens: [n], each < vocab_size · hidden out: [n up to a multiple of 64, hidden_size]
  void lower(RecurrentState& state, std::span<const uint32_t> tokens, std::span<float> hidden);

  // Chunk encoder. hidden: [n * 64, hidden_size] · returns n chunks
  std::vector<EncodedChunk> encode_chunks(std::span<const float> hidden);

  // Both over whole chunks, each encoded as soon as it has come through the lower half. `end_early`, which may be
  // unset, is asked on any thread of the pool after every Onward::part_chunks: true ends it there, with the state after
  // the chunks that are returned. hidden: [tokens, hidden_size] scratch
  std::vector<EncodedChunk> encode(RecurrentState& state, std::span<const uint32_t> tokens, std::span<float> hidden,
                                   const std::function<bool()>& end_early = {});

  // What is stored of a chunk: K then V, each [64, kv_heads, head_dim] bf16 · out: [kv_bytes]; the landmark in bf16.
  size_t kv_bytes() const;
  size_t landmark_dim() const;
  void pack_kv(const EncodedChunk& chunk, ByteSpan out) const;
  std::vector<Bf16> pack_landmark(const EncodedChunk& chunk) const;

  // ---- Searching
  // The last of `tokens` (newline, question, <|recall|>; not empty) as a query, read from a zero state.
  SearchQuery query(std::span<const uint32_t> tokens, QueryParts parts = QueryParts::all);

  // A landmark's score is its dot product with SearchQuery::landmark times this: 1 / sqrt(width of a retrieval head).
  // With several retrieval heads it is the sum of theirs.
  float score_scale() const;

  // Where the heads of the first HSA layer look inside one chunk: softmax(q · Kᵀ / √d) a head.
  // heads: of SearchQuery · kv: as packed · returns [heads, 64]
  std::vector<float> head_shares(std::span<const float> heads, ByteView kv) const;

  size_t first_hsa_layer() const;  // its number among all layers of the checkpoint

  // How well a chunk's tokens answer to the question's, by late interaction on the logits of the first HSA layer
  // (kernels/late_interaction.h). Any thread may call.
  // tokens: [n, heads, head_dim] some of SearchQuery's, not empty · kv: as packed
  float late_score(std::span<const float> tokens, ByteView kv) const;

  // ---- The model's own attention (Parts::all)
  size_t groups() const;  // of upper layers; each retrieves once
  RecurrentState upper_zero_state() const;

  // Lower half over any number of tokens from a zero state. tokens: [n] · returns [n, hidden_size]
  std::vector<float> lower_from_zero(std::span<const uint32_t> tokens);

  // Retrieval embedding of hidden states for one group, before the landmarks' gain. hidden: [n, hidden_size] ·
  // returns [n, retrieval_dim]
  std::vector<float> retrieval_embedding(std::span<const float> hidden, size_t group) const;
  std::span<const float> landmark_gain(size_t group) const;  // [retrieval_dim]
  // The same as queries that whole landmarks are multiplied by: with the gain, in bf16, and for each retrieval head by
  // itself, zeros for the others. hidden: [n, hidden_size] · returns [n, retrieval_heads, retrieval_dim]
  std::vector<Bf16> landmark_queries(std::span<const float> hidden, size_t group) const;
  // Shares of the chunks that a token selected for one group, from their scores, newest first.
  std::vector<float> chunk_weights(std::span<const float> scores, size_t group) const;

  // One group of upper layers over n tokens in blocks of 64. `attended` as in Hsa::run.
  // state: of all groups · hidden: [n up to a multiple of 64, hidden_size] in and out · attended: [n, retrieval_heads]
  void upper(size_t group, RecurrentState& state, std::span<float> hidden,
             std::span<const std::vector<AttendedChunk>> attended);

  // The same for one token of each of several streams. A stream's bits do not depend on the others, and are near those
  // that lower() and upper() would give.
  static constexpr size_t streams_max = Linear::rows_few;
  // states, tokens: [streams] · returns [streams_max, hidden_size], of which the first `streams` rows count
  std::vector<float> lower_step(std::span<RecurrentState* const> states, std::span<const uint32_t> tokens);
  // hidden: [streams_max, hidden_size] in and out · attended: [streams, retrieval_heads]
  void upper_step(size_t group, std::span<RecurrentState* const> states, std::span<float> hidden,
                  std::span<const std::vector<AttendedChunk>> attended);

  // hidden: [n, hidden_size] · final norm: [n, hidden_size] · logits of its result: [n, vocab_size]
  std::vector<float> final_norm(std::span<const float> hidden) const;
  std::vector<float> logits(std::span<const float> final_hidden) const;

 private:
  struct Impl;
  explicit Ramba(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace recalld
