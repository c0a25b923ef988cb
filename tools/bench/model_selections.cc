#include "tools/bench/model_selections.h"

#include <algorithm>
#include <filesystem>
#include <functional>
#include <span>
#include <thread>

#include "kernels/landmark_topk.h"
#include "kernels/worker_pool.h"
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

std::vector<uint32_t> read_prose(const std::filesystem::path& model, const Config& config, size_t count) {
  const Tokenizer tokenizer =
      must(Tokenizer::open(model / "tokenizer.model", config.recall_token_id, config.newline_token_id),
           "open the tokenizer");
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
  const std::vector<uint32_t> ids = read_prose(directory, model->config(), chunks * chunk_tokens + tokens);

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

}  // namespace recalld::bench
