// The GPU's attention to retrieved chunks against its CPU twin, and its two paths against each other. Skipped where
// there is no GPU.
#include "kernels/hsa_attention_cuda.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kernels/hsa_attention.h"
#include "tests/support/device_array.h"
#include "tests/support/random_floats.h"

namespace recalld {
namespace {

constexpr size_t dim = cuda::hsa_head_dim, chunk_tokens = cuda::hsa_chunk_tokens;

std::vector<uint32_t> bits_of(const std::vector<float>& values) {
  std::vector<uint32_t> bits;
  for (const float value : values) bits.push_back(std::bit_cast<uint32_t>(value));
  return bits;
}

struct Shape {
  uint32_t tokens = 1, group_heads = 16, kv_heads = 1, retrieval_heads = 1, k = 8, chunks = 20;
  ChunkWeighting weighting = {.softmax = true};

  uint32_t heads() const { return kv_heads * group_heads; }
  std::string name() const {
    return "tokens " + std::to_string(tokens) + " heads " + std::to_string(kv_heads) + " x " +
           std::to_string(group_heads) + " retrieval " + std::to_string(retrieval_heads) + " k " + std::to_string(k) +
           " chunks " + std::to_string(chunks) + (weighting.softmax ? " softmax" : " stick-breaking") + " decay " +
           std::to_string(weighting.pos_decay) + " slope " + std::to_string(weighting.stick_slope) + " margin " +
           std::to_string(weighting.stick_margin);
  }
};

// What attends to what. Of tokens whose chunks are few, the rest of the selection is empty.
struct Problem {
  Shape shape;
  std::vector<Bf16> q, k, v;  // k, v: [chunks, chunk_tokens, kv_heads, dim]
  std::vector<uint32_t> selection;
  std::vector<float> scores;

  explicit Problem(const Shape& of, uint32_t seed = 1) : shape(of) {
    const size_t elements = shape.chunks * chunk_tokens * shape.kv_heads * dim;
    q = rounded(random_floats(shape.tokens * shape.heads() * dim, seed));
    k = rounded(random_floats(elements, seed + 1));
    v = rounded(random_floats(elements, seed + 2));
    const size_t selections = shape.tokens * shape.retrieval_heads;
    scores = random_floats(selections * shape.k, seed + 3, 2);
    std::mt19937 random(seed + 4);
    std::vector<uint32_t> all(shape.chunks);
    std::iota(all.begin(), all.end(), 0u);
    for (size_t i = 0; i < selections; ++i) {
      std::ranges::shuffle(all, random);
      // Mostly as many as there are.
      const size_t most = std::min(shape.k, shape.chunks), count = i % 5 == 3 ? random() % (most + 1) : most;
      std::vector<uint32_t> chosen(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(count));
      std::ranges::sort(chosen, std::greater());
      chosen.resize(shape.k, cuda::hsa_no_chunk);
      selection.insert(selection.end(), chosen.begin(), chosen.end());
    }
  }

  // The chunks lie in slots from `first` on, in order or reversed; the cache holds NaN elsewhere.
  std::vector<float> on_gpu(cuda::HsaPath path, uint32_t first = 0, bool reversed = false) const {
    const size_t rows = shape.kv_heads * dim * chunk_tokens, slots = shape.chunks + first;
    std::vector<Bf16> cache(slots * 2 * rows, Bf16{0x7fff});
    std::vector<uint32_t> page_table(shape.chunks);
    for (uint32_t chunk = 0; chunk < shape.chunks; ++chunk) {
      page_table[chunk] = first + (reversed ? shape.chunks - 1 - chunk : chunk);
      Bf16* const record = cache.data() + page_table[chunk] * 2 * rows;
      std::copy_n(k.data() + chunk * rows, rows, record);
      std::copy_n(v.data() + chunk * rows, rows, record + rows);
    }
    const DeviceArray<Bf16> device_q(q), device_cache(cache);
    const DeviceArray<uint32_t> device_selection(selection), device_pages(page_table);
    const DeviceArray<float> device_scores(scores), o(shape.tokens * shape.heads() * dim);
    // Twice with one workspace, which a call leaves as it needs it.
    const size_t bytes = cuda::hsa_attention_workspace(shape.tokens, shape.heads(), shape.kv_heads, shape.k);
    const DeviceArray<std::byte> workspace(bytes);
    must(cudaMemset(workspace.data(), 0, bytes));
    for (int call = 0; call < 2; ++call) {
      must(cudaMemset(o.data(), 0xff, shape.tokens * shape.heads() * dim * sizeof(float)));
      must(cuda::hsa_attention({.q = device_q.data(),
                                .chunks = device_selection.data(),
                                .scores = device_scores.data(),
                                .page_table = device_pages.data(),
                                .cache = device_cache.data(),
                                .o = o.data(),
                                .tokens = shape.tokens,
                                .heads = shape.heads(),
                                .kv_heads = shape.kv_heads,
                                .retrieval_heads = shape.retrieval_heads,
                                .head_dim = dim,
                                .k = shape.k,
                                .weighting = shape.weighting,
                                .path = path,
                                .workspace = workspace.data()},
                               nullptr));
    }
    return o.host();
  }

