// The scan is three kernels over the blocks of 64 tokens of all streams. `decays_kernel` turns dt into what each head
// does to time, a warp per block and head, and makes what all heads of a block share: the scores of its tokens.
// `states_kernel` carries the states through a stream's blocks in registers, nine warps per 32 of a head's state rows,
// and leaves the state before each block as bf16 operands in the workspace. `outputs_kernel` makes y, two warps per
// block and group of heads; it starts beside `states_kernel` and takes a block once its states are there. So only the
// running sum of states is sequential, in one order whatever the cut into calls, and all else fills the card.
#include <cuda_runtime.h>

#include <algorithm>
#include <utility>

#include "kernels/dependent_launch.cuh"
#include "kernels/softplus_device.cuh"
#include "kernels/ssd_scan_cuda.h"
#include "kernels/tensor_core_device.cuh"

namespace recalld::cuda {
namespace {

using tensor_core::everyone, tensor_core::exp2_fast, tensor_core::pack, tensor_core::shared_address, tensor_core::warp;

constexpr int block_tokens = ssd_block_tokens, head_dim = ssd_head_dim;

constexpr uint32_t window_blocks = 256;  // at most, of one launch of the three kernels

// What one head does to time in one block. Logarithms are of base 2; c is the running sum of dt a. A token that a last
// block lacks has dt = 0: it adds nothing and nothing decays.
struct Decay {
  float sums[block_tokens];  // c_t
  float from[block_tokens];  // c_s - log(dt_s), so that 2^(c_t - from_s) = exp(Σ dt a) dt_s
  // exp(c_63 - c_s) dt_s as a sum of two bf16, high and low. Tokens s, s + 1 share a word; the words are in the order
  // in which the lanes of an mma.m16n8k16 need them: [lane % 4][s / 16][s % 16 / 8].
  uint32_t until_end[2][block_tokens / 2];
};

// The blocks of one stream in a window.
struct Part {
  float* state;
  uint32_t first, tokens;
  uint32_t first_block;  // in the window
};

struct Window {
  const Bf16* xbc;
  const float* dt;
  const float* dt_bias;
  const float* a;
  const float* d;
  Bf16* y;
  uint32_t dt_stride, heads, channels, part_count, blocks;
  // Workspace. The states are [blocks, heads, head_dim / 16, state_size / 16, warp]: what each lane needs of 16 x 16
  // cells as the second operand of two mma.m16n8k16.
  uint4* states;
  Decay* decays;  // [blocks, heads]
  // C · Bᵀ, [blocks, block_tokens / 16 of t, block_tokens / 16 of s, warp]: what each lane needs of 16 x 16 scores as
  // the first operand of mma.m16n8k16; nothing above the diagonal.
  uint4* scores;
  uint32_t* ready;  // [blocks, heads] how many parts of the state are there
  Part parts[ssd_streams_max];
};

__device__ __forceinline__ float low(uint32_t pair) {
  return __uint_as_float(pair << 16);
}
__device__ __forceinline__ float high(uint32_t pair) {
  return __uint_as_float(pair & 0xffff0000u);
}

// value · (high + low), rounded about once.
__device__ __forceinline__ uint32_t scale(uint32_t value, uint32_t factor_high, uint32_t factor_low) {
  uint32_t result;
  asm("{\n\t.reg .b32 rest;\n\tmul.rn.bf16x2 rest, %1, %3;\n\tfma.rn.bf16x2 %0, %1, %2, rest;\n\t}"
      : "=r"(result)
      : "r"(value), "r"(factor_high), "r"(factor_low));
  return result;
}

// Operands as arrays, whose words loops go through.
__device__ __forceinline__ void mma(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  tensor_core::multiply(sum, {a[0], a[1], a[2], a[3]}, b0, b1);
}
__device__ __forceinline__ void to_array(const uint4& from, uint32_t (&to)[4]) {
  to[0] = from.x, to[1] = from.y, to[2] = from.z, to[3] = from.w;
}
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], uint32_t from) {
  to_array(tensor_core::load_matrices(from), to);
}
__device__ __forceinline__ void load_transposed(uint32_t (&to)[4], uint32_t from) {
  to_array(tensor_core::load_transposed(from), to);
}

