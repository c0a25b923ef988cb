// One block has one head of one chunk, and each of its warps 16 rows: the warp norms and rotates their q and k, and
// puts them with v into shared memory as bf16; then it multiplies its q by all keys, and the shares by all values, with
// the tensor cores. The scores of 16 rows by up to 80 keys stay in its registers, so a softmax is a row's own matter.
// The rows of qkv are read once and nothing else is large: several blocks a multiprocessor read while others multiply.
#include <cuda_runtime.h>

#include <bit>

#include "kernels/encoder_attention_cuda.h"
#include "kernels/tensor_core_device.cuh"

namespace recalld::cuda {
namespace {

using namespace tensor_core;

// A warp has as many rows as a product.
constexpr int tiles_max = encoder_rows_max / tile_rows;

// A head's rows in shared memory. Eight rows at the same column, 16 bytes of each, are in different banks.
template <int dim>
constexpr int row_elements = dim + 8;

// Lanes that prepare a row, eight elements each; some idle where dim is no power of two.
template <int dim>
constexpr int row_lanes = std::bit_ceil(unsigned{dim / 8});

__device__ __forceinline__ float4 load(const float* from) {
  return __ldg(reinterpret_cast<const float4*>(from));
}
__device__ __forceinline__ void add(float4& to, const float4& x) {
  to = {to.x + x.x, to.y + x.y, to.z + x.z, to.w + x.w};
}
__device__ __forceinline__ void scale(float4& to, float factor, const float4& x) {
  to = {to.x * factor * x.x, to.y * factor * x.y, to.z * factor * x.z, to.w * factor * x.w};
}
__device__ __forceinline__ void store(const float4& value, Bf16* to) {
  *reinterpret_cast<uint2*>(to) = {pack(value.x, value.y), pack(value.z, value.w)};
}

// Four elements of the first half of a head's row, and those of the other half that they are rotated with.
struct Pairs {
  float4 first, second;
};

// 1 / sqrt(mean(x²) + eps) of a row whose pairs lie in `lanes` neighbouring lanes.
template <int lanes>
__device__ __forceinline__ float norm_scale(const Pairs& x, int dim, float eps) {
  float squares = x.first.x * x.first.x;
  squares = fmaf(x.first.y, x.first.y, squares);
  squares = fmaf(x.first.z, x.first.z, squares);
  squares = fmaf(x.first.w, x.first.w, squares);
  squares = fmaf(x.second.x, x.second.x, squares);
  squares = fmaf(x.second.y, x.second.y, squares);
  squares = fmaf(x.second.z, x.second.z, squares);
  squares = fmaf(x.second.w, x.second.w, squares);
#pragma unroll
  for (int other = lanes / 2; other > 0; other /= 2) squares += __shfl_xor_sync(everyone, squares, other);
  return 1.0f / sqrtf(squares / static_cast<float>(dim) + eps);
}

__device__ __forceinline__ void rotate(float& first, float& second, float cos, float sin) {
  const float a = first, b = second;
  first = fmaf(-b, sin, a * cos);
  second = fmaf(a, sin, b * cos);
}
__device__ __forceinline__ void rotate(Pairs& x, const float4& cos, const float4& sin) {
  rotate(x.first.x, x.second.x, cos.x, sin.x);
  rotate(x.first.y, x.second.y, cos.y, sin.y);
  rotate(x.first.z, x.second.z, cos.z, sin.z);
  rotate(x.first.w, x.second.w, cos.w, sin.w);
}

// The warp's rows of q, k and v to shared memory; zeros where the chunk has no more rows. qkv: the head's q in the
// chunk's first row · bias: likewise · q, k, v: the warp's first row
template <int dim>
__device__ __forceinline__ void prepare(const EncoderAttention& all, const float* qkv, const float* bias, int first_row,
                                        int lane, Bf16* q, Bf16* k, Bf16* v) {
  constexpr int half = dim / 2, lanes = row_lanes<dim>, rows_at_once = warp / lanes;
  const int column = lane % lanes * 4;
  const bool in_row = column < half;
  const size_t width = static_cast<size_t>(all.heads) * dim;
#pragma unroll
  for (int first = 0; first < tile_rows; first += rows_at_once) {
    const int i = first + lane / lanes, row = first_row + i;
    const bool there = in_row && row < static_cast<int>(all.rows);
    Pairs parts[3] = {};
    if (there) {
      const float* const from = qkv + static_cast<size_t>(row) * all.qkv_stride + column;
#pragma unroll
      for (int part = 0; part < 3; ++part) parts[part] = {load(from + part * width), load(from + part * width + half)};
      if (bias != nullptr) {
#pragma unroll
        for (int part = 0; part < 3; ++part) {
          add(parts[part].first, load(bias + part * width + column));
          add(parts[part].second, load(bias + part * width + column + half));
        }
      }
    }
    const float q_scale = norm_scale<lanes>(parts[0], dim, all.eps),
                k_scale = norm_scale<lanes>(parts[1], dim, all.eps);
    if (there) {
      scale(parts[0].first, q_scale, load(all.q_norm + column));
      scale(parts[0].second, q_scale, load(all.q_norm + column + half));
      scale(parts[1].first, k_scale, load(all.k_norm + column));
      scale(parts[1].second, k_scale, load(all.k_norm + column + half));
      const float4 cos = load(all.cos + row * half + column), sin = load(all.sin + row * half + column);
      rotate(parts[0], cos, sin);
      rotate(parts[1], cos, sin);
    }
    if (in_row) {
      Bf16* const to[3] = {q, k, v};
#pragma unroll
      for (int part = 0; part < 3; ++part) {
        store(parts[part].first, to[part] + i * row_elements<dim> + column);
        store(parts[part].second, to[part] + i * row_elements<dim> + column + half);
      }
    }
  }
}

// The warp's q · Kᵀ: of 8 keys in each of `scores`.
template <int dim>
__device__ __forceinline__ void make_scores(const Bf16* q, const Bf16* k, int tiles, int lane,
                                            float (&scores)[2 * tiles_max][4]) {
  const Bf16* const q_row = q + lane % 16 * row_elements<dim> + lane / 16 * 8;
  const Bf16* const k_row = k + (lane / 16 * 8 + lane % 8) * row_elements<dim> + lane / 8 % 2 * 8;
#pragma unroll
  for (int step = 0; step < dim / 16; ++step) {
    const uint4 a = load_matrices(q_row + 16 * step);
#pragma unroll
    for (int tile = 0; tile < tiles_max; ++tile) {
      if (tile >= tiles) continue;
      const uint4 b = load_matrices(k_row + tile * tile_rows * row_elements<dim> + 16 * step);
      multiply(scores[2 * tile], a, b.x, b.y);
      multiply(scores[2 * tile + 1], a, b.z, b.w);
    }
  }
}

// softmax(factor · scores) over `keys` of them, as the left operands of the product with V; exponents are of 2. A lane
// has keys 2 (lane % 4) and the next one of every 8: of row lane / 4 first, then of row lane / 4 + 8.
__device__ __forceinline__ void make_shares(float (&scores)[2 * tiles_max][4], int keys, float factor, int lane,
                                            uint4 (&shares)[tiles_max]) {
  float top[2] = {-INFINITY, -INFINITY}, sum[2] = {};
#pragma unroll
  for (int i = 0; i < 2 * tiles_max; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (8 * i + lane % 4 * 2 + j % 2 >= keys) scores[i][j] = -INFINITY;
      top[j / 2] = fmaxf(top[j / 2], scores[i][j]);
    }
#pragma unroll
  for (float& of_row : top) of_row = max_of_quad(of_row);
#pragma unroll
  for (int i = 0; i < 2 * tiles_max; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      // The difference first: it is exact where it matters, however large the scores are.
      scores[i][j] = exp2_fast((scores[i][j] - top[j / 2]) * factor);
      sum[j / 2] += scores[i][j];
    }
  const float low = 1.0f / sum_of_quad(sum[0]), high = 1.0f / sum_of_quad(sum[1]);
#pragma unroll
  for (int tile = 0; tile < tiles_max; ++tile) {
    const auto &first = scores[2 * tile], &second = scores[2 * tile + 1];
    shares[tile] = {pack(first[0] * low, first[1] * low), pack(first[2] * high, first[3] * high),
                    pack(second[0] * low, second[1] * low), pack(second[2] * high, second[3] * high)};
  }
}

// shares · V, rounded, to the warp's rows `to`.
template <int dim>
__device__ __forceinline__ void make_values(const uint4 (&shares)[tiles_max], const Bf16* v, int tiles, int lane,
                                            Bf16* to) {
  const Bf16* const v_row = v + lane % 16 * row_elements<dim> + lane / 16 * 8;
  Bf16* const low = to + lane / 4 * row_elements<dim> + lane % 4 * 2;
  Bf16* const high = low + 8 * row_elements<dim>;
#pragma unroll
  for (int column = 0; column < dim; column += 16) {
    float values[2][4] = {};
#pragma unroll
    for (int tile = 0; tile < tiles_max; ++tile) {
      if (tile >= tiles) continue;
      const uint4 b = load_transposed(v_row + tile * tile_rows * row_elements<dim> + column);
      multiply(values[0], shares[tile], b.x, b.y);
      multiply(values[1], shares[tile], b.z, b.w);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      *reinterpret_cast<uint32_t*>(low + column + 8 * i) = pack(values[i][0], values[i][1]);
      *reinterpret_cast<uint32_t*>(high + column + 8 * i) = pack(values[i][2], values[i][3]);
    }
  }
}

// Grid: chunks x heads. Threads: a warp for every 16 rows. Shared memory: q, k and v.
template <int dim>
__global__ void __launch_bounds__(tiles_max* warp, dim <= 64 ? 4 : 3)
    attention_kernel(const EncoderAttention all, Bf16* out) {
  extern __shared__ __align__(16) unsigned char shared[];
  const int lane = static_cast<int>(threadIdx.x) % warp, in_block = static_cast<int>(threadIdx.x) / warp;
  const int tiles = static_cast<int>(blockDim.x) / warp, first_row = in_block * tile_rows;
  const uint32_t chunk = blockIdx.x / all.heads, head = blockIdx.x % all.heads;
  const size_t chunk_row = static_cast<size_t>(chunk) * all.rows;

  Bf16* const q = reinterpret_cast<Bf16*>(shared);
  Bf16* const k = q + tiles * tile_rows * row_elements<dim>;
  Bf16* const v = k + tiles * tile_rows * row_elements<dim>;
  const int own = first_row * row_elements<dim>;
  prepare<dim>(all, all.qkv + chunk_row * all.qkv_stride + head * dim,
               all.bias != nullptr ? all.bias + head * dim : nullptr, first_row, lane, q + own, k + own, v + own);
  __syncthreads();

  float scores[2 * tiles_max][4] = {};
  make_scores<dim>(q + own, k, tiles, lane, scores);
  uint4 shares[tiles_max];
  make_shares(scores, static_cast<int>(all.rows), 1.44269504f / sqrtf(static_cast<float>(dim)), lane, shares);
  // Nobody else reads this warp's q, and the warp is done with it.
  __syncwarp();
  make_values<dim>(shares, v, tiles, lane, q + own);
  __syncwarp();
  constexpr int row_pieces = dim / 8;  // of 16 bytes
  for (int i = lane; i < tile_rows * row_pieces; i += warp) {
    const int row = i / row_pieces, piece = i % row_pieces;
    if (first_row + row >= static_cast<int>(all.rows)) break;
    *reinterpret_cast<uint4*>(out + ((chunk_row + first_row + row) * all.heads + head) * dim + piece * 8) =
        *reinterpret_cast<const uint4*>(q + own + row * row_elements<dim> + piece * 8);
  }
}

template <int dim>
cudaError_t launch(const EncoderAttention& all, Bf16* out, cudaStream_t stream) {
  const unsigned tiles = (all.rows + tile_rows - 1) / tile_rows;
  constexpr size_t tile_bytes = 3 * tile_rows * row_elements<dim> * sizeof(Bf16);
  const cudaError_t status = cudaFuncSetAttribute(attention_kernel<dim>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                  static_cast<int>(tiles_max * tile_bytes));
  if (status != cudaSuccess) return status;
  attention_kernel<dim><<<all.chunks * all.heads, tiles * warp, tiles * tile_bytes, stream>>>(all, out);
  return cudaGetLastError();
}

}  // namespace

cudaError_t encoder_attention(const EncoderAttention& all, Bf16* out, cudaStream_t stream) {
  if (all.chunks > encoder_chunks_max || all.rows == 0 || all.rows > encoder_rows_max || all.heads == 0 ||
      all.heads > encoder_heads_max || all.head_dim == 0 || all.head_dim > encoder_head_dim_max ||
      all.head_dim % 16 != 0 || all.qkv_stride % 4 != 0 || all.qkv_stride < 3 * all.heads * all.head_dim)
    return cudaErrorInvalidValue;
  if (all.chunks == 0) return cudaSuccess;
  switch (all.head_dim) {
    case 16:
      return launch<16>(all, out, stream);
    case 32:
      return launch<32>(all, out, stream);
    case 48:
      return launch<48>(all, out, stream);
    case 64:
      return launch<64>(all, out, stream);
    case 80:
      return launch<80>(all, out, stream);
    case 96:
      return launch<96>(all, out, stream);
    case 112:
      return launch<112>(all, out, stream);
    default:
      return launch<128>(all, out, stream);
  }
}

}  // namespace recalld::cuda