  // And the same with |V|, which bounds what rounding can change.
  void on_cpu(std::vector<float>& o, std::vector<float>& bound) const {
    const auto floats = [](const std::vector<Bf16>& from) {
      std::vector<float> to;
      for (const Bf16 value : from) to.push_back(to_float(value));
      return to;
    };
    const auto q32 = floats(q), k32 = floats(k), v32 = floats(v);
    std::vector<float> v_abs;
    for (const float value : v32) v_abs.push_back(std::abs(value));
    o.resize(q.size());
    bound.resize(q.size());
    const size_t stride = shape.kv_heads * dim;
    for (size_t token = 0; token < shape.tokens; ++token) {
      for (size_t kv_head = 0; kv_head < shape.kv_heads; ++kv_head) {
        const size_t place = (token * shape.retrieval_heads + (shape.retrieval_heads == 1 ? 0 : kv_head)) * shape.k;
        size_t count = 0;
        while (count < shape.k && selection[place + count] != cuda::hsa_no_chunk) ++count;
        std::vector<float> weights(count);
        chunk_weights_cpu(shape.weighting, {scores.data() + place, count}, weights);
        std::vector<HsaChunk> chunks, chunks_abs;
        for (size_t i = 0; i < count; ++i) {
          const size_t at = selection[place + i] * chunk_tokens * stride + kv_head * dim;
          chunks.push_back({k32.data() + at, v32.data() + at, weights[i]});
          chunks_abs.push_back({k32.data() + at, v_abs.data() + at, weights[i]});
        }
        const HsaShape of_head{.heads = shape.group_heads, .head_dim = dim, .tokens = chunk_tokens, .stride = stride};
        const size_t first = (token * shape.heads() + kv_head * shape.group_heads) * dim;
        hsa_attention_cpu(of_head, q32.data() + first, chunks, o.data() + first);
        hsa_attention_cpu(of_head, q32.data() + first, chunks_abs, bound.data() + first);
      }
    }
  }