// 16 bytes, or zeros.
__device__ __forceinline__ void copy_async(uint32_t to, const void* from, bool there = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
}
__device__ __forceinline__ void end_group() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int groups>
__device__ __forceinline__ void wait_all_but() {
  asm volatile("cp.async.wait_group %0;" ::"n"(groups) : "memory");
}

// Copies `rows` rows of `row_bytes` to rows `pitch` bytes apart; zeros for those from `there` on. `from` is the first
// row, `stride` elements apart. All threads of the block take part.
template <int threads, int rows, int row_bytes, int pitch>
__device__ __forceinline__ void copy_rows(uint32_t to, const Bf16* from, uint32_t stride, uint32_t there) {
  constexpr int pieces = row_bytes / 16;
  static_assert(rows * pieces % threads == 0);
#pragma unroll
  for (int i = 0; i < rows * pieces / threads; ++i) {
    const uint32_t piece = i * threads + threadIdx.x, row = piece / pieces, column = piece % pieces;
    const bool is_there = row < there;
    copy_async(to + row * pitch + column * 16, from + static_cast<size_t>(is_there ? row : 0) * stride + column * 8,
               is_there);
  }
}

// The rows of one block of the window.
__device__ __forceinline__ void find_tokens(const Window& window, uint32_t block, uint32_t& first, uint32_t& count) {
  uint32_t p = 0, end = window.part_count;
  while (end - p > 1) {
    const uint32_t middle = (p + end) / 2;
    (window.parts[middle].first_block <= block ? p : end) = middle;
  }
  const uint32_t before = (block - window.parts[p].first_block) * block_tokens;
  first = window.parts[p].first + before;
  count = min(window.parts[p].tokens - before, static_cast<uint32_t>(block_tokens));
}

constexpr int decay_warps = 8;  // heads of one thread block: their dt share sectors
constexpr int token_tiles = block_tokens / 16;

// One block's scores. Two warps have 16 rows of t, every other 16 of s each.
template <int state_size>
__device__ __forceinline__ void write_scores(const Window& window, uint32_t block, uint32_t first, uint32_t count) {
  constexpr int k_tiles = state_size / 16, pitch = state_size * 2 + 16, threads = decay_warps * warp;
  static_assert(decay_warps == 2 * token_tiles);
  __shared__ __align__(16) uint8_t b[block_tokens * pitch];
  __shared__ __align__(16) uint8_t c[block_tokens * pitch];
  const uint32_t lane = threadIdx.x % warp, t = threadIdx.x / (2 * warp);
  const Bf16* const rows = window.xbc + static_cast<size_t>(first) * window.channels + window.heads * head_dim;
  copy_rows<threads, block_tokens, state_size * 2, pitch>(shared_address(b), rows, window.channels, count);
  copy_rows<threads, block_tokens, state_size * 2, pitch>(shared_address(c), rows + state_size, window.channels, count);
  end_group();
  wait_all_but<0>();
  __syncthreads();

  const uint32_t c_from = shared_address(c) + (t * 16 + lane % 16) * pitch + lane / 16 * 16;
  const uint32_t b_from = shared_address(b) + (lane / 16 * 8 + lane % 8) * pitch + lane / 8 % 2 * 16;
  uint32_t of_c[k_tiles][4];
#pragma unroll
  for (int k = 0; k < k_tiles; ++k) load_matrices(of_c[k], c_from + k * 32);
  for (uint32_t s = threadIdx.x / warp % 2; s <= t; s += 2) {
    float sums[2][4] = {};
#pragma unroll
    for (int k = 0; k < k_tiles; ++k) {
      uint32_t of_b[4];
      load_matrices(of_b, b_from + s * 16 * pitch + k * 32);
#pragma unroll
      for (int j = 0; j < 2; ++j) mma(sums[j], of_c[k], of_b[2 * j], of_b[2 * j + 1]);
    }
    window.scores[((static_cast<size_t>(block) * token_tiles + t) * token_tiles + s) * warp + lane] = {
        pack(sums[0][0], sums[0][1]), pack(sums[0][2], sums[0][3]), pack(sums[1][0], sums[1][1]),
        pack(sums[1][2], sums[1][3])};
  }
}

