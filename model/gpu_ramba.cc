// Opening: the model's weights, and how the budget is divided. The members of GpuRamba that do the work stand in
// gpu_ramba_encode.cc and gpu_ramba_generate.cc.
#include "model/gpu_ramba.h"

#include <algorithm>
#include <utility>

#include "kernels/elementwise_cuda.h"
#include "kernels/encoder_attention_cuda.h"
#include "kernels/hsa_attention_cuda.h"
#include "kernels/landmark_topk_batch_cuda.h"
#include "kernels/landmark_topk_cuda.h"
#include "kernels/landmark_topk_int8_cuda.h"
#include "model/gpu_ramba_impl.h"

namespace recalld {
namespace {

static_assert(Gpu::lanes_max == cuda::lanes_max && Gpu::no_slot == cuda::no_chunk && Gpu::no_chunk == cuda::no_chunk);
static_assert(cuda::landmark_topk_max == cuda::hsa_k_max && cuda::landmark_topk_max == cuda::selection_k_max);

std::string layer_name(size_t index) {
  return "backbone.layers." + std::to_string(index);
}

uint64_t mib(uint64_t bytes) {
  return (bytes + (1 << 20) - 1) >> 20;
}

// What the kernels take, said of the config's keys.
Expected<void> check_shape(const Config& c) {
  const auto refuse = [](const std::string& key, size_t value, const std::string& wanted) {
    return fail(ErrorKind::invalid_request, "open the model on the GPU: " + key + " is " + std::to_string(value) +
                                                ", and its kernels take " + wanted + "; use --device cpu");
  };
  const auto at_most = [&](const std::string& key, size_t value, size_t most) -> Expected<void> {
    if (value > most) return refuse(key, value, "at most " + std::to_string(most));
    return {};
  };
  if (c.chunk_size != Gpu::block_tokens) return refuse("chunk_size", c.chunk_size, "64");
  if (c.family == BlockFamily::swa_hsa) {
    RECALLD_CHECK(at_most("sliding_window", c.sliding_window, cuda::swa_window_max));
    static_assert(cuda::swa_head_dim == cuda::hsa_head_dim, "attention_head_dim is both");
  } else {
    if (c.head_dim != 64) return refuse("head_dim", c.head_dim, "64");
    if (c.state_size != 64 && c.state_size != 128) return refuse("state_size", c.state_size, "64 or 128");
    if (c.conv_kernel < 2 || c.conv_kernel > 4) return refuse("conv_kernel", c.conv_kernel, "2 to 4");
    RECALLD_CHECK(at_most("num_heads", c.num_heads, cuda::elementwise_width_max / c.head_dim));
  }
  if (c.attention_head_dim != cuda::hsa_head_dim) return refuse("attention_head_dim", c.attention_head_dim, "64");
  if (c.retrieval_dim % 32 != 0) return refuse("retrieval_dim", c.retrieval_dim, "multiples of 32");
  if (c.hidden_size % 16 != 0) return refuse("hidden_size", c.hidden_size, "multiples of 16");
  RECALLD_CHECK(at_most("retrieval_dim", c.retrieval_dim, 8192));
  RECALLD_CHECK(at_most("vocab_size", c.vocab_size, cuda::matmul_width_max));
  RECALLD_CHECK(at_most("chunk_topk", c.chunk_topk, cuda::landmark_topk_max));
  // A block of tokens attends at once: tokens x KV heads x tiles of 16 query heads.
  const size_t group = c.num_attention_heads / c.num_kv_heads, tiles = c.num_kv_heads * ((group + 15) / 16);
  if (group > cuda::hsa_group_heads_max || tiles * Gpu::block_tokens > cuda::hsa_decode_tiles_max)
    return refuse("num_attention_heads", c.num_attention_heads,
                  "at most 32 for a KV head, and 16 KV heads (or 8 of more than 16 heads)");
  if (c.encoder_layers > 0)
    RECALLD_CHECK(at_most("hidden_size / num_attention_heads", c.hidden_size / c.num_attention_heads,
                          cuda::encoder_head_dim_max));
  return {};
}

}  // namespace

// ---- Opening

Expected<std::unique_ptr<Gpu>> open_gpu_ramba(const GpuOptions& options) {
  RECALLD_TRY(const Config config, Config::read(options.model / "config.json"));
  RECALLD_CHECK(check_shape(config));
  auto gpu = std::make_unique<GpuRamba>(config);
  RECALLD_CHECK(gpu->open(options));
  return gpu;
}

Expected<void> GpuRamba::open(const GpuOptions& options) {
  const auto begin = [&]() -> cudaError_t {
    int device = 0;
    cudaDeviceProp properties{};
    size_t all_bytes = 0;
    RECALLD_CUDA(cudaGetDevice(&device));
    RECALLD_CUDA(cudaGetDeviceProperties(&properties, device));
    name_ = properties.name;
    RECALLD_CUDA(cudaMemGetInfo(&free_bytes_, &all_bytes));
    RECALLD_CUDA(cuda::Stream::open(stream_));
    return cuda::Matmul::open(matmul_);
  };
  RECALLD_CHECK(gpu_done("open the GPU", begin()));
  RECALLD_CHECK(load(options.model));
  RECALLD_CHECK(divide(options));
  return gpu_done("capture the steps of generating", capture());
}

Expected<void> GpuRamba::load(const std::filesystem::path& directory) {
  RECALLD_TRY(const Weights on_disk, Weights::open(directory / "model.safetensors"));
  GpuWeights weights(on_disk, matmul_);
  const auto load_blocks = [&](size_t first, size_t count, std::vector<GpuBlock>& blocks) -> Expected<void> {
    for (size_t i = 0; i < count; ++i) {
      RECALLD_TRY(const GpuBlock loaded, GpuBlock::load(weights, layer_name(first + i), config_));
      blocks.push_back(loaded);
    }
    return {};
  };
  const char* const embeddings = "backbone.embeddings.weight";
  const bool generates = config_.num_upper_layers > 0;
  if (generates) {
    const char* const head = config_.tie_word_embeddings ? embeddings : "lm_head.weight";
    RECALLD_TRY(head_, weights.linear({{head, config_.vocab_size}}, config_.hidden_size));
    RECALLD_TRY(final_norm_, weights.floats("backbone.norm_f.weight", {config_.hidden_size}));
    embeddings_ = head_.w;
  }
  if (!generates || !config_.tie_word_embeddings) {
    RECALLD_TRY(const auto values, on_disk.bf16(embeddings, {config_.vocab_size, config_.hidden_size}));
    RECALLD_TRY(embeddings_, weights.upload(values));
  }
  RECALLD_CHECK(load_blocks(0, config_.num_lower_layers, lower_));
  size_t layer = config_.num_lower_layers;
  RECALLD_TRY(encoder_, GpuChunkEncoder::load(weights, layer_name(layer++), config_));
  if (!generates) {
    RECALLD_TRY(only_retrieval_, GpuRetrieval::load(weights, layer_name(layer), config_));
  }
  for (size_t group = 0; generates && group < config_.num_upper_groups; ++group) {
    RECALLD_TRY(GpuRetrieval retrieval, GpuRetrieval::load(weights, layer_name(layer++), config_));
    const float pos_decay = retrieval.pos_decay();
    UpperGroup upper{.retrieval = std::move(retrieval), .stages = {}};
    for (size_t stage = 0; stage < config_.hsa_layers() / config_.num_upper_groups; ++stage) {
      RECALLD_TRY(GpuHsa hsa, GpuHsa::load(weights, layer_name(layer++), config_, pos_decay));
      std::vector<GpuBlock> blocks;
      RECALLD_CHECK(load_blocks(layer, config_.num_mamba_per_gca, blocks));
      layer += config_.num_mamba_per_gca;
      upper.stages.push_back({std::move(hsa), std::move(blocks)});
    }
    groups_.push_back(std::move(upper));
  }
  weights_bytes_ = weights.bytes();
  weights_ = weights.take();
  return gpu_done("copy weights to the GPU", cudaDeviceSynchronize());
}

// What encode() and query() work with. Returns the bytes; with a null base it only counts.
size_t GpuRamba::carve_encoding(uint32_t tokens, void* base) {
  const uint32_t chunks = tokens / block;
  Carver carver(base);
  encode_tokens_in_ = carver.take<uint32_t>(tokens);
  encode_hidden_ = carver.take<float>(size_t{tokens} * config_.hidden_size);
  encoded_landmarks_ = carver.take<Bf16>(size_t{chunks} * config_.retrieval_dim);
  encoded_records_ = carver.take<Bf16>(chunks * kv_bytes() / sizeof(Bf16));
  // The lower half is done when the encoder begins.
  char* const shared = carver.take<char>(0);
  Carver lower(shared), encoder(shared);
  encode_scratch_ = GpuBlock::scratch(config_, tokens, segments_most, lower);
  encoder_scratch_ = GpuChunkEncoder::scratch(config_, chunks, encoder);
  return carver.used() + std::max(lower.used(), encoder.used());
}

// What step() works with; likewise.
size_t GpuRamba::carve_generating(void* base) {
  Carver carver(base);
  gpu_.matmul_workspace = carver.take<char>(cuda::matmul_workspace);
  blocks_ = GpuBlock::scratch(config_, block, 1, carver);
  hsa_ = GpuHsa::scratch(config_, block, carver);
  retrieval_ = GpuRetrieval::scratch(config_, block, carver);
  block_hidden_ = carver.take<float>(block * config_.hidden_size);
  hidden_ = carver.take<float>(lanes * config_.hidden_size);
  normed_ = carver.take<Bf16>(lanes * config_.hidden_size);
  logits_ = carver.take<float>(lanes * size_t{head_.out});
  input_ = carver.take<StepInput>(1);
  block_tokens_in_ = carver.take<uint32_t>(block);
  of_block_ = GroupBuffers::carve(config_, block, carver);
  const auto k = static_cast<uint32_t>(config_.chunk_topk);
  topk_ = carver.take<char>(cuda::landmark_topk_workspace(k));
  topk_batch_ = carver.take<char>(cuda::landmark_topk_batch_workspace(k));
  topk_int8_ = carver.take<char>(cuda::landmark_topk_int8_workspace(k));
  const size_t layers = std::max(lower_.size(), config_.num_upper_layers);
  conv_ = carver.take<float*>(layers * lanes);
  ssm_ = carver.take<float*>(layers * lanes);
  arrived_ = carver.take<uint32_t>(1);
  // What lanes that wait must keep comes last.
  scratch_bytes_ = carver.used();
  lane_hidden_ = carver.take<float>(lanes * config_.hidden_size);
  of_lanes_.clear();
  for (size_t group = 0; group < groups_.size(); ++group)
    of_lanes_.push_back(GroupBuffers::carve(config_, lanes, carver));
  return carver.used();
}

// What step() and the host tell each other, in pinned memory; likewise.
size_t GpuRamba::carve_results(void* base) {
  Carver carver(base);
  told_input_ = carver.take<StepInput>(1);
  told_block_tokens_ = carver.take<uint32_t>(block);
  talk_of_block_ = GroupTalk::carve(config_, block, carver);
  talk_of_lanes_.clear();
  for (size_t group = 0; group < groups_.size(); ++group)
    talk_of_lanes_.push_back(GroupTalk::carve(config_, lanes, carver));
  told_logits_ = carver.take<float>(lanes * size_t{head_.out});
  told_arrivals_ = carver.take<uint32_t>(list_places());
  return carver.used();
}

// Divides the budget: weights, states and workspace take what they need, the landmarks of memories and the cache of
// their chunks a half each of the rest.
Expected<void> GpuRamba::divide(const GpuOptions& options) {
  constexpr uint64_t automatic_max = uint64_t{8} << 30;
  budget_bytes_ = options.budget_bytes != 0 ? options.budget_bytes : std::min<uint64_t>(free_bytes_ / 2, automatic_max);

  const size_t record = kv_bytes(), lane_bytes = (lower_floats() + upper_floats() + layer_floats()) * sizeof(float);
  const size_t records_of_block = block * list_places(), records_of_lane = list_places();
  const size_t slots_min = records_of_block + lanes * records_of_lane;
  const uint64_t half_min = slots_min * (record + sizeof(uint32_t));
  const size_t generating = carve_generating(nullptr), late = groups_.empty() ? 0 : GpuLate::device_bytes(config_);

  // As many tokens in a pass and as many states as a part of the budget allows, and less where it must be.
  constexpr uint32_t tokens_best = 16 << 10, tokens_min = 1 << 10;
  constexpr size_t states_min = 8;
  size_t states = std::clamp<size_t>(budget_bytes_ / 8 / std::max<size_t>(1, state_bytes()), states_min,
                                     std::max(states_min, options.encode_states));
  const auto fixed_bytes = [&] {
    workspace_bytes_ = generating + late + carve_encoding(encode_tokens_, nullptr);
    states_bytes_ = states * state_bytes() + lanes * lane_bytes;
    return weights_bytes_ + workspace_bytes_ + states_bytes_;
  };
  const auto is_too_much = [&](uint64_t part) {
    return fixed_bytes() + 2 * half_min > budget_bytes_ || workspace_bytes_ > part;
  };
  encode_tokens_ = tokens_best;
  while (encode_tokens_ > tokens_min && is_too_much(budget_bytes_ / 4)) encode_tokens_ /= 2;
  while (states > states_min && is_too_much(UINT64_MAX)) --states;
  segments_max_ = std::clamp<size_t>(states / 4, 1, segments_most);
  const uint64_t fixed = fixed_bytes();
  if (budget_bytes_ < fixed + 2 * half_min)
    return fail(ErrorKind::invalid_request,
                "open the GPU: a budget of " + std::to_string(budget_bytes_ >> 20) +
                    " MiB is too small: " + std::to_string(mib(weights_bytes_)) + " MiB for weights, " +
                    std::to_string(mib(states_bytes_)) + " for states, " + std::to_string(mib(workspace_bytes_)) +
                    " for workspace and " + std::to_string(mib(2 * half_min)) +
                    " for landmarks and cached chunks at the least; raise --gpu-budget to " +
                    std::to_string(mib(fixed + 2 * half_min)) + "MiB or more");
  const uint64_t half = (budget_bytes_ - fixed) / 2;
  slots_ = static_cast<uint32_t>(std::min<uint64_t>(half / (record + sizeof(uint32_t)), no_slot - 1));
  landmarks_share_.allow(half);
  host_share_.allow(options.host_landmarks_bytes_max != 0 ? options.host_landmarks_bytes_max : UINT64_MAX);

  const auto allocate = [&]() -> cudaError_t {
    RECALLD_CUDA(cuda::DeviceBuffer::allocate(workspace_bytes_ - late, workspace_));
    if (!groups_.empty()) RECALLD_CUDA(late_.open(config_));
    RECALLD_CUDA(cuda::DeviceBuffer::allocate(lanes * lane_bytes, lane_states_));
    RECALLD_CUDA(cuda::DeviceBuffer::allocate(uint64_t{slots_} * (record + sizeof(uint32_t)), cache_));
    RECALLD_CUDA(pinned_.allocate((records_of_block + lanes * records_of_lane) * record, staging_));
    RECALLD_CUDA(pinned_.allocate(carve_results(nullptr), results_));
    const size_t chunks = encode_tokens_ / block;
    RECALLD_CUDA(pinned_.allocate(
        2 * (encode_tokens_ * sizeof(uint32_t) + chunks * (record + config_.retrieval_dim * sizeof(Bf16))), encoded_));
    for (cuda::Event& event : pass_is_done_) RECALLD_CUDA(cuda::Event::open(event));
    pinned_.overwrite();  // tokens are read from it when steps are captured
    carve_results(results_.data());
    RECALLD_CUDA(cudaMemsetAsync(workspace_.data(), 0, workspace_.bytes(), stream_.get()));
    RECALLD_CUDA(cudaMemsetAsync(lane_states_.data(), 0, lane_states_.bytes(), stream_.get()));
    RECALLD_CUDA(cudaMemsetAsync(cache_.data(), 0, cache_.bytes(), stream_.get()));
    carve_generating(workspace_.data());
    encoding_bytes_ = carve_encoding(encode_tokens_, workspace_.as<char>(generating));
    lower_states_ = lane_states_.as<float>();
    upper_states_ = lower_states_ + lanes * lower_floats();
    unwanted_states_ = upper_states_ + lanes * upper_floats();
    identity_ = cache_.as<uint32_t>(uint64_t{slots_} * record);
    std::vector<uint32_t> numbers(slots_);
    for (uint32_t i = 0; i < slots_; ++i) numbers[i] = i;
    RECALLD_CUDA(cudaMemcpyAsync(identity_, numbers.data(), numbers.size() * sizeof(uint32_t), cudaMemcpyHostToDevice,
                                 stream_.get()));
    return cudaStreamSynchronize(stream_.get());
  };
  RECALLD_CHECK(gpu_done("take " + std::to_string(mib(budget_bytes_)) + " MiB of the GPU's " +
                             std::to_string(mib(free_bytes_)) + " MiB that are free",
                         allocate()));
  RECALLD_TRY(states_, GpuStatePool::open(states, state_bytes()));
  gpu_.matmul = &matmul_;
  gpu_.stream = stream_.get();
  return {};
}

GpuUsage GpuRamba::usage() const {
  return {.budget_bytes = budget_bytes_,
          .weights_bytes = weights_bytes_,
          .states_bytes = states_bytes_,
          .landmarks_bytes = landmarks_share_.bytes(),
          .cache_bytes = cache_.bytes(),
          .workspace_bytes = workspace_bytes_,
          .host_landmarks_bytes = host_share_.bytes()};
}

}  // namespace recalld
