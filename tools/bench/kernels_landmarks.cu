#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <utility>
#include <vector>

#include "kernels/landmark_topk.h"
#include "kernels/landmark_topk_batch_cuda.h"
#include "kernels/landmark_topk_cuda.h"
#include "kernels/landmark_topk_int8_cuda.h"
#include "tools/bench/gpu_inputs.cuh"
#include "tools/bench/gpu_timing.cuh"
#include "tools/bench/kernels.h"
#include "tools/bench/model_selections.h"

namespace recalld::bench {
namespace {

constexpr size_t gib = size_t{1} << 30;
constexpr size_t landmark_bytes = 2 * gib;

__global__ void fill(uint32_t* data, size_t count, uint32_t seed) {
  for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += static_cast<size_t>(gridDim.x) * blockDim.x) {
    uint32_t x = static_cast<uint32_t>(i) * 2654435761u + seed;
    x ^= x >> 16, x *= 2246822519u, x ^= x >> 13;
    // Two bf16 of either sign, between 0.5 and 2.
    data[i] = (x & 0x80ff80ffu) | 0x3f003f00u;
  }
}

struct Buffers {
  Bf16* landmarks = nullptr;
  Bf16* queries = nullptr;
  float* dots = nullptr;
  uint64_t* chunks = nullptr;
  void* workspace = nullptr;
  void* batch_workspace = nullptr;
  int8_t* codes = nullptr;
  float* scales = nullptr;
  void* int8_workspace = nullptr;
};

bool agrees(const Buffers& buffers, uint64_t n, uint32_t dim, uint32_t k) {
  std::vector<Bf16> query(dim), landmarks(n * dim);
  must(cudaMemcpy(query.data(), buffers.queries, dim * sizeof(Bf16), cudaMemcpyDeviceToHost), "copy");
  must(cudaMemcpy(landmarks.data(), buffers.landmarks, n * dim * sizeof(Bf16), cudaMemcpyDeviceToHost), "copy");
  std::vector<float> dots(n);
  landmark_dots_cpu(query, landmarks.data(), n, dots.data());
  TopK best(k);
  for (uint64_t i = 0; i < n; ++i) best.offer({i, dots[i]});
  const auto expected = best.take();
  std::vector<float> found(k);
  std::vector<uint64_t> chunks(k);
  must(cudaMemcpy(found.data(), buffers.dots, k * sizeof(float), cudaMemcpyDeviceToHost), "copy");
  must(cudaMemcpy(chunks.data(), buffers.chunks, k * sizeof(uint64_t), cudaMemcpyDeviceToHost), "copy");
  for (uint32_t i = 0; i < expected.size(); ++i)
    if (expected[i].chunk != chunks[i] || expected[i].dot != found[i]) return false;
  return true;
}

struct Shape {
  uint64_t n;
  uint32_t dim, k;
  uint32_t queries = 1;