// grid: (blocks, 1 + heads / decay_warps); the first row makes scores.
template <int state_size>
__global__ void __launch_bounds__(decay_warps* warp) decays_kernel(const __grid_constant__ Window window) {
  await_kernel_before();
  const uint32_t block = blockIdx.x, lane = threadIdx.x % warp;
  uint32_t first, count;
  find_tokens(window, block, first, count);
  if (blockIdx.y == 0) {
    write_scores<state_size>(window, block, first, count);
    return;
  }
  const uint32_t head = (blockIdx.y - 1) * decay_warps + threadIdx.x / warp;
  if (head >= window.heads) return;

  constexpr float log2_e = 1.4426950408889634f;
  const float bias = window.dt_bias[head], rate = window.a[head] * log2_e;
  float step[2];
#pragma unroll
  for (uint32_t i = 0; i < 2; ++i) {
    const uint32_t t = 2 * lane + i;
    step[i] = t < count ? softplus(window.dt[static_cast<size_t>(first + t) * window.dt_stride + head] + bias) : 0.0f;
  }
  const float own = step[0] * rate;
  float until = own + step[1] * rate;  // of this lane's two tokens and all before
#pragma unroll
  for (int width = 1; width < warp; width *= 2) {
    const float other = __shfl_up_sync(everyone, until, width);
    if (lane >= width) until += other;
  }
  float sums[2];
  sums[0] = __shfl_up_sync(everyone, until, 1);
  sums[0] = lane == 0 ? own : sums[0] + own;
  sums[1] = until;
  const float end = __shfl_sync(everyone, until, warp - 1);

  const size_t at = static_cast<size_t>(block) * window.heads + head;
  Decay& decay = window.decays[at];
  float weight[2], rest[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    decay.sums[2 * lane + i] = sums[i];
    decay.from[2 * lane + i] = sums[i] - log2f(step[i]);
    weight[i] = exp2f(end - sums[i]) * step[i];
  }
  const uint32_t upper = pack(weight[0], weight[1]);
  rest[0] = weight[0] - low(upper);
  rest[1] = weight[1] - high(upper);
  const uint32_t word = lane % 4 * 8 + lane / 8 * 2 + lane % 8 / 4;
  decay.until_end[0][word] = upper;
  decay.until_end[1][word] = pack(rest[0], rest[1]);
  if (lane == 0) window.ready[at] = 0;
}

constexpr int state_rows = 32;                                                    // of a thread block of states_kernel
constexpr int x_pitch = head_dim * 2 + 16, states_b_pitch = state_rows * 2 + 16;  // bytes; no bank conflicts
constexpr int states_loaders = 256;                                               // threads that load and multiply
constexpr int states_threads = states_loaders + warp;  // one more warp tells of states that are written
constexpr int states_blocks = 2;  // at a time: two independent chains of products hide each other's latency
constexpr int states_rounds = 3;  // of loads, one being used

struct StatesStage {
  alignas(16) uint8_t x[block_tokens * x_pitch];
  alignas(16) uint8_t b[block_tokens * states_b_pitch];
  alignas(16) uint32_t until_end[2][block_tokens / 2];
  alignas(16) float last_sums[4];
};

