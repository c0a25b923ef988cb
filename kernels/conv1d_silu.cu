// A thread per four channels and 16 rows: it reads the taps - 1 rows before its own again, from the L1 cache mostly.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/conv1d_silu_cuda.h"

namespace recalld::cuda {
namespace {

constexpr int conv_threads = 128, conv_rows = 16;

__device__ __forceinline__ float silu(float x) {
  return __fdividef(x, 1.0f + __expf(-x));
}

__device__ __forceinline__ void store(float* to, const float4& value) {
  *reinterpret_cast<float4*>(to) = value;
}
__device__ __forceinline__ void store(Bf16* to, const float4& value) {
  auto* const pairs = reinterpret_cast<__nv_bfloat162*>(to);
  pairs[0] = __floats2bfloat162_rn(value.x, value.y);
  pairs[1] = __floats2bfloat162_rn(value.z, value.w);
}

// Four channels from `channel` on of the rows conv_rows · tile and on of a stream of `tokens` rows. input and y are at
// the stream's first row. The thread of the first tile alone touches the history.
template <int taps, class T>
__device__ __forceinline__ void convolve(const Conv1dSilu& conv, const float* input, uint32_t tokens, uint32_t tile,
                                         uint32_t channel, float* history, T* y) {
  const auto four = [](const float* from) { return *reinterpret_cast<const float4*>(from); };
  const auto row_of = [&](uint32_t row) {
    return four(input + static_cast<size_t>(row) * conv.input_stride + channel);
  };
  const uint32_t first = tile * conv_rows, rows = min(tokens - first, static_cast<uint32_t>(conv_rows));
  float4 last[taps - 1], old[taps - 1], weight[taps];  // `last`: the inputs before the row at hand, oldest first
#pragma unroll
  for (int k = 0; k + 1 < taps; ++k) {
    if (tile == 0)
      last[k] = old[k] = four(history + static_cast<size_t>(k) * conv.channels + channel);
    else
      last[k] = row_of(first - (taps - 1) + k);
  }
#pragma unroll
  for (int k = 0; k < taps; ++k) weight[k] = four(conv.weight + static_cast<size_t>(k) * conv.channels + channel);
  const float4 bias = four(conv.bias + channel);

  constexpr int ahead = 8;  // rows on their way at a time
#pragma unroll
  for (int begin = 0; begin < conv_rows; begin += ahead) {
    float4 loaded[ahead];
#pragma unroll
    for (int i = 0; i < ahead; ++i) loaded[i] = row_of(first + min(static_cast<uint32_t>(begin + i), rows - 1));
#pragma unroll
    for (int i = 0; i < ahead; ++i) {
      if (begin + i >= rows) break;
      float4 sum = bias;
#pragma unroll
      for (int k = 0; k < taps; ++k) {
        const float4 from = k + 1 < taps ? last[k] : loaded[i];
        sum = {fmaf(weight[k].x, from.x, sum.x), fmaf(weight[k].y, from.y, sum.y), fmaf(weight[k].z, from.z, sum.z),
               fmaf(weight[k].w, from.w, sum.w)};
      }
      store(y + static_cast<size_t>(first + begin + i) * conv.channels + channel,
            {silu(sum.x), silu(sum.y), silu(sum.z), silu(sum.w)});
#pragma unroll
      for (int k = 0; k + 2 < taps; ++k) last[k] = last[k + 1];
      last[taps - 2] = loaded[i];
    }
  }
  if (tile != 0) return;
#pragma unroll
  for (int k = 0; k + 1 < taps; ++k) {
    // Row tokens - (taps - 1) + k of the input; those before its first are the old history's.
    float4 value{};
    if (tokens + k >= taps - 1) value = row_of(tokens + k - (taps - 1));
#pragma unroll
    for (int o = 0; o + 1 < taps; ++o)
      if (tokens + k == o) value = old[o];
    store(history + static_cast<size_t>(k) * conv.channels + channel, value);
  }
}

struct ConvStreams {
  ConvStream of[conv_streams_max];
};

// grid: (threads for the four-channel groups of all tiles of the longest stream, streams)
template <int taps, class T>
__global__ void __launch_bounds__(conv_threads)
    conv_kernel(const Conv1dSilu conv, const __grid_constant__ ConvStreams streams, T* y) {
  const uint32_t groups = conv.channels / 4, thread = blockIdx.x * conv_threads + threadIdx.x;
  const uint32_t tile = thread / groups, channel = thread % groups * 4;
  const ConvStream& stream = streams.of[blockIdx.y];
  if (static_cast<uint64_t>(tile) * conv_rows >= stream.tokens) return;
  convolve<taps>(conv, conv.input + static_cast<size_t>(stream.first) * conv.input_stride, stream.tokens, tile, channel,
                 stream.history, y + static_cast<size_t>(stream.first) * conv.channels);
}

// grid: (threads for the four-channel groups, streams)
template <int taps, class T>
__global__ void __launch_bounds__(conv_threads) conv_step_kernel(const Conv1dSilu conv, float* const* histories, T* y) {
  const uint32_t channel = (blockIdx.x * conv_threads + threadIdx.x) * 4;
  if (channel >= conv.channels) return;
  convolve<taps>(conv, conv.input + static_cast<size_t>(blockIdx.y) * conv.input_stride, 1, 0, channel,
                 histories[blockIdx.y], y + static_cast<size_t>(blockIdx.y) * conv.channels);
}

bool fits(const Conv1dSilu& conv, uint32_t count) {
  return conv.channels > 0 && conv.channels % 4 == 0 && conv.input_stride % 4 == 0 && conv.taps >= 2 &&
         conv.taps <= 4 && count <= conv_streams_max;
}

unsigned conv_blocks(uint64_t threads) {
  return static_cast<unsigned>((threads + conv_threads - 1) / conv_threads);
}

template <class T>
cudaError_t convolve_streams(const Conv1dSilu& conv, const ConvStream* streams, uint32_t count, T* y,
                             cudaStream_t stream) {
  if (!fits(conv, count)) return cudaErrorInvalidValue;
  if (count == 0) return cudaSuccess;
  ConvStreams table{};
  uint32_t longest = 0;
  for (uint32_t i = 0; i < count; ++i) {
    if (streams[i].tokens == 0) return cudaErrorInvalidValue;
    longest = std::max(longest, streams[i].tokens);
    table.of[i] = streams[i];
  }
  const uint64_t threads = (uint64_t{longest} + conv_rows - 1) / conv_rows * (conv.channels / 4);
  if (threads >= uint64_t{1} << 31) return cudaErrorInvalidValue;
  const dim3 grid(conv_blocks(threads), count);
  if (conv.taps == 2) conv_kernel<2><<<grid, conv_threads, 0, stream>>>(conv, table, y);
  if (conv.taps == 3) conv_kernel<3><<<grid, conv_threads, 0, stream>>>(conv, table, y);
  if (conv.taps == 4) conv_kernel<4><<<grid, conv_threads, 0, stream>>>(conv, table, y);
  return cudaGetLastError();
}

template <class T>
cudaError_t convolve_step(const Conv1dSilu& conv, float* const* histories, uint32_t count, T* y, cudaStream_t stream) {
  if (!fits(conv, count)) return cudaErrorInvalidValue;
  if (count == 0) return cudaSuccess;
  const dim3 grid(conv_blocks(conv.channels / 4), count);
  if (conv.taps == 2) conv_step_kernel<2><<<grid, conv_threads, 0, stream>>>(conv, histories, y);
  if (conv.taps == 3) conv_step_kernel<3><<<grid, conv_threads, 0, stream>>>(conv, histories, y);
  if (conv.taps == 4) conv_step_kernel<4><<<grid, conv_threads, 0, stream>>>(conv, histories, y);
  return cudaGetLastError();
}

}  // namespace

cudaError_t conv1d_silu(const Conv1dSilu& conv, const ConvStream* streams, uint32_t count, float* y,
                        cudaStream_t stream) {
  return convolve_streams(conv, streams, count, y, stream);
}
cudaError_t conv1d_silu(const Conv1dSilu& conv, const ConvStream* streams, uint32_t count, Bf16* y,
                        cudaStream_t stream) {
  return convolve_streams(conv, streams, count, y, stream);
}
cudaError_t conv1d_silu_step(const Conv1dSilu& conv, float* const* histories, uint32_t count, float* y,
                             cudaStream_t stream) {
  return convolve_step(conv, histories, count, y, stream);
}
cudaError_t conv1d_silu_step(const Conv1dSilu& conv, float* const* histories, uint32_t count, Bf16* y,
                             cudaStream_t stream) {
  return convolve_step(conv, histories, count, y, stream);
}

}  // namespace recalld::cuda
