// One HSA layer: a token attends to the chunks that it retrieved (arXiv 2504.16795, section 3.2; bypassing residual:
// arXiv 2510.17196).
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "kernels/bf16.h"
#include "kernels/hsa_attention.h"
#include "kernels/matmul.h"
#include "kernels/worker_pool.h"
#include "model/config.h"
#include "model/mlp.h"
#include "model/weights.h"

namespace recalld {

// One chunk that a token attends to, and its share. Borrows.
struct AttendedChunk {
  const Bf16* kv = nullptr;  // as stored: K then V, each [chunk_size, kv_heads, head_dim]
  float weight = 0;
};

// The queries of an HSA layer: q_proj(RMSNorm(h)), with an RMSNorm a head when enable_qk_norm.
class HsaQuery {
 public:
  static Expected<HsaQuery> load(const Weights& weights, const std::string& prefix, const Config& config,
                                 ProductType type);

  // hidden: [n, hidden_size], any n · returns [n, heads, head_dim]
  std::vector<float> run(std::span<const float> hidden) const;

 private:
  HsaQuery(const Config& config, ProductType type, Linear q_proj)
      : config_(config), type_(type), q_proj_(std::move(q_proj)) {}

  Config config_;
  ProductType type_;
  Linear q_proj_;
  std::vector<float> pre_norm_;  // [hidden_size]
  std::vector<float> q_norm_;    // [head_dim], empty without enable_qk_norm
};

class Hsa {
 public:
  // Reads "<prefix>.*"; the error names what is missing or of another shape.
  static Expected<Hsa> load(const Weights& weights, const std::string& prefix, const Config& config, ProductType type);

  // hidden: [n * rows, hidden_size] in and out, of 64 tokens in a row or Linear::rows_few single ones
  // attended: [tokens * retrieval heads], by token, then by head, newest chunk first; a KV head uses its own retrieval
  //   head's chunks, or all the only one's; rows behind the last token are padding
  void run(std::span<float> hidden, std::span<const std::vector<AttendedChunk>> attended, WorkerPool& pool) const;

 private:
  Hsa(const Config& config, ProductType type, HsaQuery query, Linear o_proj)
      : config_(config), type_(type), query_(std::move(query)), o_proj_(std::move(o_proj)) {}

  void run_block(size_t rows, size_t first_token, std::span<const float> q,
                 std::span<const std::vector<AttendedChunk>> attended, float* x) const;
  std::vector<float> attend(size_t rows, size_t first_token, std::span<const float> q,
                            std::span<const std::vector<AttendedChunk>> attended) const;

  Config config_;
  ProductType type_;
  HsaQuery query_;
  Linear o_proj_;
  std::vector<float> mlp_norm_;  // [hidden_size]
  std::optional<Mlp> mlp_;       // with hsa_mlp
};

// The kernel's view of a config's HSA heads.
HsaShape hsa_shape(const Config& config);

}  // namespace recalld
