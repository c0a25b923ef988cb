#include "tools/bench/model_selections.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <functional>
#include <span>
#include <thread>

#include "kernels/landmark_topk.h"
#include "kernels/worker_pool.h"
#include "model/gpu_ramba.h"
#include "model/ramba.h"
#include "model/tokenizer.h"
#include "tools/bench/daemon_process.h"
#include "tools/bench/prose.h"

namespace recalld::bench {
namespace {

constexpr size_t chunk_tokens = 64;

std::filesystem::path shipped_model() {
  auto directory = std::filesystem::read_symlink("/proc/self/exe").parent_path();
  const auto here = directory;
  for (int up = 0; up <= 2; ++up, directory = directory.parent_path())
    if (auto model = directory / "share/recalld-models/default"; std::filesystem::exists(model / "config.json"))
      return model;
  give_up("find the shipped model", "there is no share/recalld-models/default beside or above " + here.string());
}

Tokenizer tokenizer_of(const std::filesystem::path& model, const Config& config) {
  return must(Tokenizer::open(model / "tokenizer.model", config.recall_token_id, config.newline_token_id),
              "open the tokenizer");
}

std::vector<uint32_t> read_prose(const Tokenizer& tokenizer, size_t count) {
  Prose prose(17);
  std::vector<uint32_t> ids;
  for (bool of_user = true; ids.size() < count; of_user = !of_user) {
    const Tokens turn = tokenizer.encode_turn(of_user ? "user: " : "assistant: ", prose.turn());
    ids.insert(ids.end(), turn.ids.begin(), turn.ids.end());
  }
  ids.resize(count);
  return ids;
}

}  // namespace

ModelSelections select_by_model(uint32_t chunks, uint32_t tokens, uint32_t k) {
  const auto directory = shipped_model();
  WorkerPool pool(std::max(1u, std::thread::hardware_concurrency()));
  const auto model = must(Ramba::open(directory, Precision::automatic, Parts::all, pool), "open the model");
  const std::vector<uint32_t> ids =
      read_prose(tokenizer_of(directory, model->config()), chunks * chunk_tokens + tokens);

  const size_t width = model->config().hidden_size, dim = model->landmark_dim();
  RecurrentState state = model->lower_zero_state();
  std::vector<Bf16> landmarks;
  for (size_t first = 0; first < chunks;) {
    const size_t count = std::min<size_t>(64, chunks - first);
    std::vector<float> hidden(count * chunk_tokens * width);
    model->lower(state, std::span(ids).subspan(first * chunk_tokens, count * chunk_tokens), hidden);
    for (const EncodedChunk& chunk : model->encode_chunks(hidden)) {
      const auto landmark = model->pack_landmark(chunk);
      landmarks.insert(landmarks.end(), landmark.begin(), landmark.end());
    }
    first += count;
  }
  std::vector<float> hidden(size_t{tokens} * width);
  model->lower(state, std::span(ids).subspan(chunks * chunk_tokens), hidden);

  ModelSelections result;
  const std::vector<Bf16> queries = model->landmark_queries(hidden, 0);
  const size_t stride = queries.size() / tokens;  // of the retrieval heads, the first one's
  std::vector<float> dots(chunks);
  for (size_t token = 0; token < tokens; ++token) {
    landmark_dots_cpu(std::span(queries).subspan(token * stride, dim), landmarks.data(), chunks, dots.data());
    TopK top(k);
    for (size_t chunk = 0; chunk < chunks; ++chunk) top.offer({chunk, dots[chunk]});
    auto best = top.take();
    std::ranges::sort(best, std::ranges::greater{}, &ScoredChunk::chunk);
    for (const ScoredChunk& each : best) {
      result.chunks.push_back(static_cast<uint32_t>(each.chunk));
      result.scores.push_back(each.dot * model->score_scale());
    }
  }
  return result;
}

ModelLandmarks landmarks_by_model(uint32_t chunks, uint32_t questions) {
  constexpr uint64_t budget_bytes = uint64_t{1} << 30;
  const auto directory = shipped_model();
  const Config config = must(Config::read(directory / "config.json"), "read the model's shape");
  const Tokenizer tokenizer = tokenizer_of(directory, config);
  const std::vector<uint32_t> ids = read_prose(tokenizer, size_t{chunks} * chunk_tokens);
  const auto gpu = must(open_gpu_ramba({.model = directory, .budget_bytes = budget_bytes, .encode_states = 8}),
                        "open the model on the GPU");

  ModelLandmarks result{.dim = static_cast<uint32_t>(config.retrieval_dim), .landmarks = {}, .queries = {}};
  result.landmarks.resize(size_t{chunks} * result.dim);
  const size_t kv_bytes = 2 * config.chunk_size * config.num_kv_heads * config.attention_head_dim * sizeof(Bf16);
  const uint64_t at_once = gpu->segment_chunks();
  std::vector<std::byte> kv(at_once * kv_bytes);  // not looked at
  RecurrentState state = must(gpu->zero_state(), "make a state");
  for (uint64_t first = 0; first < chunks; first += at_once) {
    const uint64_t count = std::min<uint64_t>(at_once, chunks - first);
    const Backend::Segment segment{
        .state = &state,
        .tokens = std::span(ids).subspan(first * chunk_tokens, count * chunk_tokens),
        .landmarks = std::span(result.landmarks).subspan(first * result.dim, count * result.dim),
        .kv = std::span(kv).first(count * kv_bytes)};
    must(gpu->encode(std::array{segment}), "encode");
  }

  Prose prose(23);
  for (uint32_t i = 0; i < questions; ++i) {
    const auto query = must(gpu->query(tokenizer.encode_query(prose.sentence())), "read a question");
    result.queries.insert(result.queries.end(), query.landmark.begin(), query.landmark.end());
  }
  return result;
}

}  // namespace recalld::bench