  // Both paths agree with the CPU, and with each other bit by bit.
  void expect_parity() const {
    SCOPED_TRACE(shape.name());
    std::vector<float> expected, bound;
    on_cpu(expected, bound);
    const auto decoded = on_gpu(cuda::HsaPath::decode);
    for (size_t i = 0; i < expected.size(); ++i)
      ASSERT_NEAR(decoded[i], expected[i], bound[i] / 256 + 1e-30) << "element " << i;
    const auto prefilled = on_gpu(cuda::HsaPath::prefill);
    for (size_t i = 0; i < expected.size(); ++i)
      ASSERT_EQ(std::bit_cast<uint32_t>(decoded[i]), std::bit_cast<uint32_t>(prefilled[i]))
          << "element " << i << ": " << decoded[i] << " and " << prefilled[i];
  }
};

using HsaAttentionCuda = GpuTest;

TEST_F(HsaAttentionCuda, AgreesWithTheCpuForAnyNumberOfChunks) {
  for (const bool softmax : {false, true})
    for (const uint32_t chunks : {1, 7, 8, 9, 40, 140})
      for (const uint32_t k : {1, 2, 7, 8, 9, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128})
        Problem({.tokens = 9, .group_heads = 2, .k = k, .chunks = chunks, .weighting = {.softmax = softmax}}, k)
            .expect_parity();
}

TEST_F(HsaAttentionCuda, AgreesWithTheCpuForAnyHeads) {
  for (const uint32_t kv_heads : {1, 2, 3, 4, 5})
    for (const uint32_t group_heads : {1, 6, 8, 15, 16, 17, 32})
      for (const uint32_t retrieval_heads : {1u, kv_heads})
        for (const uint32_t k : {8, 20})
          Problem({.tokens = 5,
                   .group_heads = group_heads,
                   .kv_heads = kv_heads,
                   .retrieval_heads = retrieval_heads,
                   .k = k,
                   .weighting = {.softmax = k == 20}})
              .expect_parity();
}

TEST_F(HsaAttentionCuda, AgreesWithTheCpuForAnyNumberOfTokens) {
  for (const bool softmax : {false, true})
    for (const uint32_t tokens : {1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 200})
      for (const uint32_t k : {8, 12})
        Problem({.tokens = tokens, .group_heads = 3, .k = k, .chunks = 50, .weighting = {.softmax = softmax}}, tokens)
            .expect_parity();
}

TEST_F(HsaAttentionCuda, AgreesWithTheCpuWhereScoresDecayByPlace) {
  for (const bool softmax : {false, true})
    for (const float pos_decay : {-2.0f, -0.1f, 0.03f})
      for (const uint32_t k : {1, 8, 33, 128})
        Problem({.tokens = 9, .k = k, .chunks = 140, .weighting = {.softmax = softmax, .pos_decay = pos_decay}}, k)
            .expect_parity();
}

TEST_F(HsaAttentionCuda, AgreesWithTheCpuWhereScoresCountFromTheBest) {
  for (const float margin : {0.0f, 1.0f, 4.0f})
    for (const uint32_t k : {1, 8, 33, 128}) {
      const ChunkWeighting weighting{.pos_decay = -0.1f, .stick_slope = 2, .stick_margin = margin};
      Problem({.tokens = 9, .k = k, .chunks = 140, .weighting = weighting}, k).expect_parity();
    }
}

// Small enough for compute-sanitizer's racecheck (tools/sanitize_gpu.sh): a tile and more of tokens and of heads,
// groups of chunks that are alone, that are merged, and as many as there may be.
TEST_F(HsaAttentionCuda, FewTokensOfEveryPathAgreeWithTheCpu) {
  for (const uint32_t k : {1, 8, 9, 65, 128})
    Problem({.tokens = 2, .group_heads = 2, .k = k, .chunks = 140, .weighting = {.softmax = k == 9}}, k)
        .expect_parity();
  Problem({.tokens = 35, .group_heads = 1, .k = 5, .chunks = 30}, 2).expect_parity();
  Problem({.tokens = 2, .group_heads = 17, .kv_heads = 2, .retrieval_heads = 2, .k = 12}, 3).expect_parity();
}

// Many more chunks in a block than the ring holds, most of them for one token; and all tokens with the same ones.
TEST_F(HsaAttentionCuda, ReadsChunksThatFewOrAllTokensSelect) {
  Problem({.tokens = 64, .group_heads = 1, .k = 8, .chunks = 1000}).expect_parity();
  Problem({.tokens = 40, .group_heads = 1, .k = 100, .chunks = 1000}).expect_parity();
  Problem({.tokens = 64, .group_heads = 1, .k = 8, .chunks = 8}).expect_parity();
}

// The logits are whole numbers times 1/8, so that both sides have them exactly.
TEST_F(HsaAttentionCuda, ExtremeLogitsAndScoresKeepTheirShares) {
  for (const bool softmax : {false, true}) {
    for (const uint32_t k : {8, 24}) {
      Problem problem({.tokens = 4, .k = k, .chunks = 40, .weighting = {.softmax = softmax}});
      std::mt19937 random(9);
      for (Bf16& value : problem.q) value = to_bf16(static_cast<float>(static_cast<int>(random() % 255) - 127));
      for (Bf16& value : problem.k) value = to_bf16(static_cast<float>(static_cast<int>(random() % 255) - 127));
      for (float& score : problem.scores) score = static_cast<float>(static_cast<int>(random() % 2001) - 1000);
      problem.expect_parity();
      // Logits of 2^60 and of -2^60.
      for (size_t i = 0; i < problem.k.size(); ++i)
        problem.k[i] = to_bf16(i % dim == 0 ? std::ldexp(static_cast<float>(random() % 3) - 1.0f, 53) : 0.0f);
      for (size_t i = 0; i < problem.q.size(); ++i) problem.q[i] = to_bf16(i % dim == 0 ? 1024.0f : 0.0f);
      problem.expect_parity();
    }
  }
}

// As many tiles as are for decode, one more, and more than decode may have.
TEST_F(HsaAttentionCuda, TheNumberOfTokensChoosesAPathThatHasTheBitsOfDecode) {
  for (const auto& [k, tokens] : std::vector<std::pair<uint32_t, uint32_t>>{
           {8, 1}, {8, 768}, {8, 769}, {9, 320}, {9, 321}, {8, cuda::hsa_decode_tiles_max}}) {
    const Problem problem({.tokens = tokens, .group_heads = 2, .k = k, .chunks = 50}, k);
    SCOPED_TRACE(problem.shape.name());
    ASSERT_EQ(bits_of(problem.on_gpu(cuda::HsaPath::automatic)), bits_of(problem.on_gpu(cuda::HsaPath::decode)));
  }
  const Problem many({.tokens = cuda::hsa_decode_tiles_max + 1, .group_heads = 2, .k = 8, .chunks = 50});
  ASSERT_EQ(bits_of(many.on_gpu(cuda::HsaPath::automatic)), bits_of(many.on_gpu(cuda::HsaPath::prefill)));
}

TEST_F(HsaAttentionCuda, TokensWithoutChunksGetZeros) {
  for (const uint32_t k : {3, 30}) {
    Problem problem({.tokens = 3, .k = k});
    std::ranges::fill(problem.selection, cuda::hsa_no_chunk);
    for (const auto path : {cuda::HsaPath::decode, cuda::HsaPath::prefill})
      for (const float value : problem.on_gpu(path)) ASSERT_EQ(value, 0);
  }
}

TEST_F(HsaAttentionCuda, BitsDoNotDependOnTheSlots) {
  for (const uint32_t k : {8, 64}) {
    const Problem problem({.tokens = 40, .group_heads = 6, .kv_heads = 2, .retrieval_heads = 2, .k = k, .chunks = 90});
    for (const auto path : {cuda::HsaPath::decode, cuda::HsaPath::prefill}) {
      const auto there = bits_of(problem.on_gpu(path));
      for (int repeat = 0; repeat < 3; ++repeat) ASSERT_EQ(bits_of(problem.on_gpu(path)), there);
      ASSERT_EQ(bits_of(problem.on_gpu(path, 11)), there);
      ASSERT_EQ(bits_of(problem.on_gpu(path, 5, true)), there);
    }
  }
}

// One token of many, alone; and in a call whose k leaves places empty.
TEST_F(HsaAttentionCuda, BitsDoNotDependOnTheOtherTokens) {
  for (const bool softmax : {false, true}) {
    for (const uint32_t k : {8, 40}) {
      const Problem many({.tokens = 70, .k = k, .chunks = 90, .weighting = {.softmax = softmax}});
      const auto all = bits_of(many.on_gpu(cuda::HsaPath::prefill));
      for (const uint32_t token : {0, 1, 31, 32, 69}) {
        Problem one({.tokens = 1, .k = k + 20, .chunks = 90, .weighting = {.softmax = softmax}});
        const size_t elements = one.q.size();
        one.k = many.k;
        one.v = many.v;
        std::copy_n(many.q.begin() + static_cast<std::ptrdiff_t>(token * elements), elements, one.q.begin());
        std::ranges::fill(one.selection, cuda::hsa_no_chunk);
        std::copy_n(many.selection.begin() + token * k, k, one.selection.begin());
        std::copy_n(many.scores.begin() + token * k, k, one.scores.begin());
        const std::vector<uint32_t> expected(all.begin() + static_cast<std::ptrdiff_t>(token * elements),
                                             all.begin() + static_cast<std::ptrdiff_t>((token + 1) * elements));
        for (const auto path : {cuda::HsaPath::decode, cuda::HsaPath::prefill})
          ASSERT_EQ(bits_of(one.on_gpu(path)), expected) << "token " << token << " k " << k;
      }
    }
  }
}

TEST_F(HsaAttentionCuda, RoundsToBf16WhereThatIsWanted) {
  for (const auto path : {cuda::HsaPath::decode, cuda::HsaPath::prefill}) {
    for (const uint32_t k : {8, 16}) {
      const Problem problem({.tokens = 7, .k = k});
      const auto expected = problem.on_gpu(path);
      const size_t rows = dim * chunk_tokens;
      std::vector<Bf16> cache;
      std::vector<uint32_t> pages(problem.shape.chunks);
      std::iota(pages.begin(), pages.end(), 0u);
      for (size_t chunk = 0; chunk < problem.shape.chunks; ++chunk)
        for (const auto& part : {problem.k, problem.v})
          cache.insert(cache.end(), part.begin() + static_cast<std::ptrdiff_t>(chunk * rows),
                       part.begin() + static_cast<std::ptrdiff_t>((chunk + 1) * rows));
      const DeviceArray<Bf16> q(problem.q), device_cache(cache), o(problem.q.size());
      const DeviceArray<uint32_t> selection(problem.selection), device_pages(pages);
      const DeviceArray<float> scores(problem.scores);
      const size_t bytes = cuda::hsa_attention_workspace(7, 16, 1, k);
      const DeviceArray<std::byte> workspace(bytes);
      must(cudaMemset(workspace.data(), 0, bytes));
      must(cuda::hsa_attention({.q = q.data(),
                                .chunks = selection.data(),
                                .scores = scores.data(),
                                .page_table = device_pages.data(),
                                .cache = device_cache.data(),
                                .o_bf16 = o.data(),
                                .tokens = 7,
                                .heads = 16,
                                .kv_heads = 1,
                                .retrieval_heads = 1,
                                .head_dim = dim,
                                .k = k,
                                .weighting = {.softmax = true},
                                .path = path,
                                .workspace = workspace.data()},
                               nullptr));
      const auto found = o.host();
      for (size_t i = 0; i < found.size(); ++i) ASSERT_EQ(found[i].bits, to_bf16(expected[i]).bits);
    }
  }
}

TEST_F(HsaAttentionCuda, ShapesThatAreOutOfBoundsAreRefused) {
  float o = 0;
  Bf16 o_bf16;
  const cuda::HsaAttention good{
      .o = &o, .tokens = 0, .heads = 16, .kv_heads = 1, .retrieval_heads = 1, .head_dim = 64, .k = 8};
  EXPECT_EQ(cuda::hsa_attention(good, nullptr), cudaSuccess);
  const auto refused = [&](auto change) {
    cuda::HsaAttention bad = good;
    change(bad);
    return cuda::hsa_attention(bad, nullptr) == cudaErrorInvalidValue;
  };
  EXPECT_TRUE(refused([](auto& bad) { bad.k = 0; }));
  EXPECT_TRUE(refused([](auto& bad) { bad.k = 129; }));
  EXPECT_TRUE(refused([](auto& bad) { bad.head_dim = 128; }));
  EXPECT_TRUE(refused([](auto& bad) { bad.heads = 33; }));
  EXPECT_TRUE(refused([](auto& bad) { bad.heads = 0; }));
  EXPECT_TRUE(refused([](auto& bad) { bad.kv_heads = 3; }));
  EXPECT_TRUE(refused([](auto& bad) { bad.retrieval_heads = 2; }));
  EXPECT_TRUE(refused([](auto& bad) { bad.o = nullptr; }));
  EXPECT_TRUE(refused([&](auto& bad) { bad.o_bf16 = &o_bf16; }));  // both
  EXPECT_TRUE(refused([](auto& bad) { bad.tokens = (1 << 24) + 1; }));
  EXPECT_TRUE(refused([](auto& bad) { bad.heads = bad.kv_heads = cuda::hsa_kv_heads_max + 1; }));
  EXPECT_TRUE(refused([](auto& bad) { bad.k = 9; }));  // without a workspace
  EXPECT_TRUE(refused([](auto& bad) {
    bad.tokens = cuda::hsa_decode_tiles_max + 1;
    bad.path = cuda::HsaPath::decode;
  }));
}

}  // namespace
}  // namespace recalld