  size_t bytes() const { return n * dim * sizeof(Bf16); }
  // How many such sets of landmarks there are to take in turn.
  int places() const {
    return static_cast<int>(std::min(landmark_bytes / bytes(), std::max<size_t>(1, cold_bytes / bytes())));
  }
};

void one_query(const Buffers& buffers, const Shape& shape, cudaStream_t stream, int place, uint32_t query = 0) {
  must(cuda::landmark_topk({.query = buffers.queries + query * shape.dim,
                            .landmarks = buffers.landmarks + place * shape.n * shape.dim,
                            .n = shape.n,
                            .dim = shape.dim,
                            .k = shape.k,
                            .dots = buffers.dots,
                            .chunks = buffers.chunks,
                            .workspace = buffers.workspace},
                           stream),
       "launch landmark_topk");
}

void all_queries(const Buffers& buffers, const Shape& shape, cudaStream_t stream, int place) {
  must(cuda::landmark_topk_batch({.queries = buffers.queries,
                                  .count = shape.queries,
                                  .landmarks = buffers.landmarks + place * shape.n * shape.dim,
                                  .n = shape.n,
                                  .dim = shape.dim,
                                  .k = shape.k,
                                  .dots = buffers.dots,
                                  .chunks = buffers.chunks,
                                  .workspace = buffers.batch_workspace},
                                 stream),
       "launch landmark_topk_batch");
}

bool bench_one(const Buffers& buffers, const Shape& shape, double bytes_per_us) {
  one_query(buffers, shape, nullptr, 0);
  must(cudaDeviceSynchronize(), "run landmark_topk");
  const bool right = agrees(buffers, shape.n, shape.dim, shape.k);
  const double cold =
      time_cold_us([&](cudaStream_t stream, int i) { one_query(buffers, shape, stream, i % shape.places()); });
  const double warm = time_us([&](cudaStream_t stream, int) { one_query(buffers, shape, stream, 0); });
  const double floor = static_cast<double>(shape.bytes()) / bytes_per_us;
  std::printf("%8lu x %4u, k %3u: %s; cold %8.2f us, %.2f of the read rate; warm %8.2f us; floor %8.2f us\n",
              static_cast<unsigned long>(shape.n), shape.dim, shape.k, right ? "as the CPU" : "NOT AS THE CPU", cold,
              floor / cold, warm, floor);
  return right;
}

// What the last call wrote.
std::pair<std::vector<float>, std::vector<uint64_t>> results(const Buffers& buffers, uint32_t count) {
  std::vector<float> dots(count);
  std::vector<uint64_t> chunks(count);
  must(cudaMemcpy(dots.data(), buffers.dots, count * sizeof(float), cudaMemcpyDeviceToHost), "copy");
  must(cudaMemcpy(chunks.data(), buffers.chunks, count * sizeof(uint64_t), cudaMemcpyDeviceToHost), "copy");
  return {dots, chunks};
}

bool bench_batch(const Buffers& buffers, const Shape& shape, double bytes_per_us) {
  all_queries(buffers, shape, nullptr, 0);
  const auto [dots, chunks] = results(buffers, shape.queries * shape.k);
  bool right = true;
  for (uint32_t query = 0; query < shape.queries; ++query) {
    one_query(buffers, shape, nullptr, 0, query);
    const auto [expected_dots, expected_chunks] = results(buffers, shape.k);
    right = right && std::equal(expected_dots.begin(), expected_dots.end(), dots.begin() + query * shape.k) &&
            std::equal(expected_chunks.begin(), expected_chunks.end(), chunks.begin() + query * shape.k);
  }
  const double one =
      time_cold_us([&](cudaStream_t stream, int i) { one_query(buffers, shape, stream, i % shape.places()); });
  const double cold =
      time_cold_us([&](cudaStream_t stream, int i) { all_queries(buffers, shape, stream, i % shape.places()); });
  const double warm = time_us([&](cudaStream_t stream, int) { all_queries(buffers, shape, stream, 0); });
  const double floor = static_cast<double>(shape.bytes()) / bytes_per_us;
  std::printf("%8lu x %4u, k %3u, %2u queries: %s; cold %8.2f us, %.2f x one query; warm %8.2f us; floor %8.2f us\n",
              static_cast<unsigned long>(shape.n), shape.dim, shape.k, shape.queries,
              right ? "as one by one" : "NOT AS ONE BY ONE", cold, cold / one, warm, floor);
  return right;
}

void by_codes(const Buffers& buffers, const Shape& shape, cudaStream_t stream, int place) {
  const uint64_t first = place * shape.n;
  must(cuda::landmark_topk_int8({.query = buffers.queries,
                                 .codes = buffers.codes + first * shape.dim,
                                 .scales = buffers.scales + first,
                                 .landmarks = buffers.landmarks + first * shape.dim,
                                 .n = shape.n,
                                 .dim = shape.dim,
                                 .k = shape.k,
                                 .dots = buffers.dots,
                                 .chunks = buffers.chunks,
                                 .workspace = buffers.int8_workspace},
                                stream),
       "launch landmark_topk_int8");
}

bool bench_int8(const Buffers& buffers, const Shape& shape, double bytes_per_us) {
  must(cuda::landmarks_to_int8(buffers.landmarks, shape.places() * shape.n, shape.dim, buffers.codes, buffers.scales,
                               nullptr),
       "make codes");
  by_codes(buffers, shape, nullptr, 0);
  const auto found = results(buffers, shape.k);
  one_query(buffers, shape, nullptr, 0);
  const bool right = found == results(buffers, shape.k);
  const double one =
      time_cold_us([&](cudaStream_t stream, int i) { one_query(buffers, shape, stream, i % shape.places()); });
  const double cold =
      time_cold_us([&](cudaStream_t stream, int i) { by_codes(buffers, shape, stream, i % shape.places()); });
  const double warm = time_us([&](cudaStream_t stream, int) { by_codes(buffers, shape, stream, 0); });
  const double floor = static_cast<double>(shape.bytes()) / 2 / bytes_per_us;
  std::printf("%8lu x %4u, k %3u: %s; cold %8.2f us, bf16 takes %.2f x that; warm %8.2f us; floor %8.2f us\n",
              static_cast<unsigned long>(shape.n), shape.dim, shape.k, right ? "as from bf16" : "NOT AS FROM BF16",
              cold, one / cold, warm, floor);
  return right;
}

// Some landmarks' codes, the first and the last among them.
bool codes_agree(const Buffers& buffers, const Shape& shape) {
  const uint64_t n = shape.n * shape.places();
  std::vector<Bf16> landmark(shape.dim);
  std::vector<int8_t> codes(shape.dim);
  float scale = 0;
  for (uint64_t row = 0; row < n; row = row == n - 1 ? n : std::min(row + n / 100 + 1, n - 1)) {
    must(cudaMemcpy(landmark.data(), buffers.landmarks + row * shape.dim, shape.dim * sizeof(Bf16),
                    cudaMemcpyDeviceToHost),
         "copy");
    must(cudaMemcpy(codes.data(), buffers.codes + row * shape.dim, shape.dim, cudaMemcpyDeviceToHost), "copy");
    must(cudaMemcpy(&scale, buffers.scales + row, sizeof scale, cudaMemcpyDeviceToHost), "copy");
    float most = 0;
    for (const Bf16 value : landmark) most = std::max(most, std::abs(to_float(value)));
    if (scale != most / 127) return false;
    for (uint32_t i = 0; i < shape.dim; ++i)
      if (codes[i] != std::nearbyint(to_float(landmark[i]) / scale)) return false;
  }
  return true;
}

bool bench_codes(const Buffers& buffers, const Shape& shape, double bytes_per_us) {
  const auto make = [&](cudaStream_t stream, int place) {
    const uint64_t first = place * shape.n;
    must(cuda::landmarks_to_int8(buffers.landmarks + first * shape.dim, shape.n, shape.dim,
                                 buffers.codes + first * shape.dim, buffers.scales + first, stream),
         "launch landmarks_to_int8");
  };
  for (int place = 0; place < shape.places(); ++place) make(nullptr, place);
  const bool right = codes_agree(buffers, shape);
  const double cold = time_cold_us([&](cudaStream_t stream, int i) { make(stream, i % shape.places()); });
  const double warm = time_us([&](cudaStream_t stream, int) { make(stream, 0); });
  const double floor = static_cast<double>(shape.bytes() * 3 / 2 + shape.n * sizeof(float)) / bytes_per_us;
  std::printf("%8lu x %4u: %s; cold %8.2f us, %.1f x the floor; warm %8.2f us; floor %8.2f us\n",
              static_cast<unsigned long>(shape.n), shape.dim, verdict(right), cold, cold / floor, warm, floor);
  return right;
}

// Landmarks as they are: those of the shipped model, whose numbers are not spread as evenly as made-up ones, and its
// own queries. Of the k best chunks by the CPU, how many are among those that codes and rescoring find.
bool bench_recall() {
  constexpr uint32_t n = 1 << 14, questions = 1024, k = 8;
  constexpr double recall_min = 0.999;
  const ModelLandmarks real = landmarks_by_model(n, questions);
  const Array<Bf16> landmarks(real.landmarks), queries(real.queries);
  const Array<int8_t> codes(real.landmarks.size());
  const Array<float> scales(n), dots(size_t{questions} * k);
  const Array<uint64_t> chunks(size_t{questions} * k);
  const Array<std::byte> workspace(cuda::landmark_topk_int8_workspace(k));
  must(cuda::landmarks_to_int8(landmarks.data(), n, real.dim, codes.data(), scales.data(), nullptr), "make codes");
  for (uint32_t question = 0; question < questions; ++question)
    must(cuda::landmark_topk_int8({.query = queries.data() + size_t{question} * real.dim,
                                   .codes = codes.data(),
                                   .scales = scales.data(),
                                   .landmarks = landmarks.data(),
                                   .n = n,
                                   .dim = real.dim,
                                   .k = k,
                                   .dots = dots.data() + size_t{question} * k,
                                   .chunks = chunks.data() + size_t{question} * k,
                                   .workspace = workspace.data()},
                                  nullptr),
         "launch landmark_topk_int8");
  const std::vector<uint64_t> found = chunks.host(size_t{questions} * k);

  uint32_t there = 0, same = 0;
  std::vector<float> all(n);
  for (uint32_t question = 0; question < questions; ++question) {
    const std::vector<Bf16> query(real.queries.begin() + size_t{question} * real.dim,
                                  real.queries.begin() + size_t{question + 1} * real.dim);
    landmark_dots_cpu(query, real.landmarks.data(), n, all.data());
    TopK best(k);
    for (uint64_t i = 0; i < n; ++i) best.offer({i, all[i]});
    const uint64_t* const of_question = found.data() + size_t{question} * k;
    uint32_t places = 0;
    const auto expected = best.take();
    for (uint32_t i = 0; i < k; ++i) {
      there += std::find(of_question, of_question + k, expected[i].chunk) != of_question + k ? 1 : 0;
      places += of_question[i] == expected[i].chunk ? 1 : 0;
    }
    same += places == k ? 1 : 0;
  }
  const double recall = static_cast<double>(there) / (static_cast<double>(questions) * k);
  const bool right = recall >= recall_min;
  std::printf(
      "%8u x %4u, landmarks of the shipped model, %u questions: recall@%u %.5f (goal %.3f)%s; all %u in the CPU's "
      "order "
      "for %u questions\n",
      n, real.dim, questions, k, recall, recall_min, right ? "" : ": TOO LOW", k, same);
  return right;
}

}  // namespace

