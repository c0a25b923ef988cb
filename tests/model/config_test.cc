#include "model/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

namespace recalld {
namespace {

using ::testing::HasSubstr;

const std::filesystem::path default_config = std::filesystem::path(RECALLD_SOURCE_DIR) / "model/default/config.json";

nlohmann::json default_json() {
  std::ifstream file(default_config);
  return nlohmann::json::parse(file);
}

TEST(Config, ReadsTheDefaultCheckpoint) {
  const auto config = Config::read(default_config);
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_EQ(config->hidden_size, 384u);
  EXPECT_EQ(config->mlp_size(), 1024u);
  EXPECT_EQ(config->retrieval_heads(), 1u);
  EXPECT_EQ(config->hsa_layers(), 2u);
  EXPECT_EQ(config->recall_token_id, 3u);
  EXPECT_TRUE(config->has_tokenizer);
}

TEST(Config, NamesTheKeyThatIsMissingWrongOrUnsupported) {
  const auto refused = [](const char* key, nlohmann::json value, const char* words) {
    nlohmann::json json = default_json();
    if (value.is_discarded())
      json.erase(key);
    else
      json[key] = std::move(value);
    const auto config = Config::parse(json.dump());
    ASSERT_FALSE(config) << key;
    EXPECT_EQ(config.error().kind, ErrorKind::invalid_request);
    EXPECT_THAT(config.error().message, HasSubstr(key));
    EXPECT_THAT(config.error().message, HasSubstr(words));
  };
  const auto missing = nlohmann::json(nlohmann::json::value_t::discarded);
  refused("hidden_size", missing, "missing");
  refused("hidden_size", "384", "whole number");
  refused("hidden_size", -1, "whole number");
  refused("hidden_size", 1e30, "whole number");
  refused("hidden_size", 380, "multiple of 16");
  refused("vocab_size", 0, "from 1");
  refused("layer_norm_epsilon", "nan", "number");
  refused("layer_norm_epsilon", 0, "above 0");
  refused("enable_softmax", 1, "true or false");
  refused("model_type", "llama", "ramba");
  refused("chunk_size", 128, "64");
  refused("num_heads", 11, "expand");
  refused("num_kv_heads", 4, "multiple");
  refused("enable_softmax1", true, "does not implement");
  refused("enc_prenorm", true, "does not implement");
  refused("mask_slide_window", true, "does not implement");
  refused("recall_token_id", 8192, "from 0 to 8191");
}

TEST(Config, AnythingThatIsNoObjectIsRefused) {
  for (const char* text : {"", "[]", "{", "null", "{\"vocab_size\":1}"}) EXPECT_FALSE(Config::parse(text)) << text;
  EXPECT_FALSE(Config::read("/nowhere/config.json"));
}

}  // namespace
}  // namespace recalld
