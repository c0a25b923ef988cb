#include "model/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/support/checkpoints.h"
#include "tests/support/random_model.h"

namespace recalld {
namespace {

using ::testing::HasSubstr;

const std::filesystem::path starter_config = starter_checkpoint() / "config.json";

nlohmann::json starter_json() {
  std::ifstream file(starter_config);
  return nlohmann::json::parse(file);
}

TEST(Config, ReadsTheStarter) {
  const auto config = Config::read(starter_config);
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
    nlohmann::json json = starter_json();
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
  refused("stick_slope", 2.0, "the other one");
  refused("stick_margin", 0, "above 0");
  refused("recall_token_id", 8192, "from 0 to 8191");
}

TEST(Config, WeightsMayCountScoresFromTheBest) {
  nlohmann::json json = starter_json();
  json["enable_softmax"] = false;
  json["stick_slope"] = 2.0;
  json["stick_margin"] = 4.0;
  const auto config = Config::parse(json.dump());
  ASSERT_TRUE(config) << config.error().message;
  const ChunkWeighting how = config->weighting(-0.5f);
  EXPECT_FALSE(how.softmax);
  EXPECT_EQ(how.pos_decay, -0.5f);
  EXPECT_EQ(how.stick_slope, 2.0f);
  EXPECT_EQ(how.stick_margin, 4.0f);
  json["enable_softmax"] = true;
  const auto both = Config::parse(json.dump());
  ASSERT_FALSE(both);
  EXPECT_THAT(both.error().message, HasSubstr("stick_slope"));
}

TEST(Config, ModelsWithSlidingWindowsHaveKeysOfTheirOwn) {
  const auto parse = [](const char* key, nlohmann::json value) {
    nlohmann::json json = random_model_config();
    if (value.is_null())
      json.erase(key);
    else
      json[key] = std::move(value);
    return Config::parse(json.dump());
  };
  const auto config = parse("swa_kv_heads", nullptr);
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_EQ(config->family, BlockFamily::swa_hsa);
  EXPECT_EQ(config->sliding_window, 128u);
  EXPECT_EQ(config->swa_kv_heads, config->num_attention_heads);
  EXPECT_EQ(parse("swa_kv_heads", 1)->swa_kv_heads, 1u);
  EXPECT_EQ(Config::read(starter_config)->family, BlockFamily::ramba);
  const auto refused = [&](const char* key, nlohmann::json value, const char* words) {
    const auto wrong = parse(key, std::move(value));
    ASSERT_FALSE(wrong) << key;
    EXPECT_EQ(wrong.error().kind, ErrorKind::invalid_request);
    EXPECT_THAT(wrong.error().message, HasSubstr(key));
    EXPECT_THAT(wrong.error().message, HasSubstr(words));
  };
  refused("sliding_window", nullptr, "missing");
  refused("sliding_window", 0, "from 64");
  refused("sliding_window", 100, "multiple of 64");
  refused("sliding_window", 4160, "to 4096");
  refused("swa_kv_heads", 3, "multiple");
  refused("attention_head_dim", 48, "multiple of 32");
  // Without it the model is one of Mamba-2, whose keys are missing here.
  const auto other = parse("model_type", nullptr);
  ASSERT_FALSE(other);
  EXPECT_THAT(other.error().message, HasSubstr("expand"));
}

TEST(Config, AnythingThatIsNoObjectIsRefused) {
  for (const char* text : {"", "[]", "{", "null", "{\"vocab_size\":1}"}) EXPECT_FALSE(Config::parse(text)) << text;
  EXPECT_FALSE(Config::read("/nowhere/config.json"));
}

}  // namespace
}  // namespace recalld
