// The shape of a checkpoint: its config.json, with the reference implementation's keys.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include "base/error.h"
#include "kernels/hsa_attention.h"

namespace recalld {

// What the blocks between retrievals are ("model_type").
enum class BlockFamily : uint8_t {
  ramba,    // Mamba-2
  swa_hsa,  // attention to a sliding window, and an MLP
};

struct Config {
  BlockFamily family = BlockFamily::ramba;

  // Widths and counts; every one is at least 1 unless said.
  size_t vocab_size = 0;
  size_t hidden_size = 0;
  // Of Mamba-2, of no meaning with swa_hsa.
  size_t expand = 2;
  size_t head_dim = 64;
  size_t num_heads = 0;  // expand * hidden_size / head_dim
  size_t state_size = 0;
  size_t conv_kernel = 4;
  // Of sliding-window attention, 0 with ramba. Its heads are num_attention_heads of attention_head_dim.
  size_t sliding_window = 0;  // tokens before the token itself: a multiple of 64
  size_t swa_kv_heads = 0;    // num_attention_heads unless it is given

  size_t num_lower_layers = 0;
  size_t num_upper_layers = 0;
  size_t num_upper_groups = 1;   // each retrieves once; 0 only without upper layers
  size_t num_mamba_per_gca = 1;  // blocks after each HSA layer, of either family
  size_t encoder_layers = 1;     // may be 0
  size_t num_attention_heads = 0;
  size_t num_kv_heads = 0;
  size_t attention_head_dim = 0;
  size_t retrieval_dim = 0;
  size_t chunk_size = 64;
  size_t chunk_topk = 0;

  bool tie_word_embeddings = true;
  bool enable_softmax = false;    // chunk weights: softmax, otherwise stick-breaking
  float stick_slope = 0;          // above 0: of stick-breaking over scores counted from the best one (ChunkWeighting)
  float stick_margin = 0;         // likewise: chunks whose scores are less than this below the best compete by age
  bool enable_softmax1 = false;   // one extra zero logit in each chunk's softmax
  bool enable_pos_decay = false;  // a learned step is added to the scores, from the newest chunk to older ones
  bool enable_qk_norm = false;    // RMSNorm a head on HSA's q and k
  bool enable_lmk_norm = false;   // lmk_q_norm and lmk_k_norm
  bool enable_enc_cls = true;     // landmark from a CLS token (the default with an encoder), otherwise from the mean
  bool enc_prenorm = false;       // RMSNorm before the encoder
  bool hsa_mlp = false;
  bool reset_hsa_residual = false;
  bool singlehead_retrieval = false;  // one retrieval for all KV heads
  bool encoder_bias = true;           // q, k, v of the encoder

  float layer_norm_epsilon = 1e-5f;  // Mamba-2 blocks and the final norm
  float rms_norm_eps = 1e-6f;        // encoder, retrieval, HSA and sliding-window blocks
  float rope_theta = 10000.0f;

  uint32_t recall_token_id = 0;
  uint32_t newline_token_id = 0;
  bool has_tokenizer = false;  // "tokenizer": "sentencepiece"

  // Inner width of every SwiGLU: 8/3 of hidden_size, down to a multiple of 64.
  size_t mlp_size() const { return hidden_size * 8 / 3 / 64 * 64; }
  // pos_decay: of the group's retrieval
  ChunkWeighting weighting(float pos_decay) const {
    return {
        .softmax = enable_softmax, .pos_decay = pos_decay, .stick_slope = stick_slope, .stick_margin = stick_margin};
  }
  size_t retrieval_heads() const { return singlehead_retrieval ? 1 : num_kv_heads; }
  size_t hsa_layers() const { return num_upper_layers / num_mamba_per_gca; }

  // Reads and checks a config.json. A key that is missing, of the wrong type or out of range, and a switch that this
  // version does not implement, is invalid_request and named.
  static Expected<Config> read(const std::filesystem::path& file);
  static Expected<Config> parse(std::string_view json);
};

}  // namespace recalld