// grid: (state_size / state_rows, heads, parts). A warp has 16 rows and 16 columns of the state.
template <int state_size>
__global__ void __launch_bounds__(states_threads) states_kernel(const __grid_constant__ Window window) {
  extern __shared__ __align__(16) uint8_t shared[];
  StatesStage* const stages = reinterpret_cast<StatesStage*>(shared);
  const uint32_t slice = blockIdx.x, head = blockIdx.y;
  const Part& part = window.parts[blockIdx.z];
  const uint32_t lane = threadIdx.x % warp, n0 = threadIdx.x / warp % 2 * 16, p0 = threadIdx.x / (2 * warp) * 16;
  const bool tells = threadIdx.x >= states_loaders;
  const uint32_t row = lane / 4, pair = lane % 4;
  const uint32_t blocks = (part.tokens + block_tokens - 1) / block_tokens;
  const uint32_t inner = window.heads * head_dim;
  const size_t first_at = static_cast<size_t>(part.first_block) * window.heads + head;
  const Bf16* const rows = window.xbc + static_cast<size_t>(part.first) * window.channels;

  await_kernel_before();
  let_next_kernel_start();

  // The states before these blocks have been written, by threads that have passed a barrier since. A fence takes about
  // as long as a block: this warp has nothing else to do.
  const auto tell = [&](uint32_t begin, uint32_t end) {
    if (lane != 0) return;
    asm volatile("fence.acq_rel.gpu;" ::: "memory");
    for (uint32_t block = begin; block < end; ++block)
      asm volatile("red.relaxed.gpu.global.add.u32 [%0], 1;" ::"l"(window.ready + first_at +
                                                                   static_cast<size_t>(block) * window.heads)
                   : "memory");
  };
  if (tells) {
    for (uint32_t first = 0; first < blocks; first += states_blocks) {
      __syncthreads();
      if (first > 0) tell(first - states_blocks, first);
    }
    __syncthreads();
    tell((blocks - 1) / states_blocks * states_blocks, blocks);
    return;
  }

  // The round's blocks go to the stages of `place`.
  const auto load = [&](uint32_t first, uint32_t place) {
#pragma unroll
    for (int i = 0; i < states_blocks; ++i) {
      const uint32_t block = first + i;
      if (block >= blocks) break;
      StatesStage& stage = stages[place * states_blocks + i];
      const uint32_t there = min(part.tokens - block * block_tokens, static_cast<uint32_t>(block_tokens));
      const Bf16* const from = rows + static_cast<size_t>(block) * block_tokens * window.channels;
      copy_rows<states_loaders, block_tokens, head_dim * 2, x_pitch>(shared_address(stage.x), from + head * head_dim,
                                                                     window.channels, there);
      copy_rows<states_loaders, block_tokens, state_rows * 2, states_b_pitch>(
          shared_address(stage.b), from + inner + slice * state_rows, window.channels, there);
      const Decay& decay = window.decays[first_at + static_cast<size_t>(block) * window.heads];
      if (threadIdx.x < 16)
        copy_async(shared_address(stage.until_end[0] + threadIdx.x * 4), decay.until_end[0] + threadIdx.x * 4);
      if (threadIdx.x == 16) copy_async(shared_address(stage.last_sums), decay.sums + block_tokens - 4);
    }
    end_group();
  };
#pragma unroll
  for (int i = 0; i + 1 < states_rounds; ++i) load(i * states_blocks, i);

  // The transpose of the state: rows are of p, columns of the state. state[j] holds columns 8 j and on.
  float state[2][4];
  const auto cell = [&](int j, int i) -> float& {
    const uint32_t n = slice * state_rows + n0 + j * 8 + pair * 2 + i % 2;
    return part.state[(static_cast<size_t>(n) * window.heads + head) * head_dim + p0 + row + i / 2 * 8];
  };
#pragma unroll
  for (int j = 0; j < 2; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) state[j][i] = cell(j, i);

  // The lane's rows in x as a transposed [p, t] and in B as [t, n], 16 x 16 a time.
  const uint32_t x_at = (lane / 16 * 8 + lane % 8) * x_pitch + (p0 + lane / 8 % 2 * 8) * 2;
  const uint32_t b_at = lane % 16 * states_b_pitch + (n0 + lane / 16 * 8) * 2;
  uint32_t place = 0;
  for (uint32_t first = 0; first < blocks; first += states_blocks) {
    wait_all_but<states_rounds - 2>();
    __syncthreads();
    load(first + (states_rounds - 1) * states_blocks, (place + states_rounds - 1) % states_rounds);

    // All loads before the first product: a warp waits for them once.
    constexpr int steps = block_tokens / 16;
    uint32_t x[states_blocks][steps][4], b[states_blocks][steps][4], factors[states_blocks][2][2 * steps];
#pragma unroll
    for (int i = 0; i < states_blocks; ++i) {
      const StatesStage& stage = stages[place * states_blocks + i];
#pragma unroll
      for (int f = 0; f < 2; ++f)
#pragma unroll
        for (int j = 0; j < 2; ++j)
          *reinterpret_cast<uint4*>(factors[i][f] + j * 4) =
              *reinterpret_cast<const uint4*>(stage.until_end[f] + pair * 8 + j * 4);
#pragma unroll
      for (int k = 0; k < steps; ++k) {
        load_transposed(x[i][k], shared_address(stage.x) + x_at + k * 16 * x_pitch);
        load_transposed(b[i][k], shared_address(stage.b) + b_at + k * 16 * states_b_pitch);
      }
    }
    float added[states_blocks][2][4] = {};
#pragma unroll
    for (int k = 0; k < steps; ++k)
#pragma unroll
      for (int i = 0; i < states_blocks; ++i) {
#pragma unroll
        for (int w = 0; w < 4; ++w)
          x[i][k][w] = scale(x[i][k][w], factors[i][0][2 * k + w / 2], factors[i][1][2 * k + w / 2]);
        mma(added[i][0], x[i][k], b[i][k][0], b[i][k][1]);
        mma(added[i][1], x[i][k], b[i][k][2], b[i][k][3]);
      }
#pragma unroll
    for (int i = 0; i < states_blocks; ++i) {
      const uint32_t block = first + i;
      if (block >= blocks) break;
      const size_t at = first_at + static_cast<size_t>(block) * window.heads;
      window
          .states[((at * (head_dim / 16) + p0 / 16) * (state_size / 16) + slice * (state_rows / 16) + n0 / 16) * warp +
                  lane] = {pack(state[0][0], state[0][1]), pack(state[1][0], state[1][1]),
                           pack(state[0][2], state[0][3]), pack(state[1][2], state[1][3])};
      const float decay = exp2_fast(stages[place * states_blocks + i].last_sums[3]);
#pragma unroll
      for (int j = 0; j < 2; ++j)
#pragma unroll
        for (int c = 0; c < 4; ++c) state[j][c] = fmaf(decay, state[j][c], added[i][j][c]);
    }
    place = (place + 1) % states_rounds;
  }
  __syncthreads();
#pragma unroll
  for (int j = 0; j < 2; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) cell(j, i) = state[j][i];
}

