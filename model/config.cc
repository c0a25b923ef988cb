#include "model/config.h"

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

namespace recalld {
namespace {

using Json = nlohmann::json;

// Takes fields out of the config; the first thing wrong is kept, so that a caller reads all and asks once.
class Fields {
 public:
  explicit Fields(const Json& json) : json_(json) {}

  void count(const char* key, size_t& value, size_t least, size_t most, bool required = true) {
    const Json* field = find(key, required);
    if (!field) return;
    if (!field->is_number_unsigned()) return wrong(key, "expected a whole number");
    const auto number = field->get<uint64_t>();
    if (number < least || number > most)
      return wrong(key, "expected a number from " + std::to_string(least) + " to " + std::to_string(most) + ", got " +
                            std::to_string(number));
    value = number;
  }
  void flag(const char* key, bool& value) {
    const Json* field = find(key, false);
    if (!field) return;
    if (!field->is_boolean()) return wrong(key, "expected true or false");
    value = field->get<bool>();
  }
  void real(const char* key, float& value, bool required) {
    const Json* field = find(key, required);
    if (!field) return;
    if (!field->is_number()) return wrong(key, "expected a number");
    value = field->get<float>();
    if (!std::isfinite(value) || value <= 0) wrong(key, "expected a number above 0");
  }
  std::string text(const char* key) {
    const Json* field = find(key, false);
    if (!field) return {};
    if (!field->is_string()) return wrong(key, "expected a string"), std::string();
    return field->get<std::string>();
  }
  // A switch of the reference implementation that this version has no code for.
  void refuse(const char* key) {
    const Json* field = find(key, false);
    if (field && !field->is_null() && *field != Json(false) && *field != Json(0))
      wrong(key, "this version does not implement that switch; the checkpoint must have it off");
  }
  void wrong(std::string_view key, std::string why) {
    if (problem_.empty()) problem_ = std::string(key) + ": " + std::move(why);
  }
  void expect(bool holds, std::string_view key, std::string why) {
    if (!holds) wrong(key, std::move(why));
  }

  const std::string& problem() const { return problem_; }

 private:
  const Json* find(const char* key, bool required) {
    const auto field = json_.find(key);
    if (field != json_.end()) return &*field;
    if (required) wrong(key, "the key is missing");
    return nullptr;
  }