bool bench_landmarks(double bytes_per_us) {
  constexpr size_t queries = size_t{cuda::landmark_topk_batch_max} * 1024;
  constexpr size_t results = size_t{cuda::landmark_topk_batch_max} * cuda::landmark_topk_max;
  Buffers buffers{.landmarks = device_memory<Bf16>(landmark_bytes / sizeof(Bf16)),
                  .queries = device_memory<Bf16>(queries),
                  .dots = device_memory<float>(results),
                  .chunks = device_memory<uint64_t>(results)};
  const size_t workspace = cuda::landmark_topk_workspace(cuda::landmark_topk_max);
  buffers.workspace = device_memory<std::byte>(workspace);
  must(cudaMemset(buffers.workspace, 0, workspace), "clear");
  buffers.batch_workspace = device_memory<std::byte>(cuda::landmark_topk_batch_workspace(cuda::landmark_topk_max));
  buffers.codes = device_memory<int8_t>(landmark_bytes / sizeof(Bf16));
  buffers.scales = device_memory<float>(landmark_bytes / sizeof(Bf16) / 256);  // of the narrowest landmarks below
  buffers.int8_workspace = device_memory<std::byte>(cuda::landmark_topk_int8_workspace(cuda::landmark_topk_max));
  fill<<<1024, 256>>>(reinterpret_cast<uint32_t*>(buffers.landmarks), landmark_bytes / 4, 1);
  fill<<<16, 256>>>(reinterpret_cast<uint32_t*>(buffers.queries), queries / 2, 2);
  must(cudaDeviceSynchronize(), "fill");

  bool right = true;
  std::printf("landmark_topk, one query, bf16\n");
  for (const Shape& shape :
       {Shape{1 << 20, 1024, 8}, Shape{1 << 20, 1024, 128}, Shape{1 << 20, 256, 8}, Shape{1 << 20, 256, 64},
        Shape{1 << 17, 1024, 8}, Shape{1 << 14, 1024, 8}, Shape{1 << 14, 256, 8}, Shape{1 << 10, 1024, 8}})
    right &= bench_one(buffers, shape, bytes_per_us);
  std::printf("landmark_topk_batch, bf16\n");
  for (const Shape& shape : {Shape{1 << 20, 256, 8, 64}, Shape{1 << 20, 256, 8, 32}, Shape{1 << 20, 256, 8, 8},
                             Shape{1 << 20, 256, 128, 64}, Shape{1 << 20, 1024, 8, 64}, Shape{1 << 17, 256, 8, 64},
                             Shape{1 << 14, 256, 8, 64}, Shape{1 << 10, 256, 8, 64}})
    right &= bench_batch(buffers, shape, bytes_per_us);
  std::printf("landmark_topk_int8, codes of 8 bits, rescored from bf16 in device memory\n");
  for (const Shape& shape :
       {Shape{1 << 20, 1024, 8}, Shape{1 << 20, 1024, 128}, Shape{1 << 20, 256, 8}, Shape{1 << 17, 1024, 8}})
    right &= bench_int8(buffers, shape, bytes_per_us);
  std::printf("landmarks_to_int8\n");
  for (const Shape& shape : {Shape{1 << 20, 256, 1}, Shape{1 << 12, 256, 1}})
    right &= bench_codes(buffers, shape, bytes_per_us);
  for (void* data :
       {static_cast<void*>(buffers.landmarks), static_cast<void*>(buffers.queries), static_cast<void*>(buffers.dots),
        static_cast<void*>(buffers.chunks), buffers.workspace, buffers.batch_workspace,
        static_cast<void*>(buffers.codes), static_cast<void*>(buffers.scales), buffers.int8_workspace})
    must(cudaFree(data), "free");
  std::printf("landmark_topk_int8, recall\n");
  right &= bench_recall();
  return right;
}

}  // namespace recalld::bench