constexpr int outputs_threads = 64, outputs_rows = 32;  // a warp has 32 rows of t

template <int state_size>
struct OutputsShared {
  static constexpr int c_pitch = state_size * 2 + 16;
  struct Stage {
    uint4 state[head_dim / 16 * (state_size / 16) * warp];
    alignas(16) uint8_t x[block_tokens * x_pitch];
    alignas(16) float sums[block_tokens];
    alignas(16) float from[block_tokens];
  };
  Stage stages[2];

  // It goes to registers before the second stage is loaded.
  __device__ uint8_t* c() { return reinterpret_cast<uint8_t*>(stages + 1); }
  static_assert(block_tokens * c_pitch <= sizeof(Stage));
};

// Lanes of a quad exchange words: word i of lane j becomes word j of lane i.
__device__ __forceinline__ void transpose_quad(uint32_t (&words)[4], uint32_t pair) {
  const bool odd = pair % 2 != 0, upper = pair >= 2;
  uint32_t sent[2] = {odd ? words[0] : words[1], odd ? words[2] : words[3]};
  sent[0] = __shfl_xor_sync(everyone, sent[0], 1);
  sent[1] = __shfl_xor_sync(everyone, sent[1], 1);
  words[0] = odd ? sent[0] : words[0];
  words[1] = odd ? words[1] : sent[0];
  words[2] = odd ? sent[1] : words[2];
  words[3] = odd ? words[3] : sent[1];
  sent[0] = upper ? words[0] : words[2];
  sent[1] = upper ? words[1] : words[3];
  sent[0] = __shfl_xor_sync(everyone, sent[0], 2);
  sent[1] = __shfl_xor_sync(everyone, sent[1], 2);
  words[0] = upper ? sent[0] : words[0];
  words[1] = upper ? sent[1] : words[1];
  words[2] = upper ? words[2] : sent[0];
  words[3] = upper ? words[3] : sent[1];
}