  const Json& json_;
  std::string problem_;
};

constexpr size_t width_max = 1 << 16;
constexpr size_t sliding_window_max = 4096;  // its keys and values are a part of every recurrent state
constexpr size_t layers_max = 1 << 10;

}  // namespace

Expected<Config> Config::parse(std::string_view text) {
  const Json json = Json::parse(text, nullptr, false);
  if (!json.is_object()) return fail(ErrorKind::invalid_request, "it is not a JSON object");
  Config c;
  Fields in(json);
  const std::string type = in.text("model_type");
  const bool windowed = type == "swa_hsa";
  if (windowed) c.family = BlockFamily::swa_hsa;
  in.expect(windowed || type == "ramba" || !json.contains("model_type"), "model_type",
            "expected \"ramba\" or \"swa_hsa\", got \"" + type + "\"");
  in.count("vocab_size", c.vocab_size, 1, size_t{1} << 24);
  in.count("hidden_size", c.hidden_size, 16, width_max);
  size_t groups = 1, recall_id = 0, newline_id = 0;
  if (!windowed) {
    in.count("expand", c.expand, 1, 16);
    in.count("head_dim", c.head_dim, 16, 1024);
    in.count("num_heads", c.num_heads, 1, 1024);
    in.count("state_size", c.state_size, 16, 1024);
    in.count("conv_kernel", c.conv_kernel, 2, 16);
    in.count("n_groups", groups, 1, 1024, false);
  }
  in.count("num_lower_layers", c.num_lower_layers, 1, layers_max);
  in.count("num_upper_layers", c.num_upper_layers, 0, layers_max);
  in.count("num_upper_groups", c.num_upper_groups, 0, layers_max);
  in.count("num_mamba_per_gca", c.num_mamba_per_gca, 1, layers_max);
  in.count("encoder_layers", c.encoder_layers, 0, layers_max);
  in.count("num_attention_heads", c.num_attention_heads, 1, 1024);
  in.count("num_kv_heads", c.num_kv_heads, 1, 1024);
  in.count("attention_head_dim", c.attention_head_dim, 16, 1024);
  in.count("retrieval_dim", c.retrieval_dim, 32, width_max);
  in.count("chunk_size", c.chunk_size, 1, width_max);
  in.count("chunk_topk", c.chunk_topk, 1, 1024);
  if (windowed) {
    c.swa_kv_heads = c.num_attention_heads;
    in.count("sliding_window", c.sliding_window, 64, sliding_window_max);
    in.count("swa_kv_heads", c.swa_kv_heads, 1, 1024, false);
  }

  in.flag("tie_word_embeddings", c.tie_word_embeddings);
  in.flag("enable_softmax", c.enable_softmax);
  in.flag("enable_softmax1", c.enable_softmax1);
  in.flag("enable_pos_decay", c.enable_pos_decay);
  in.flag("enable_qk_norm", c.enable_qk_norm);
  in.flag("enable_lmk_norm", c.enable_lmk_norm);
  c.enable_enc_cls = c.encoder_layers > 0;
  in.flag("enable_enc_cls", c.enable_enc_cls);
  in.flag("enc_prenorm", c.enc_prenorm);
  in.flag("hsa_mlp", c.hsa_mlp);
  in.flag("reset_hsa_residual", c.reset_hsa_residual);
  in.flag("singlehead_retrieval", c.singlehead_retrieval);
  in.flag("encoder_bias", c.encoder_bias);
  in.real("layer_norm_epsilon", c.layer_norm_epsilon, true);
  in.real("rms_norm_eps", c.rms_norm_eps, false);
  in.real("rope_theta", c.rope_theta, false);
  in.real("stick_slope", c.stick_slope, false);
  in.real("stick_margin", c.stick_margin, false);

  c.has_tokenizer = in.text("tokenizer") == "sentencepiece";
  if (c.has_tokenizer) {
    in.count("recall_token_id", recall_id, 0, c.vocab_size - 1);
    in.count("newline_token_id", newline_id, 0, c.vocab_size - 1);
    c.recall_token_id = static_cast<uint32_t>(recall_id);
    c.newline_token_id = static_cast<uint32_t>(newline_id);
  }
  if (!in.problem().empty()) return fail(ErrorKind::invalid_request, in.problem());

  for (const char* key : {"enable_softmax1", "enc_prenorm", "mask_slide_window"}) in.refuse(key);
  in.expect(groups == 1, "n_groups", "this version runs models with one group");
  in.expect(c.chunk_size == 64, "chunk_size", "this version runs models with chunks of 64 tokens");
  for (const auto& [key, width] :
       {std::pair{"hidden_size", c.hidden_size}, std::pair{"head_dim", c.head_dim},
        std::pair{"state_size", c.state_size}, std::pair{"attention_head_dim", c.attention_head_dim}})
    in.expect(width % 16 == 0, key, "expected a multiple of 16");
  in.expect(c.retrieval_dim % (32 * c.retrieval_heads()) == 0, "retrieval_dim",
            "expected a multiple of 32 for each retrieval head");
  in.expect((c.stick_slope > 0) == (c.stick_margin > 0), c.stick_slope > 0 ? "stick_margin" : "stick_slope",
            "expected where the other one of stick_slope and stick_margin is given");
  in.expect(!c.enable_softmax || c.stick_slope == 0, "stick_slope",
            "enable_softmax must be false: it is of stick-breaking");
  if (windowed) {
    in.expect(c.sliding_window % 64 == 0, "sliding_window", "expected a multiple of 64");
    in.expect(c.num_attention_heads % c.swa_kv_heads == 0, "swa_kv_heads",
              "num_attention_heads must be a multiple of it");
    in.expect(c.attention_head_dim % 32 == 0, "attention_head_dim",
              "expected a multiple of 32, where models of the swa_hsa family rotate halves of it");
  } else {
    in.expect(c.num_heads * c.head_dim == c.expand * c.hidden_size, "num_heads",
              "num_heads * head_dim must be expand * hidden_size");
  }
  in.expect(c.num_attention_heads % c.num_kv_heads == 0, "num_kv_heads",
            "num_attention_heads must be a multiple of it");
  in.expect(c.hidden_size % c.num_attention_heads == 0, "num_attention_heads", "hidden_size must be a multiple of it");
  in.expect(c.encoder_layers == 0 || c.hidden_size / c.num_attention_heads % 32 == 0, "num_attention_heads",
            "hidden_size / num_attention_heads must be a multiple of 32");
  in.expect(c.encoder_layers > 0 || !c.enable_enc_cls, "enable_enc_cls",
            "a CLS token needs an encoder: encoder_layers must be above 0");
  in.expect(c.mlp_size() > 0, "hidden_size", "too small for an MLP of 8/3 of it, a multiple of 64");
  in.expect(c.num_upper_layers % c.num_mamba_per_gca == 0, "num_mamba_per_gca",
            "num_upper_layers must be a multiple of it");
  in.expect(c.num_upper_layers == 0 || (c.num_upper_groups > 0 && c.hsa_layers() % c.num_upper_groups == 0),
            "num_upper_groups", "the HSA layers must divide evenly into the groups");
  if (!in.problem().empty()) return fail(ErrorKind::invalid_request, in.problem());
  return c;
}

Expected<Config> Config::read(const std::filesystem::path& file) {
  std::ifstream stream(file, std::ios::binary);
  if (!stream)
    return fail(ErrorKind::io,
                "read " + file.string() + ": it cannot be opened; a model is a directory with a checkpoint in it");
  std::ostringstream text;
  text << stream.rdbuf();
  auto config = parse(text.str());
  if (!config) return std::unexpected(std::move(config).error().within("read " + file.string()));
  return config;
}

}  // namespace recalld
