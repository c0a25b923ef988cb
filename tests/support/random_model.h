// A checkpoint of the SWA + HSA family with random weights, small enough to be made by each test that wants one.
#pragma once

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "kernels/bf16.h"
#include "tests/support/random_floats.h"
#include "tests/support/tensor_file.h"

namespace recalld {

// The config.json; a test may change it before the model is written. The tokenizer is the starter's.
inline nlohmann::json random_model_config() {
  return {{"model_type", "swa_hsa"},
          {"vocab_size", 8192},
          {"hidden_size", 128},
          {"sliding_window", 128},
          {"swa_kv_heads", 2},
          {"num_lower_layers", 2},
          {"num_upper_layers", 2},
          {"num_upper_groups", 2},
          {"num_mamba_per_gca", 1},
          {"encoder_layers", 1},
          {"num_attention_heads", 4},
          {"num_kv_heads", 1},
          {"attention_head_dim", 32},
          {"retrieval_dim", 64},
          {"chunk_size", 64},
          {"chunk_topk", 4},
          {"enable_softmax", true},
          {"enable_qk_norm", true},
          {"enable_lmk_norm", true},
          {"enable_pos_decay", true},
          {"hsa_mlp", true},
          {"encoder_bias", false},
          {"layer_norm_epsilon", 1e-5},
          {"rms_norm_eps", 1e-5},
          {"tokenizer", "sentencepiece"},
          {"recall_token_id", 3},
          {"newline_token_id", 6}};
}

class RandomModel {
 public:
  explicit RandomModel(nlohmann::json config) : config_(std::move(config)) {
    const size_t lower = size("num_lower_layers"), groups = size("num_upper_groups"), each = size("num_mamba_per_gca");
    matrix("backbone.embeddings.weight", size("vocab_size"), hidden(), 1);
    gain("backbone.norm_f.weight", hidden());
    size_t layer = 0;
    while (layer < lower) block(layer++);
    encoder(layer++);
    for (size_t group = 0; group < groups; ++group) {
      retrieval(layer++);
      for (size_t stage = 0; stage < size("num_upper_layers") / each / groups; ++stage) {
        hsa(layer++);
        for (size_t i = 0; i < each; ++i) block(layer++);
      }
    }
  }

  const nlohmann::json& config() const { return config_; }
  const std::vector<NewTensor>& tensors() const { return tensors_; }
  std::vector<float> floats(const std::string& name) const {
    std::vector<float> values;
    for (const NewTensor& tensor : tensors_)
      if (tensor.name == name)
        for (const Bf16 value : tensor.values) values.push_back(to_float(value));
    return values;
  }

  // Into a directory that exists. tokenizer: a file to copy, or none
  void write(const std::filesystem::path& directory, const std::filesystem::path& tokenizer = {}) const {
    std::ofstream(directory / "config.json") << config_.dump(1);
    add_tensors(directory / "model.safetensors", tensors_);
    if (!tokenizer.empty()) std::filesystem::copy_file(tokenizer, directory / "tokenizer.model");
  }

 private:
  size_t size(const char* key) const { return config_.at(key).get<size_t>(); }
  bool flag(const char* key) const { return config_.value(key, false); }
  size_t hidden() const { return size("hidden_size"); }

  void add(const std::string& name, std::vector<size_t> shape, const std::vector<float>& values) {
    tensors_.push_back({name, std::move(shape), rounded(values)});
  }
  void matrix(const std::string& name, size_t out, size_t in, float spread = 0) {
    const float scale = spread > 0 ? spread : 1 / std::sqrt(static_cast<float>(in));
    add(name, {out, in}, random_floats(out * in, ++seed_, scale));
  }
  void gain(const std::string& name, size_t width) {
    std::vector<float> values = random_floats(width, ++seed_, 0.2f);
    for (float& value : values) value += 1;
    add(name, {width}, values);
  }
  void mlp(const std::string& name) {
    const size_t inner = hidden() * 8 / 3 / 64 * 64;
    matrix(name + ".gate_proj.weight", inner, hidden());
    matrix(name + ".up_proj.weight", inner, hidden());
    matrix(name + ".down_proj.weight", hidden(), inner);
  }
  void attention(const std::string& name, size_t heads, size_t kv_heads, size_t width) {
    matrix(name + ".q_proj.weight", heads * width, hidden());
    matrix(name + ".k_proj.weight", kv_heads * width, hidden());
    matrix(name + ".v_proj.weight", kv_heads * width, hidden());
    matrix(name + ".o_proj.weight", hidden(), heads * width);
    gain(name + ".q_norm.weight", width);
    gain(name + ".k_norm.weight", width);
  }
  static std::string layer_name(size_t layer) { return "backbone.layers." + std::to_string(layer); }

  void block(size_t layer) {
    const std::string name = layer_name(layer);
    const size_t heads = size("num_attention_heads");
    gain(name + ".norm.weight", hidden());
    attention(name + ".self_attn", heads, config_.value("swa_kv_heads", heads), size("attention_head_dim"));
    gain(name + ".post_attention_layernorm.weight", hidden());
    mlp(name + ".mlp");
  }
  void encoder(size_t index) {
    const std::string name = layer_name(index);
    const size_t heads = size("num_attention_heads"), kv_width = size("num_kv_heads") * size("attention_head_dim");
    for (size_t i = 0; i < size("encoder_layers"); ++i) {
      const std::string of_layer = name + ".encoder.layers." + std::to_string(i);
      gain(of_layer + ".input_layernorm.weight", hidden());
      attention(of_layer + ".self_attn", heads, heads, hidden() / heads);
      gain(of_layer + ".post_attention_layernorm.weight", hidden());
      mlp(of_layer + ".mlp");
    }
    gain(name + ".encoder.norm.weight", hidden());
    add(name + ".cls_emb", {1, 1, hidden()}, random_floats(hidden(), ++seed_));
    matrix(name + ".proj_k.weight", kv_width, hidden());
    matrix(name + ".proj_v.weight", kv_width, hidden());
    matrix(name + ".lmk_ln.weight", size("retrieval_dim"), hidden());
    if (flag("enable_qk_norm")) gain(name + ".k_rmsnorm.weight", size("attention_head_dim"));
  }
  void retrieval(size_t index) {
    const std::string name = layer_name(index);
    const size_t head = size("retrieval_dim") / size("num_kv_heads");
    gain(name + ".pre_norm.weight", hidden());
    matrix(name + ".ln.weight", size("retrieval_dim"), hidden());
    if (flag("enable_lmk_norm")) gain(name + ".lmk_q_norm.weight", head);
    if (flag("enable_lmk_norm")) gain(name + ".lmk_k_norm.weight", head);
    if (flag("enable_pos_decay")) add(name + ".pos_decay", {1}, {-0.25f / static_cast<float>(index)});
  }
  void hsa(size_t index) {
    const std::string name = layer_name(index);
    const size_t width = size("num_attention_heads") * size("attention_head_dim");
    gain(name + ".pre_norm.weight", hidden());
    matrix(name + ".q_proj.weight", width, hidden());
    matrix(name + ".o_proj.weight", hidden(), width);
    if (flag("enable_qk_norm")) gain(name + ".q_norm.weight", size("attention_head_dim"));
    if (!flag("hsa_mlp")) return;
    gain(name + "._mlp_norm.weight", hidden());
    mlp(name + "._mlp");
  }

  nlohmann::json config_;
  std::vector<NewTensor> tensors_;
  uint32_t seed_ = 0;
};

}  // namespace recalld
