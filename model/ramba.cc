#include "model/ramba.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <fstream>
#include <optional>
#include <sstream>

#include "kernels/cpu_isa.h"
#include "kernels/late_interaction.h"
#include "kernels/rmsnorm.h"
#include "model/block.h"
#include "model/projection.h"
#include "model/retrieval.h"
#include "model/weights.h"

namespace recalld {
namespace {

// Layers are numbered in the order in which they run: lower blocks, chunking, then for each group a retrieval and its
// HSA layers, each followed by its blocks.
std::string layer_name(size_t index) {
  return "backbone.layers." + std::to_string(index);
}

struct UpperGroup {
  struct Stage {
    Hsa hsa;
    Blocks blocks;
  };
  std::vector<Stage> stages;
};

Expected<Blocks> load_blocks(const Weights& weights, size_t first, size_t count, const Config& config,
                             ProductType type) {
  Blocks blocks;
  for (size_t i = 0; i < count; ++i) {
    RECALLD_TRY(auto block, load_block(weights, layer_name(first + i), config, type));
    blocks.push_back(std::move(block));
  }
  return blocks;
}

size_t layers_of_group(const Config& config) {
  return 1 + config.hsa_layers() / config.num_upper_groups * (1 + config.num_mamba_per_gca);
}
size_t retrieval_layer(const Config& config, size_t group) {
  return config.num_lower_layers + 1 + (group == 0 ? 0 : group * layers_of_group(config));
}

std::string contents(const std::filesystem::path& file) {
  std::ifstream stream(file, std::ios::binary);
  std::ostringstream bytes;
  bytes << stream.rdbuf();
  return std::move(bytes).str();
}

// One hash over the hashes of the parts; a model without a tokenizer counts it as empty.
Hash128 identity(const std::filesystem::path& directory, const Weights& weights) {
  std::array<Hash128, 3> parts{};
  const std::string config = contents(directory / "config.json"), tokenizer = contents(directory / "tokenizer.model");
  parts[0] = hash128(as_bytes(config));
  parts[1] = hash128(weights.file());
  parts[2] = hash128(as_bytes(tokenizer));
  return hash128(std::as_bytes(std::span(parts)));
}

// Each row times the gain, in bf16. x: [n, gain.size()]
std::vector<Bf16> scaled(std::span<const float> x, std::span<const float> gain) {
  std::vector<Bf16> out(x.size());
  for (size_t i = 0; i < x.size(); ++i) out[i] = to_bf16(x[i] * gain[i % gain.size()]);
  return out;
}

}  // namespace

struct Ramba::Impl {
  Impl(Config c, Weights w, ChunkEncoder e, WorkerPool& p)
      : config(c), weights(std::move(w)), encoder(std::move(e)), pool(p) {}

  Config config;
  Weights weights;
  std::span<const Bf16> embeddings;  // [vocab_size, hidden_size], where `weights` has them
  Blocks lower;
  ChunkEncoder encoder;
  std::vector<Retrieval> retrievals;    // of the groups; with Parts::lower the first one's
  std::vector<float> pos_decays;        // of all groups, also with Parts::lower; zeros without enable_pos_decay
  std::optional<HsaQuery> first_query;  // of the first HSA layer
  std::vector<UpperGroup> groups;       // empty with Parts::lower
  std::vector<float> final_norm;        // [hidden_size]
  std::optional<Linear> head;           // [vocab_size, hidden_size]
  WorkerPool& pool;
  ProductType type = ProductType::f32;
  Hash128 hash;

  size_t block_floats() const { return lower[0]->state_floats(); }
  size_t blocks_of_group() const { return config.num_upper_layers / config.num_upper_groups; }
  Expected<void> load_upper();

  // hidden: [tokens or more, hidden_size]; what lies behind the tokens becomes zero
  void embed(std::span<const uint32_t> tokens, std::span<float> hidden) const {
    const size_t width = config.hidden_size;
    for (size_t i = 0; i < tokens.size(); ++i)
      std::ranges::transform(embeddings.subspan(tokens[i] * width, width), hidden.data() + i * width, to_float);
    std::ranges::fill(hidden.subspan(tokens.size() * width), 0.0f);
  }