// grid: (groups of `group` heads, blocks)
template <int state_size>
__global__ void __launch_bounds__(outputs_threads, 4)
    outputs_kernel(const __grid_constant__ Window window, uint32_t group) {
  using Shared = OutputsShared<state_size>;
  constexpr int k_tiles = state_size / 16, s_tiles = token_tiles, tiles = outputs_rows / 16;
  extern __shared__ __align__(16) uint8_t bytes[];
  Shared& shared = *reinterpret_cast<Shared*>(bytes);
  const uint32_t lane = threadIdx.x % warp, t0 = threadIdx.x / warp * outputs_rows;
  const uint32_t row = lane / 4, pair = lane % 4;
  const uint32_t block = blockIdx.y, inner = window.heads * head_dim;
  const uint32_t head_begin = blockIdx.x * group, head_end = min(head_begin + group, window.heads);
  uint32_t first, count;
  find_tokens(window, block, first, count);
  const Bf16* const rows = window.xbc + static_cast<size_t>(first) * window.channels;

  copy_rows<outputs_threads, block_tokens, state_size * 2, Shared::c_pitch>(
      shared_address(shared.c()), rows + inner + state_size, window.channels, count);
  end_group();
  uint32_t scores[tiles][s_tiles][4];  // [rows t0 + 16 i, s]
#pragma unroll
  for (int i = 0; i < tiles; ++i)
#pragma unroll
    for (int s = 0; s < s_tiles; ++s) {
      const uint32_t t = t0 / 16 + i;
      if (s > t) continue;  // later tokens only
      *reinterpret_cast<uint4*>(scores[i][s]) =
          __ldcg(window.scores + ((static_cast<size_t>(block) * s_tiles + t) * s_tiles + s) * warp + lane);
    }

  const auto load = [&](uint32_t head) {
    if (head < head_end) {
      auto& stage = shared.stages[(head - head_begin) % 2];
      const size_t at = static_cast<size_t>(block) * window.heads + head;
      copy_rows<outputs_threads, block_tokens, head_dim * 2, x_pitch>(shared_address(stage.x), rows + head * head_dim,
                                                                      window.channels, count);
      if (threadIdx.x < 32) {  // sums and from lie one after the other, there as here
        const float* const decay = window.decays[at].sums + threadIdx.x * 4;
        copy_async(shared_address(stage.sums + threadIdx.x % 16 * 4) +
                       (threadIdx.x < 16 ? 0 : static_cast<uint32_t>(sizeof(stage.sums))),
                   decay);
      }
      if (lane == 0) {
        uint32_t parts = 0;
        do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(parts) : "l"(window.ready + at) : "memory");
        while (parts != state_size / state_rows);
      }
      __syncwarp();
      constexpr int pieces = head_dim / 16 * k_tiles * warp;
      const uint4* const from = window.states + at * pieces;
#pragma unroll
      for (int i = 0; i < pieces / outputs_threads; ++i)
        copy_async(shared_address(stage.state + i * outputs_threads + threadIdx.x),
                   from + i * outputs_threads + threadIdx.x);
    }
    end_group();
  };

  load(head_begin);
  wait_all_but<1>();
  __syncthreads();
  uint32_t c[tiles][k_tiles][4];  // [rows t0 + 16 i, states]
  {
    const uint32_t from = shared_address(shared.c()) + (t0 + lane % 16) * Shared::c_pitch + lane / 16 * 16;
#pragma unroll
    for (int i = 0; i < tiles; ++i)
#pragma unroll
      for (int k = 0; k < k_tiles; ++k) load_matrices(c[i][k], from + i * 16 * Shared::c_pitch + k * 32);
  }
  for (uint32_t head = head_begin; head < head_end; ++head) {
    wait_all_but<0>();
    __syncthreads();
    load(head + 1);
    const auto& stage = shared.stages[(head - head_begin) % 2];

    float y[tiles][8][4] = {};  // [rows t0 + 16 i, columns 8 j]
#pragma unroll
    for (int k = 0; k < k_tiles; ++k)
#pragma unroll
      for (int p = 0; p < head_dim / 16; ++p) {
        const uint4 state = stage.state[(p * k_tiles + k) * warp + lane];
#pragma unroll
        for (int i = 0; i < tiles; ++i) {
          mma(y[i][2 * p], c[i][k], state.x, state.y);
          mma(y[i][2 * p + 1], c[i][k], state.z, state.w);
        }
      }

    float sums[tiles][2];  // of rows t0 + 16 i + 8 j + row
#pragma unroll
    for (int i = 0; i < tiles; ++i)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        sums[i][j] = stage.sums[t0 + 16 * i + 8 * j + row];
        const float since_start = exp2_fast(sums[i][j]);
#pragma unroll
        for (int p = 0; p < 8; ++p) {
          y[i][p][2 * j] *= since_start;
          y[i][p][2 * j + 1] *= since_start;
        }
      }

    const float skip = __ldg(window.d + head);
    const uint32_t x_from = shared_address(stage.x) + (lane / 8 % 2 * 8 + lane % 8) * x_pitch + lane / 16 * 16;
