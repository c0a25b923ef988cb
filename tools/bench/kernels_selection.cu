// From the best landmarks to the chunks' slots, and the records' way over the bus, in the starter's shapes: 8 chunks a
// token, records of 16 KiB. Those of a step take a few KB: what they cost is their launch.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "kernels/chunk_selection_cuda.h"
#include "kernels/device_memory.h"
#include "tools/bench/gpu_inputs.cuh"
#include "tools/bench/gpu_timing.cuh"
#include "tools/bench/kernels.h"

namespace recalld::bench {
namespace {

constexpr uint32_t lanes = cuda::lanes_max, memory_chunks = 1 << 16, hidden = 384;
constexpr size_t kv_bytes = 16 << 10;

template <class Call>
bool report(const std::string& name, bool right, double bytes, double rate, const Call& call) {
  const Times times = times_of(places_of(bytes), call);
  const double floor = bytes / rate;
  std::printf("%-44s: %s; cold %7.2f us, warm %7.2f us; floor: bytes %7.4f us (%.3f MB); %.1f x the floor, %.1f x\n",
              name.c_str(), verdict(right), times.cold, times.warm, floor, bytes / 1e6, times.cold / floor,
              times.warm / floor);
  return right;
}

bool time_select(uint32_t lane_count, uint32_t tokens, uint32_t heads, uint32_t k, double rate) {
  const size_t of_lane = size_t{tokens} * heads * k, of_call = lane_count * of_lane;
  // Dots, ids of 8 bytes and a slot come in, slots and scores go out; ids and scores go to the host.
  const double bytes = static_cast<double>(of_call) * (4 + 8 + 4 + 2 * 4);
  const int places = places_of(bytes);
  std::vector<uint64_t> host_chunks;
  for (size_t i = 0; i < places * of_call; ++i)  // of one list all different
    host_chunks.push_back((i / k * 7919 + i % k * 509) % memory_chunks);
  std::vector<uint32_t> host_pages;
  for (uint32_t chunk = 0; chunk < memory_chunks; ++chunk) host_pages.push_back(chunk ^ 0x5555);
  const Array<float> dots(places * of_call, 1);
  const Array<uint64_t> chunks(host_chunks);
  const Array<uint32_t> pages(host_pages), slots(places * of_call), ready(lanes);
  const Array<float> scores(places * of_call);
  cuda::PinnedBuffer told, told_lanes;
  must(cuda::PinnedBuffer::allocate((2 * of_call + lanes) * sizeof(uint32_t), told), "allocate pinned memory");
  must(cuda::PinnedBuffer::allocate(places * lanes * sizeof(cuda::SelectionLane), told_lanes),
       "allocate pinned memory");
  constexpr float scale = 0.0625f;
  const auto call = [&](cudaStream_t stream, int place) {
    auto* const of_lanes = told_lanes.as<cuda::SelectionLane>() + size_t(place) * lanes;
    cuda::ChunkSelection selection;
    selection.lanes = of_lanes;
    selection.lane_count = lane_count;
    for (uint32_t i = 0; i < lane_count; ++i) {
      const size_t first = place * of_call + i * of_lane;
      of_lanes[i] = {.dots = dots.data() + first,
                     .chunks = chunks.data() + first,
                     .page_table = pages.data(),
                     .tokens = tokens,
                     .found = k,
                     .row = i * tokens,
                     .enters = true};
    }
    selection.heads = heads;
    selection.k = k;
    selection.scale = scale;
    selection.slots = slots.data() + place * of_call;
    selection.scores = scores.data() + place * of_call;
    selection.ready = ready.data();
    selection.told_ids = told.as<uint32_t>();
    selection.told_scores = reinterpret_cast<float*>(selection.told_ids + of_call);
    selection.told_ready = selection.told_ids + 2 * of_call;
    must(cuda::select_chunks(selection, stream), "launch select_chunks");
  };
  call(nullptr, 0);
  const auto host_dots = dots.host(of_call), found_scores = scores.host(of_call);
  const auto found_slots = slots.host(of_call), found_ready = ready.host(lanes);
  const auto* const found_ids = told.as<uint32_t>();
  bool right = true;
  for (size_t first = 0; first < of_call; first += k) {
    std::vector<std::pair<uint64_t, float>> list;
    for (size_t i = first; i < first + k; ++i) list.emplace_back(host_chunks[i], host_dots[i] * scale);
    std::ranges::sort(list, std::greater());
    for (size_t i = 0; i < k; ++i)
      right &= found_ids[first + i] == list[i].first && found_scores[first + i] == list[i].second &&
               found_slots[first + i] == host_pages[list[i].first];
  }
  for (uint32_t i = 0; i < lanes; ++i) right &= found_ready[i] == (i < lane_count ? 1 : 0);
  return report("select_chunks " + std::to_string(lane_count) + " x " + std::to_string(tokens) + " tokens, " +
                    std::to_string(heads) + " x " + std::to_string(k) + " chunks",
                right, bytes, rate, call);
}

const std::vector<uint32_t>& half_ready() {
  static const std::vector<uint32_t> ready{1, 0, 1, 1, 0, 0, 1, 0};
  return ready;
}

// Of the starter's four layers: 12 heads of 64, state 64.
bool time_point_states(double rate) {
  constexpr uint32_t layers = 4;
  constexpr size_t conv_floats = 3 * 896, layer_floats = conv_floats + 768 * 64, lane_floats = layers * layer_floats;
  const double bytes = layers * lanes * 2 * sizeof(float*) + lanes * sizeof(uint32_t);
  const Array<uint32_t> ready(half_ready());
  const Array<float> states(lanes * lane_floats), unwanted(lanes * layer_floats);
  const Array<float*> conv(layers * lanes), ssm(layers * lanes);
  const auto call = [&](cudaStream_t stream, int) {
    must(cuda::point_states({.ready = ready.data(),
                             .states = states.data(),
                             .lane_floats = lane_floats,
                             .unwanted = unwanted.data(),
                             .layers = layers,
                             .layer_floats = layer_floats,
                             .conv_floats = conv_floats,
                             .conv = conv.data(),
                             .ssm = ssm.data()},
                            stream),
         "launch point_states");
  };
  call(nullptr, 0);
  const auto found_conv = conv.host(layers * lanes), found_ssm = ssm.host(layers * lanes);
  bool right = true;
  for (size_t i = 0; i < layers * lanes; ++i) {
    const size_t layer = i / lanes, lane = i % lanes;
    float* const expected = half_ready()[lane] != 0 ? states.data() + lane * lane_floats + layer * layer_floats
                                                    : unwanted.data() + lane * layer_floats;
    right &= found_conv[i] == expected && found_ssm[i] == expected + conv_floats;
  }
  return report("point_states 4 layers", right, bytes, rate, call);
}

bool time_copy_rows(double rate) {
  constexpr size_t of_call = lanes * hidden;
  const double bytes = of_call / 2 * 2 * sizeof(float);  // half of the lanes are ready
  const int places = places_of(bytes);
  const Array<uint32_t> ready(half_ready());
  const Array<float> x(places * of_call, 1), y(places * of_call, 2);
  auto expected = y.host(of_call);
  const auto call = [&](cudaStream_t stream, int place) {
    must(cuda::copy_rows(x.data() + place * of_call, ready.data(), hidden, y.data() + place * of_call, stream),
         "launch copy_rows");
  };
  call(nullptr, 0);
  const auto host_x = x.host(of_call);
  for (size_t i = 0; i < of_call; ++i)
    if (half_ready()[i / hidden] != 0) expected[i] = host_x[i];
  return report("copy_rows 8 x 384, 4 of them ready", y.host(of_call) == expected, bytes, rate, call);
}

// Records from pinned memory into slots that lie across the cache.
bool time_fill(size_t count, double rate) {
  const double bytes = static_cast<double>(count) * kv_bytes;
  const int places = places_of(bytes);
  const size_t records = count * places, words = kv_bytes / sizeof(uint32_t);
  cuda::PinnedBuffer pinned;
  must(cuda::PinnedBuffer::allocate(records * kv_bytes, pinned), "allocate pinned memory");
  auto* const from = pinned.as<uint32_t>();
  for (size_t i = 0; i < records * words; ++i) from[i] = static_cast<uint32_t>(i) * 2654435761u;
  const Array<uint32_t> cache(records * words), pages(records);
  std::vector<cuda::SlotFill> fills;
  for (size_t i = 0; i < records; ++i)
    fills.push_back({.record = from + i * words,
                     .page_table = pages.data(),
                     .chunk = static_cast<uint32_t>(i),
                     .slot = static_cast<uint32_t>(records - 1 - i)});
  const auto call = [&](cudaStream_t stream, int place) {
    must(cuda::fill_slots(fills.data() + place * count, count, kv_bytes, cache.data(), stream), "launch fill_slots");
  };
  call(nullptr, 0);
  const auto found = cache.host(count * words, (records - count) * words), found_pages = pages.host(count);
  bool right = true;
  for (size_t i = 0; i < count; ++i)
    right &= found_pages[i] == fills[i].slot &&
             std::memcmp(found.data() + (count - 1 - i) * words, from + i * words, kv_bytes) == 0;
  const Times times = times_of(places, call);
  const double floor = bytes / rate;
  std::printf(
      "fill_slots %3zu records of 16 KiB from pinned memory: %s; cold %8.2f us, %5.1f GB/s, warm %8.2f us, %5.1f GB/s; "
      "floor: bytes %8.2f us (%.2f MB); %.1f x the floor, %.1f x\n",
      count, verdict(right), times.cold, bytes / times.cold / 1e3, times.warm, bytes / times.warm / 1e3, floor,
      bytes / 1e6, times.cold / floor, times.warm / floor);
  return right;
}

}  // namespace

bool bench_selection(double rate) {
  bool right = true;
  for (const auto& [heads, k] : {std::pair{1, 8}, std::pair{1, 64}, std::pair{5, 64}}) {
    right &= time_select(1, 1, heads, k, rate);
    right &= time_select(lanes, 1, heads, k, rate);
    right &= time_select(1, 64, heads, k, rate);
  }
  right &= time_point_states(rate);
  right &= time_copy_rows(rate);
  const double bus = bus_rate();
  std::printf("one copy of 256 MiB from pinned memory: %.1f GB/s, the floor of fill_slots\n", bus / 1e3);
  for (const size_t count : {1, 8, 64, 96, 512}) right &= time_fill(count, bus);
  return right;
}

}  // namespace recalld::bench