  // Where a group's blocks have their part of the upper state.
  size_t group_offset(size_t group) const { return group * blocks_of_group() * block_floats(); }
};

Ramba::Ramba(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Ramba::~Ramba() = default;

Expected<std::unique_ptr<Ramba>> Ramba::open(const std::filesystem::path& directory, Precision precision, Parts parts,
                                             WorkerPool& pool) {
  if (precision == Precision::bf16 && !cpu_multiplies_bf16())
    return fail(ErrorKind::invalid_request,
                "bf16 products: this CPU has no instructions for them; use f32, or leave the precision automatic");
  const bool bf16 = precision == Precision::bf16 || (precision == Precision::automatic && cpu_multiplies_bf16());
  const ProductType type = bf16 ? ProductType::bf16 : ProductType::f32;

  RECALLD_TRY(const Config config, Config::read(directory / "config.json"));
  RECALLD_TRY(Weights weights, Weights::open(directory / "model.safetensors"));
  RECALLD_TRY(ChunkEncoder encoder, ChunkEncoder::load(weights, layer_name(config.num_lower_layers), config, type));
  auto impl = std::make_unique<Impl>(config, std::move(weights), std::move(encoder), pool);
  impl->type = type;

  RECALLD_TRY(impl->embeddings,
              impl->weights.bf16("backbone.embeddings.weight", {config.vocab_size, config.hidden_size}));
  RECALLD_TRY(impl->lower, load_blocks(impl->weights, 0, config.num_lower_layers, config, type));
  const size_t retrieval = retrieval_layer(config, 0);
  RECALLD_TRY(Retrieval first, Retrieval::load(impl->weights, layer_name(retrieval), config, type));
  impl->retrievals.push_back(std::move(first));
  for (size_t group = 0; group < config.num_upper_groups; ++group) {
    std::vector<float> decay(1);
    if (config.enable_pos_decay) {
      RECALLD_TRY(decay, impl->weights.floats(layer_name(retrieval_layer(config, group)) + ".pos_decay", {1}));
    }
    impl->pos_decays.push_back(decay[0]);
  }
  if (config.num_upper_layers > 0) {
    RECALLD_TRY(impl->first_query, HsaQuery::load(impl->weights, layer_name(retrieval + 1), config, type));
  }
  if (parts == Parts::all) RECALLD_CHECK(impl->load_upper());

  impl->hash = identity(directory, impl->weights);
  return std::unique_ptr<Ramba>(new Ramba(std::move(impl)));
}

Expected<void> Ramba::Impl::load_upper() {
  for (size_t group = 0; group < config.num_upper_groups; ++group) {
    size_t layer = retrieval_layer(config, group);
    if (group > 0) {
      RECALLD_TRY(Retrieval retrieval, Retrieval::load(weights, layer_name(layer), config, type));
      retrievals.push_back(std::move(retrieval));
    }
    ++layer;
    UpperGroup upper;
    for (size_t stage = 0; stage < config.hsa_layers() / config.num_upper_groups; ++stage) {
      RECALLD_TRY(Hsa hsa, Hsa::load(weights, layer_name(layer), config, type));
      RECALLD_TRY(auto blocks, load_blocks(weights, layer + 1, config.num_mamba_per_gca, config, type));
      upper.stages.push_back({std::move(hsa), std::move(blocks)});
      layer += 1 + config.num_mamba_per_gca;
    }
    groups.push_back(std::move(upper));
  }
  RECALLD_TRY(final_norm, weights.floats("backbone.norm_f.weight", {config.hidden_size}));
  const char* head_name = config.tie_word_embeddings ? "backbone.embeddings.weight" : "lm_head.weight";
  RECALLD_TRY(head, pack(weights, {{head_name, config.vocab_size}}, config.hidden_size, type, config.chunk_size));
  return {};
}

const Config& Ramba::config() const {
  return impl_->config;
}
Hash128 Ramba::hash() const {
  return impl_->hash;
}
Precision Ramba::precision() const {
  return impl_->type == ProductType::bf16 ? Precision::bf16 : Precision::f32;
}

std::string Ramba::describe() const {
  const size_t threads = impl_->pool.threads();
  return std::string(precision() == Precision::bf16 ? "bf16" : "f32") + " products (" + cpu_isa_name() + "), " +
         std::to_string(threads) + (threads == 1 ? " thread" : " threads");
}

size_t Ramba::lower_state_bytes() const {
  return impl_->lower.size() * impl_->block_floats() * sizeof(float);
}

RecurrentState Ramba::lower_zero_state() const {
  return {.values = std::vector<float>(impl_->lower.size() * impl_->block_floats()), .device = {}};
}

void Ramba::lower(RecurrentState& state, std::span<const uint32_t> tokens, std::span<float> hidden) {
  const size_t width = impl_->config.hidden_size;
  impl_->embed(tokens, hidden);
  run_blocks(impl_->lower, state.values, tokens.size(), hidden.data(), width, impl_->pool);
}

std::vector<EncodedChunk> Ramba::encode_chunks(std::span<const float> hidden) {
  return impl_->encoder.run(hidden, impl_->pool);
}

std::vector<EncodedChunk> Ramba::encode(RecurrentState& state, std::span<const uint32_t> tokens,
                                        std::span<float> hidden, const std::function<bool()>& end_early) {
  const size_t width = impl_->config.hidden_size, chunk_tokens = impl_->config.chunk_size;
  std::vector<EncodedChunk> chunks(tokens.size() / chunk_tokens);
  const auto encode_chunk = [&](size_t chunk) {
    impl_->encoder.run(hidden.data() + chunk * chunk_tokens * width, 1, &chunks[chunk]);
  };
  impl_->embed(tokens, hidden);
  chunks.resize(run_blocks(impl_->lower, state.values, tokens.size(), hidden.data(), width, impl_->pool,
                           {.then = encode_chunk, .end_early = end_early}));
  return chunks;
}

size_t Ramba::kv_bytes() const {
  const Config& c = impl_->config;
  return 2 * c.chunk_size * c.num_kv_heads * c.attention_head_dim * sizeof(Bf16);
}
size_t Ramba::landmark_dim() const {
  return impl_->config.retrieval_dim;
}

void Ramba::pack_kv(const EncodedChunk& chunk, ByteSpan out) const {
  auto* packed = reinterpret_cast<Bf16*>(out.data());
  std::ranges::transform(chunk.k, packed, to_bf16);
  std::ranges::transform(chunk.v, packed + chunk.k.size(), to_bf16);
}

std::vector<Bf16> Ramba::pack_landmark(const EncodedChunk& chunk) const {
  std::vector<Bf16> packed(chunk.landmark.size());
  std::ranges::transform(chunk.landmark, packed.begin(), to_bf16);
  return packed;
}

std::vector<float> Ramba::lower_from_zero(std::span<const uint32_t> tokens) {
  const size_t block = impl_->config.chunk_size, width = impl_->config.hidden_size;
  std::vector<float> hidden((tokens.size() + block - 1) / block * block * width);
  RecurrentState state = lower_zero_state();
  lower(state, tokens, hidden);
  hidden.resize(tokens.size() * width);
  return hidden;
}

SearchQuery Ramba::query(std::span<const uint32_t> tokens, QueryParts parts) {
  const size_t width = impl_->config.hidden_size;
  const std::vector<float> hidden = lower_from_zero(tokens);
  const auto last = std::span(hidden).last(width);
  SearchQuery query;
  query.landmark = scaled(retrieval_embedding(last, 0), landmark_gain(0));
  if (impl_->first_query && parts == QueryParts::all) {
    query.heads = impl_->first_query->run(last);
    // All but the newline before the question and <|recall|> behind it.
    if (tokens.size() > 2)
      query.tokens = impl_->first_query->run(std::span(hidden).subspan(width, (tokens.size() - 2) * width));
  }
  return query;
}

size_t Ramba::first_hsa_layer() const {
  return retrieval_layer(impl_->config, 0) + 1;
}

float Ramba::late_score(std::span<const float> tokens, ByteView kv) const {
  const Config& c = impl_->config;
  const LateShape shape{.heads = c.num_attention_heads,
                        .kv_heads = c.num_kv_heads,
                        .head_dim = c.attention_head_dim,
                        .tokens = c.chunk_size};
  return late_score_cpu(shape, tokens.data(), tokens.size() / (shape.heads * shape.head_dim),
                        reinterpret_cast<const Bf16*>(kv.data()));
}

float Ramba::score_scale() const {
  const Config& c = impl_->config;
  return 1.0f / std::sqrt(static_cast<float>(c.retrieval_dim / c.retrieval_heads()));
}

std::vector<float> Ramba::head_shares(std::span<const float> heads, ByteView kv) const {
  const Config& c = impl_->config;
  const HsaShape shape = hsa_shape(c);
  std::vector<float> k(c.chunk_size * shape.stride);
  std::transform(reinterpret_cast<const Bf16*>(kv.data()), reinterpret_cast<const Bf16*>(kv.data()) + k.size(),
                 k.begin(), to_float);
  std::vector<float> shares(c.num_attention_heads * c.chunk_size);
  for (size_t kv_head = 0; kv_head < c.num_kv_heads; ++kv_head) {
    const size_t first_head = kv_head * shape.heads;
    hsa_shares_cpu(shape, heads.data() + first_head * shape.head_dim, k.data() + kv_head * shape.head_dim,
                   shares.data() + first_head * shape.tokens);
  }
  return shares;
}

size_t Ramba::groups() const {
  return impl_->groups.size();
}

RecurrentState Ramba::upper_zero_state() const {
  return {.values = std::vector<float>(impl_->config.num_upper_layers * impl_->block_floats()), .device = {}};
}

std::vector<float> Ramba::retrieval_embedding(std::span<const float> hidden, size_t group) const {
  return impl_->retrievals[group].embed(hidden);
}

std::span<const float> Ramba::landmark_gain(size_t group) const {
  return impl_->retrievals[group].landmark_gain();
}

std::vector<Bf16> Ramba::landmark_queries(std::span<const float> hidden, size_t group) const {
  const size_t dim = impl_->config.retrieval_dim, heads = impl_->config.retrieval_heads(), head_width = dim / heads;
  const std::vector<Bf16> whole = scaled(retrieval_embedding(hidden, group), landmark_gain(group));
  if (heads == 1) return whole;
  std::vector<Bf16> queries(whole.size() * heads);
  for (size_t i = 0; i < whole.size(); ++i) {
    const size_t token = i / dim, at = i % dim, head = at / head_width;
    queries[(token * heads + head) * dim + at] = whole[i];
  }
  return queries;
}

std::vector<float> Ramba::chunk_weights(std::span<const float> scores, size_t group) const {
  std::vector<float> weights(scores.size());
  chunk_weights_cpu(impl_->config.weighting(impl_->pos_decays[group]), scores, weights);
  return weights;
}

void Ramba::upper(size_t group, RecurrentState& state, std::span<float> hidden,
                  std::span<const std::vector<AttendedChunk>> attended) {
  const size_t width = impl_->config.hidden_size, tokens = attended.size() / impl_->config.retrieval_heads();
  auto states = std::span(state.values).subspan(impl_->group_offset(group));
  for (const UpperGroup::Stage& stage : impl_->groups[group].stages) {
    stage.hsa.run(hidden, attended, impl_->pool);
    const size_t floats = stage.blocks.size() * impl_->block_floats();
    run_blocks(stage.blocks, states.first(floats), tokens, hidden.data(), width, impl_->pool);
    states = states.subspan(floats);
  }
}

std::vector<float> Ramba::lower_step(std::span<RecurrentState* const> states, std::span<const uint32_t> tokens) {
  std::vector<float> hidden(streams_max * impl_->config.hidden_size);
  impl_->embed(tokens, hidden);
  std::vector<float*> values;
  for (RecurrentState* state : states) values.push_back(state->values.data());
  step_blocks(impl_->lower, values, hidden.data());
  return hidden;
}

void Ramba::upper_step(size_t group, std::span<RecurrentState* const> states, std::span<float> hidden,
                       std::span<const std::vector<AttendedChunk>> attended) {
  std::vector<float*> values;
  for (RecurrentState* state : states) values.push_back(state->values.data() + impl_->group_offset(group));
  for (const UpperGroup::Stage& stage : impl_->groups[group].stages) {
    stage.hsa.run(hidden, attended, impl_->pool);
    step_blocks(stage.blocks, values, hidden.data());
    for (float*& value : values) value += stage.blocks.size() * impl_->block_floats();
  }
}

std::vector<float> Ramba::final_norm(std::span<const float> hidden) const {
  const size_t width = impl_->config.hidden_size;
  std::vector<float> normed(hidden.size());
  rmsnorm_cpu(hidden.data(), impl_->final_norm.data(), hidden.size() / width, width, impl_->config.layer_norm_epsilon,
              normed.data());
  return normed;
}

std::vector<float> Ramba::logits(std::span<const float> final_hidden) const {
  const size_t width = impl_->config.hidden_size, rows = final_hidden.size() / width;
  const size_t block = rows_for(*impl_->head, rows);
  const size_t padded = (rows + block - 1) / block * block;
  Operands operands;
  operands.fit(impl_->type, padded * width);
  to_operands(impl_->type, final_hidden.data(), rows * width, operands.at(0));
  std::vector<float> logits(padded * impl_->config.vocab_size);
  impl_->pool.run(padded / block, [&](size_t i, size_t) {
    impl_->head->run(operands.at(i * block * width), logits.data() + i * block * impl_->config.vocab_size, block);
  });
  logits.resize(rows * impl_->config.vocab_size);
  return logits;
}

}  // namespace recalld