#pragma unroll
    for (int s = 0; s < s_tiles; ++s) {
      if (s >= (t0 + outputs_rows) / 16) break;
      uint32_t x[head_dim / 16][4];
#pragma unroll
      for (int p = 0; p < head_dim / 16; ++p) load_transposed(x[p], x_from + s * 16 * x_pitch + p * 32);
      float from[2][2];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float2 two = *reinterpret_cast<const float2*>(stage.from + s * 16 + j * 8 + pair * 2);
        from[j][0] = two.x;
        from[j][1] = two.y;
      }
#pragma unroll
      for (int i = 0; i < tiles; ++i) {
        const uint32_t own = t0 / 16 + i;
        if (s > own) continue;  // later tokens only
        uint32_t mixed[4];
#pragma unroll
        for (int w = 0; w < 4; ++w) {  // rows 8 (w % 2), columns 8 (w / 2)
          float value[2] = {low(scores[i][s][w]) * exp2_fast(sums[i][w % 2] - from[w / 2][0]),
                            high(scores[i][s][w]) * exp2_fast(sums[i][w % 2] - from[w / 2][1])};
          if (s == own) {
            const int t = static_cast<int>(row) + w % 2 * 8, column = static_cast<int>(pair) * 2 + w / 2 * 8;
#pragma unroll
            for (int e = 0; e < 2; ++e)
              value[e] = column + e > t ? 0.0f : (column + e == t ? value[e] + skip : value[e]);
          }
          mixed[w] = pack(value[0], value[1]);
        }
#pragma unroll
        for (int p = 0; p < head_dim / 16; ++p) {
          mma(y[i][2 * p], mixed, x[p][0], x[p][1]);
          mma(y[i][2 * p + 1], mixed, x[p][2], x[p][3]);
        }
      }
    }

#pragma unroll
    for (int i = 0; i < tiles; ++i)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const uint32_t t = t0 + 16 * i + 8 * j + row;
        Bf16* const to = window.y + static_cast<size_t>(first + t) * inner + head * head_dim;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          uint32_t words[4];
#pragma unroll
          for (int p = 0; p < 4; ++p) words[p] = pack(y[i][half * 4 + p][2 * j], y[i][half * 4 + p][2 * j + 1]);
          transpose_quad(words, pair);
          if (t < count)
            *reinterpret_cast<uint4*>(to + (half * 4 + pair) * 8) = {words[0], words[1], words[2], words[3]};
        }
      }
  }

  // This grid may end before states_kernel has written the last states, and the next one in the stream must not start
  // before.
  if (blockIdx.y + 1 == gridDim.y && blockIdx.x + 1 == gridDim.x) await_kernel_before();
}

size_t aligned(size_t bytes) {
  return (bytes + 255) / 256 * 256;
}

// The workspace of `blocks` blocks, from `base` on. Returns its end.
uint8_t* place(Window& window, uint32_t state_size, uint64_t blocks, uint8_t* base) {
  const size_t count = static_cast<size_t>(blocks) * window.heads;
  window.states = reinterpret_cast<uint4*>(base);
  base += aligned(count * state_size * head_dim * sizeof(Bf16));
  window.decays = reinterpret_cast<Decay*>(base);
  base += aligned(count * sizeof(Decay));
  window.scores = reinterpret_cast<uint4*>(base);
  base += aligned(blocks * token_tiles * token_tiles * warp * sizeof(uint4));
  window.ready = reinterpret_cast<uint32_t*>(base);
  return base + aligned(count * sizeof(uint32_t));
}

int multiprocessors() {
  int device = 0, count = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 1;
  if (cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) return 1;
  return count;
}

template <class... Args>
cudaError_t launch_kernel(void (*kernel)(Args...), dim3 grid, int threads, size_t shared_bytes, cudaStream_t stream,
                          const Args&... args) {
  // A multiprocessor cannot divide its memory anew while thread blocks run, so all kernels ask for the same.
  for (const auto& [attribute, value] :
       {std::pair{cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)},
        std::pair{cudaFuncAttributePreferredSharedMemoryCarveout, static_cast<int>(cudaSharedmemCarveoutMaxShared)}})
    if (const cudaError_t status = cudaFuncSetAttribute(kernel, attribute, value); status != cudaSuccess) return status;
  cudaLaunchAttribute attribute = early_start();
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, args...);
}

template <int state_size>
cudaError_t launch(const Window& window, cudaStream_t stream) {
  if (const cudaError_t status = launch_kernel(decays_kernel<state_size>,
                                               dim3(window.blocks, 1 + (window.heads + decay_warps - 1) / decay_warps),
                                               decay_warps * warp, 0, stream, window);
      status != cudaSuccess)
    return status;
  // It comes when all of decays_kernel's thread blocks have ended: beside them, its own would crowd where they leave
  // room, and the slowest one counts.
  if (const cudaError_t status =
          launch_kernel(states_kernel<state_size>, dim3(state_size / state_rows, window.heads, window.part_count),
                        states_threads, states_rounds * states_blocks * sizeof(StatesStage), stream, window);
      status != cudaSuccess)
    return status;
  // A group shares C and its scores, but the card must be filled.
  uint32_t group = 4;
  const auto wanted = static_cast<uint32_t>(multiprocessors()) * 16;
  while (group > 1 && window.blocks * ((window.heads + group - 1) / group) < wanted) group /= 2;
  return launch_kernel(outputs_kernel<state_size>, dim3((window.heads + group - 1) / group, window.blocks),
                       outputs_threads, sizeof(OutputsShared<state_size>), stream, window, group);
}

}  // namespace

size_t ssd_scan_workspace(uint32_t heads, uint32_t state_size, uint64_t tokens, uint32_t streams) {
  // Each stream may end in a block that is not full.
  const uint64_t blocks = std::min<uint64_t>(tokens / block_tokens + streams, window_blocks);
  Window window{};
  window.heads = heads;
  uint8_t* const base = nullptr;
  return static_cast<size_t>(place(window, state_size, blocks, base) - base);
}

cudaError_t ssd_scan(const SsdScan& scan, cudaStream_t stream) {
  constexpr uint32_t heads_max = 65535;  // of a grid
  if (scan.heads == 0 || scan.heads > heads_max || (scan.state_size != 64 && scan.state_size != 128) ||
      scan.stream_count == 0 || scan.stream_count > ssd_streams_max)
    return cudaErrorInvalidValue;
  uint64_t blocks = 0;  // of all streams
  for (uint32_t i = 0; i < scan.stream_count; ++i) {
    if (scan.streams[i].tokens == 0) return cudaErrorInvalidValue;
    blocks += (uint64_t{scan.streams[i].tokens} + block_tokens - 1) / block_tokens;
  }

  Window window{};
  window.xbc = scan.xbc;
  window.dt = scan.dt;
  window.dt_bias = scan.dt_bias;
  window.a = scan.a;
  window.d = scan.d;
  window.y = scan.y;
  window.dt_stride = scan.dt_stride;
  window.heads = scan.heads;
  window.channels = scan.heads * head_dim + 2 * scan.state_size;
  place(window, scan.state_size, std::min<uint64_t>(blocks, window_blocks), static_cast<uint8_t*>(scan.workspace));

  uint32_t next = 0, done = 0;  // the stream at hand and how many of its tokens are in windows
  while (next < scan.stream_count) {
    window.part_count = window.blocks = 0;
    while (next < scan.stream_count && window.blocks < window_blocks) {
      const SsdStream& from = scan.streams[next];
      const uint32_t tokens = std::min(from.tokens - done, (window_blocks - window.blocks) * block_tokens);
      window.parts[window.part_count++] = {from.state, from.first + done, tokens, window.blocks};
      window.blocks += (tokens + block_tokens - 1) / block_tokens;
      done += tokens;
      if (done == from.tokens) ++next, done = 0;
    }
    const cudaError_t status = scan.state_size == 64 ? launch<64>(window, stream) : launch<128>(window, stream);
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

}  // namespace recalld::cuda
