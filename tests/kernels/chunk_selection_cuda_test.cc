// Chunks between their scores and the attention to them against plain loops, and records on their way into the cache.
// Skipped where there is no GPU.
#include "kernels/chunk_selection_cuda.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/device_memory.h"
#include "tests/support/device_array.h"

namespace recalld {
namespace {

using cuda::lanes_max;
using cuda::no_chunk;

constexpr float nan = std::numeric_limits<float>::quiet_NaN();
constexpr float scale = 0.125f;
constexpr int before_byte = 0xa5;  // of what a kernel has not written
constexpr uint32_t before_word = 0xa5a5a5a5;

// ---- select_chunks

struct Shape {
  uint32_t heads, k;
  std::string name() const { return "heads " + std::to_string(heads) + " k " + std::to_string(k); }
};

// The tokens of a lane with chunks at random out of more than k, all of them cached.
struct Lane {
  uint32_t tokens = 0, found = 0, row = 0;
  bool enters = false;
  std::vector<float> dots;
  std::vector<uint64_t> chunks;
  std::vector<uint32_t> pages;  // of the memory

  static Lane idle(uint32_t row) {
    Lane lane;
    lane.row = row;
    return lane;
  }
  static Lane random(const Shape& shape, uint32_t tokens, uint32_t found, uint32_t row, bool enters, uint32_t seed) {
    Lane lane{.tokens = tokens, .found = found, .row = row, .enters = enters, .dots = {}, .chunks = {}, .pages = {}};
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<uint64_t> all(shape.k + 3);
    std::iota(all.begin(), all.end(), uint64_t{0});
    for (uint32_t list = 0; list < tokens * shape.heads; ++list) {
      // Every third list has its predecessor's chunks.
      if (list % 3 != 1) std::ranges::shuffle(all, random);
      for (uint32_t i = 0; i < shape.k; ++i) {
        // Behind the ones found lies what must not be followed.
        lane.chunks.push_back(i < found ? all[i] : std::numeric_limits<uint64_t>::max());
        lane.dots.push_back(normal(random));
      }
    }
    for (uint32_t chunk = 0; chunk < all.size(); ++chunk) lane.pages.push_back(1000 + (chunk * 7 + seed) % 997);
    return lane;
  }
};

struct Selected {
  std::vector<uint32_t> slots, ids;
  std::vector<float> scores;
  std::vector<uint32_t> ready;
};

struct Problem {
  Shape shape;
  std::vector<Lane> lanes;
  std::vector<uint32_t> ready_before;  // [lanes_max], or empty in the first group

  size_t rows() const {
    size_t rows = 1;
    for (const Lane& lane : lanes) rows = std::max<size_t>(rows, lane.row + std::max(lane.tokens, 1u));
    return rows + 1;  // of which the last one is nobody's
  }

  Selected on_gpu() const {
    std::vector<std::unique_ptr<DeviceArray<float>>> dots;
    std::vector<std::unique_ptr<DeviceArray<uint64_t>>> chunks;
    std::vector<std::unique_ptr<DeviceArray<uint32_t>>> pages;
    cuda::PinnedBuffer told_lanes;
    must(cuda::PinnedBuffer::allocate(lanes_max * sizeof(cuda::SelectionLane), told_lanes));
    cuda::ChunkSelection selection;
    selection.lanes = told_lanes.as<cuda::SelectionLane>();
    selection.lane_count = static_cast<uint32_t>(lanes.size());
    for (size_t i = 0; i < lanes.size(); ++i) {
      const Lane& lane = lanes[i];
      dots.push_back(std::make_unique<DeviceArray<float>>(std::span(lane.dots)));
      chunks.push_back(std::make_unique<DeviceArray<uint64_t>>(std::span(lane.chunks)));
      pages.push_back(std::make_unique<DeviceArray<uint32_t>>(std::span(lane.pages)));
      told_lanes.as<cuda::SelectionLane>()[i] = {.dots = lane.tokens > 0 ? dots.back()->data() : nullptr,
                                                 .chunks = lane.tokens > 0 ? chunks.back()->data() : nullptr,
                                                 .page_table = lane.tokens > 0 ? pages.back()->data() : nullptr,
                                                 .tokens = lane.tokens,
                                                 .found = lane.found,
                                                 .row = lane.row,
                                                 .enters = lane.enters};
    }
    const size_t places = rows() * shape.heads * shape.k;
    const DeviceArray<uint32_t> slots(places), ready(lanes_max), before(ready_before);
    const DeviceArray<float> scores(places);
    for (const auto* array : {&slots, &ready}) array->fill(before_byte);
    scores.fill(before_byte);
    cuda::PinnedBuffer told;  // ids, scores, ready
    must(cuda::PinnedBuffer::allocate((2 * places + lanes_max) * sizeof(uint32_t), told));
    std::memset(told.as<void>(), before_byte, told.bytes());
    selection.heads = shape.heads;
    selection.k = shape.k;
    selection.scale = scale;
    selection.ready_before = ready_before.empty() ? nullptr : before.data();
    selection.slots = slots.data();
    selection.scores = scores.data();
    selection.ready = ready.data();
    selection.told_ids = told.as<uint32_t>();
    selection.told_scores = reinterpret_cast<float*>(selection.told_ids + places);
    selection.told_ready = selection.told_ids + 2 * places;
    must(cuda::select_chunks(selection, nullptr));
    Selected selected{slots.host(), {}, scores.host(), ready.host()};  // it has run
    selected.ids.assign(selection.told_ids, selection.told_ids + places);
    EXPECT_TRUE(same_bits<float>(std::span(selection.told_scores, places), selected.scores));
    EXPECT_TRUE(same_bits<uint32_t>(std::span(selection.told_ready, lanes_max), selected.ready));
    return selected;
  }

  Selected defined() const {
    const size_t of_row = shape.heads * shape.k, places = rows() * of_row;
    float score_before = 0;
    std::memcpy(&score_before, &before_word, sizeof score_before);
    Selected all{std::vector<uint32_t>(places, before_word), std::vector<uint32_t>(places, before_word),
                 std::vector<float>(places, score_before), std::vector<uint32_t>(lanes_max, 0)};
    for (size_t i = 0; i < lanes.size(); ++i) {
      const Lane& lane = lanes[i];
      const size_t first = lane.row * of_row, end = first + std::max(lane.tokens, 1u) * of_row;
      std::fill(all.slots.begin() + first, all.slots.begin() + end, no_chunk);
      std::fill(all.ids.begin() + first, all.ids.begin() + end, no_chunk);
      std::fill(all.scores.begin() + first, all.scores.begin() + end, 0.0f);
      bool ready = lane.tokens > 0 && (lane.enters || (!ready_before.empty() && ready_before[i] != 0));
      for (size_t list = 0; list < lane.tokens * shape.heads; ++list) {
        std::vector<std::pair<uint64_t, float>> there;
        for (size_t place = list * shape.k; place < list * shape.k + lane.found; ++place)
          if (!std::isnan(lane.dots[place])) there.emplace_back(lane.chunks[place], lane.dots[place]);
        std::ranges::sort(there, std::greater());
        for (size_t place = first + list * shape.k; const auto& [chunk, dot] : there) {
          all.slots[place] = lane.pages[chunk];
          all.ids[place] = static_cast<uint32_t>(chunk);
          all.scores[place] = dot * scale;
          ready = ready && lane.pages[chunk] != no_chunk;
          ++place;
        }
      }
      all.ready[i] = ready ? 1 : 0;
      if (!ready) std::fill(all.slots.begin() + first, all.slots.begin() + end, no_chunk);
    }
    return all;
  }

  Selected expect_as_defined() const {
    const Selected found = on_gpu(), expected = defined();
    EXPECT_EQ(found.ready, expected.ready);
    EXPECT_EQ(found.slots, expected.slots);
    EXPECT_EQ(found.ids, expected.ids);
    EXPECT_TRUE(same_bits<float>(found.scores, expected.scores));
    return found;
  }
};

using ChunkSelectionCuda = GpuTest;

TEST_F(ChunkSelectionCuda, ChunksComeNewestFirstWithTheirSlotsAndScores) {
  for (const uint32_t tokens : {1, 64})
    for (const uint32_t heads : {1, 5})
      for (const uint32_t k : {1, 8, 31, 64, 128})
        for (const uint32_t found : {k, k / 2, 0u}) {
          const Shape shape{heads, k};
          SCOPED_TRACE(shape.name() + " tokens " + std::to_string(tokens) + " found " + std::to_string(found));
          const Problem problem{shape, {Lane::random(shape, tokens, found, 0, true, k + found)}, {}};
          const Selected selected = problem.expect_as_defined();
          EXPECT_EQ(selected.ready[0], 1u);
        }
}

TEST_F(ChunkSelectionCuda, AChunkThatCannotBeReadIsLeftOutEvenIfItIsNotCached) {
  for (const uint32_t k : {1, 8, 31, 128}) {
    const Shape shape{5, k};
    SCOPED_TRACE(shape.name());
    Lane lane = Lane::random(shape, 3, k, 0, true, k);
    // Of every list another part, among them all and none. A chunk that is not cached is asked for by such dots alone.
    lane.pages[0] = no_chunk;
    for (size_t i = 0; i < lane.dots.size(); ++i)
      if (lane.chunks[i] == 0 || i % k < i / k * k / 14) lane.dots[i] = nan;
    const Selected selected = Problem{shape, {lane}, {}}.expect_as_defined();
    EXPECT_EQ(selected.ready[0], 1u);
    EXPECT_EQ(std::ranges::count(selected.ids, 0u), 0);
  }
}

TEST_F(ChunkSelectionCuda, ALaneWithAMissingChunkHasNoSlotsButTheOthersDo) {
  for (const uint32_t tokens : {1, 64}) {
    for (const uint32_t k : {1, 8, 128}) {
      const Shape shape{5, k};
      const size_t places = size_t{tokens} * shape.heads * k;
      // One place alone has a chunk that is not cached.
      for (const size_t place : {size_t{0}, places / 2, places - 1}) {
        SCOPED_TRACE(shape.name() + " tokens " + std::to_string(tokens) + " place " + std::to_string(place));
        Lane missing = Lane::random(shape, tokens, k, tokens + 1, true, 2);
        missing.chunks[place] = missing.pages.size();
        missing.pages.push_back(no_chunk);
        const Problem problem{shape,
                              {Lane::random(shape, tokens, k, 0, true, 1), missing,
                               Lane::random(shape, tokens, k, 2 * tokens + 2, true, 3)},
                              {}};
        const Selected selected = problem.expect_as_defined();
        EXPECT_EQ(selected.ready, (std::vector<uint32_t>{1, 0, 1, 0, 0, 0, 0, 0}));
        const size_t first = (tokens + 1) * shape.heads * k;
        EXPECT_EQ(selected.slots[first], no_chunk);
        EXPECT_NE(selected.ids[first], no_chunk);
      }
    }
  }
}

TEST_F(ChunkSelectionCuda, LanesEnterOrWereReadyBeforeOrAreIdle) {
  const Shape shape{5, 31};
  std::vector<Lane> lanes;
  for (uint32_t i = 0; i < lanes_max; ++i) lanes.push_back(Lane::random(shape, 1, 31, i, i < 2, i));
  lanes[4] = Lane::idle(4);
  lanes[5] = Lane::idle(5);
  lanes[5].enters = true;
  lanes[6].pages[lanes[6].chunks[0]] = no_chunk;
  const std::vector<uint32_t> before{0, 1, 0, 1, 1, 1, 1, 1};
  EXPECT_EQ((Problem{shape, lanes, before}.expect_as_defined().ready), (std::vector<uint32_t>{1, 1, 0, 1, 0, 0, 0, 1}));
  // There is no group before the first one, which nobody has been ready in.
  EXPECT_EQ((Problem{shape, lanes, {}}.expect_as_defined().ready), (std::vector<uint32_t>{1, 1, 0, 0, 0, 0, 0, 0}));
  // Idle lanes alone, and none at all.
  for (uint32_t i = 0; i < lanes_max; ++i) lanes[i] = Lane::idle(i);
  Problem{shape, lanes, before}.expect_as_defined();
  Problem{shape, {}, before}.expect_as_defined();
}

// A lane's results do not depend on the others, nor on its place.
TEST_F(ChunkSelectionCuda, ALaneHasTheSameResultsAmongOthers) {
  const Shape shape{5, 8};
  std::vector<Lane> lanes;
  for (uint32_t i = 0; i < lanes_max; ++i) lanes.push_back(Lane::random(shape, 64, 8, 64 * i, true, i));
  const Selected together = Problem{shape, lanes, {}}.expect_as_defined();
  const size_t of_lane = size_t{64} * shape.heads * shape.k;
  for (uint32_t i = 0; i < lanes_max; ++i) {
    lanes[i].row = 0;
    const Selected alone = Problem{shape, {lanes[i]}, {}}.on_gpu();
    EXPECT_TRUE(same_bits<uint32_t>(std::span(alone.slots).first(of_lane),
                                    std::span(together.slots).subspan(i * of_lane, of_lane)));
    EXPECT_TRUE(same_bits<float>(std::span(alone.scores).first(of_lane),
                                 std::span(together.scores).subspan(i * of_lane, of_lane)));
  }
}

// What a graph does that was captured once: the lanes are those that pinned memory tells when it runs.
TEST_F(ChunkSelectionCuda, ABranchIsTakenWhereAnyLaneIsReady) {
  cuda::PinnedBuffer buffer;
  must(cuda::PinnedBuffer::allocate(4 << 10, buffer));
  auto* const lanes = buffer.as<cuda::SelectionLane>();
  auto* const taken = buffer.as<float>(2 << 10);  // [lanes_max, 4]
  auto* const told = buffer.as<uint32_t>(3 << 10);
  const std::vector<float> ones(lanes_max * 4, 1.0f), some_dots(1, 0.5f);
  const DeviceArray<float> x(ones), dots(some_dots), scores(lanes_max);
  const DeviceArray<uint64_t> chunks(std::vector<uint64_t>{1});
  const DeviceArray<uint32_t> cached(std::vector<uint32_t>{7, 7}), missing(std::vector<uint32_t>{7, no_chunk});
  const DeviceArray<uint32_t> slots(lanes_max), ready(lanes_max), arrived(1);
  arrived.fill(0);
  const cuda::ChunkSelection selection{.lanes = lanes,
                                       .lane_count = lanes_max,
                                       .heads = 1,
                                       .k = 1,
                                       .scale = scale,
                                       .ready_before = nullptr,
                                       .slots = slots.data(),
                                       .scores = scores.data(),
                                       .ready = ready.data(),
                                       .told_ids = told,
                                       .told_scores = reinterpret_cast<float*>(told + lanes_max),
                                       .told_ready = told + 2 * lanes_max};
  cuda::Stream stream;
  must(cuda::Stream::open(stream));
  cuda::Graph graph;
  must(cuda::Graph::capture_if(
      stream.get(),
      [&](cudaGraphConditionalHandle branch) {
        return cuda::select_chunks_for(branch, selection, arrived.data(), stream.get());
      },
      [&] { return cuda::copy_rows(x.data(), ready.data(), 4, taken, stream.get()); }, graph));
  for (const std::vector<uint32_t>& of_lanes : std::vector<std::vector<uint32_t>>{
           {0, 0, 0, 0, 0, 0, 0, 0}, {1, 0, 0, 0, 0, 0, 0, 0}, {0, 0, 0, 0, 0, 0, 0, 0}, {0, 0, 0, 1, 0, 0, 0, 1}}) {
    std::vector<float> expected;
    for (uint32_t lane = 0; lane < lanes_max; ++lane) {
      lanes[lane] = {.dots = dots.data(),
                     .chunks = chunks.data(),
                     .page_table = of_lanes[lane] != 0 ? cached.data() : missing.data(),
                     .tokens = 1,
                     .found = 1,
                     .row = lane,
                     .enters = true};
      expected.insert(expected.end(), 4, static_cast<float>(of_lanes[lane]));
    }
    std::fill_n(taken, lanes_max * 4, 0.0f);
    must(graph.launch(stream.get()));
    must(cudaStreamSynchronize(stream.get()));
    EXPECT_EQ(ready.host(), of_lanes);
    EXPECT_EQ(std::vector<uint32_t>(selection.told_ready, selection.told_ready + lanes_max), of_lanes);
    EXPECT_EQ(std::vector<float>(taken, taken + lanes_max * 4), expected);
    EXPECT_EQ(arrived.host(), std::vector<uint32_t>{0});
  }
}

// The first lane waits and is told of at once; the second one keeps the kernel going, as all it reads comes over the
// bus. Where the host sees the word it takes what was told, while the kernel still runs.
TEST_F(ChunkSelectionCuda, WhatIsToldOfALaneThatWaitsIsThereWithItsWordBeforeTheKernelEnds) {
  constexpr uint32_t tokens = 64, k = cuda::selection_k_max, calls = 100, untold = 0xabcdabcd;
  constexpr size_t of_lane = size_t{tokens} * k;
  cuda::PinnedBuffer slow_dots, slow_chunks, slow_pages, lanes, told;
  must(cuda::PinnedBuffer::allocate(of_lane * sizeof(float), slow_dots));
  must(cuda::PinnedBuffer::allocate(of_lane * sizeof(uint64_t), slow_chunks));
  must(cuda::PinnedBuffer::allocate(k * sizeof(uint32_t), slow_pages));
  must(cuda::PinnedBuffer::allocate(2 * sizeof(cuda::SelectionLane), lanes));
  must(cuda::PinnedBuffer::allocate((4 * of_lane + lanes_max) * sizeof(uint32_t), told));
  std::vector<float> dots(of_lane);
  std::vector<uint64_t> chunks(of_lane);
  for (size_t i = 0; i < of_lane; ++i) {
    dots[i] = static_cast<float>(i);
    chunks[i] = i % k;
  }
  std::memcpy(slow_dots.as<void>(), dots.data(), slow_dots.bytes());
  std::memcpy(slow_chunks.as<void>(), chunks.data(), slow_chunks.bytes());
  std::fill_n(slow_pages.as<uint32_t>(), k, 5u);
  std::vector<uint32_t> pages(k, 5);
  pages[17] = no_chunk;
  const DeviceArray<float> fast_dots(dots), scores(2 * of_lane);
  const DeviceArray<uint64_t> fast_chunks(chunks);
  const DeviceArray<uint32_t> fast_pages(pages), slots(2 * of_lane), ready(lanes_max);
  lanes.as<cuda::SelectionLane>()[0] = {.dots = fast_dots.data(),
                                        .chunks = fast_chunks.data(),
                                        .page_table = fast_pages.data(),
                                        .tokens = tokens,
                                        .found = k,
                                        .row = 0,
                                        .enters = true};
  lanes.as<cuda::SelectionLane>()[1] = {.dots = slow_dots.as<float>(),
                                        .chunks = slow_chunks.as<uint64_t>(),
                                        .page_table = slow_pages.as<uint32_t>(),
                                        .tokens = tokens,
                                        .found = k,
                                        .row = tokens,
                                        .enters = true};
  auto* const ids = told.as<uint32_t>();
  auto* const told_scores = reinterpret_cast<float*>(ids + 2 * of_lane);
  auto* const words = ids + 4 * of_lane;
  const cuda::ChunkSelection selection{.lanes = lanes.as<cuda::SelectionLane>(),
                                       .lane_count = 2,
                                       .heads = 1,
                                       .k = k,
                                       .scale = scale,
                                       .ready_before = nullptr,
                                       .slots = slots.data(),
                                       .scores = scores.data(),
                                       .ready = ready.data(),
                                       .told_ids = ids,
                                       .told_scores = told_scores,
                                       .told_ready = words};
  cuda::Stream stream;
  must(cuda::Stream::open(stream));
  must(cudaDeviceSynchronize());  // the stream does not wait for what filled the arrays
  std::vector<uint32_t> found_ids(of_lane);
  std::vector<float> found_scores(of_lane);
  uint32_t before_the_end = 0;
  for (uint32_t call = 0; call < calls; ++call) {
    std::fill_n(ids, told.bytes() / sizeof(uint32_t), untold);
    must(cuda::select_chunks(selection, stream.get()));
    const std::atomic_ref<uint32_t> word(words[0]);
    const auto begun = std::chrono::steady_clock::now();
    while (word.load(std::memory_order_acquire) == untold)
      ASSERT_LT(std::chrono::steady_clock::now() - begun, std::chrono::seconds(10)) << "it is never told";
    std::memcpy(found_ids.data(), ids, of_lane * sizeof(uint32_t));
    std::memcpy(found_scores.data(), told_scores, of_lane * sizeof(float));
    before_the_end += cudaStreamQuery(stream.get()) == cudaErrorNotReady ? 1 : 0;
    cudaGetLastError();
    must(cudaStreamSynchronize(stream.get()));
    EXPECT_EQ(words[0], 0u);
    EXPECT_EQ(words[1], 1u);
    for (size_t i = 0; i < of_lane; ++i) {  // newest first
      const size_t from = i / k * k + (k - 1 - i % k);
      ASSERT_EQ(found_ids[i], k - 1 - i % k) << "call " << call << " place " << i;
      ASSERT_EQ(found_scores[i], dots[from] * scale) << "call " << call << " place " << i;
    }
  }
  EXPECT_GT(before_the_end, calls / 2) << "the host looked while the kernel ran";
}

// ---- point_states, copy_rows

TEST_F(ChunkSelectionCuda, LanesThatAreNotReadyPointAtStatesThatAreThrownAway) {
  constexpr size_t layer_floats = 52, conv_floats = 12, lane_floats = 500;
  for (const uint32_t layers : {1, 3, 9}) {
    const std::vector<uint32_t> ready{1, 0, 0, 1, 1, 0, 1, 0};
    const DeviceArray<uint32_t> device_ready(ready);
    const DeviceArray<float> states(lanes_max * lane_floats), unwanted(lanes_max * layer_floats);
    states.fill(0xff);
    unwanted.fill(0xff);
    const DeviceArray<float*> conv(layers * lanes_max), ssm(layers * lanes_max);
    must(cuda::point_states({.ready = device_ready.data(),
                             .states = states.data(),
                             .lane_floats = lane_floats,
                             .unwanted = unwanted.data(),
                             .layers = layers,
                             .layer_floats = layer_floats,
                             .conv_floats = conv_floats,
                             .conv = conv.data(),
                             .ssm = ssm.data()},
                            nullptr));
    const std::vector<float*> found_conv = conv.host(), found_ssm = ssm.host();
    for (size_t layer = 0; layer < layers; ++layer)
      for (size_t lane = 0; lane < lanes_max; ++lane) {
        float* const expected = ready[lane] != 0 ? states.data() + lane * lane_floats + layer * layer_floats
                                                 : unwanted.data() + lane * layer_floats;
        EXPECT_EQ(found_conv[layer * lanes_max + lane], expected) << "layer " << layer << " lane " << lane;
        EXPECT_EQ(found_ssm[layer * lanes_max + lane], expected + conv_floats) << "layer " << layer << " lane " << lane;
      }
    // Those of lanes that are not ready begin with 0; nothing else is written.
    const auto is_nan = [](float x) { return std::isnan(x); };
    EXPECT_TRUE(std::ranges::all_of(states.host(), is_nan));
    const std::vector<float> found_unwanted = unwanted.host();
    for (size_t i = 0; i < found_unwanted.size(); ++i) {
      const bool begins = i % layer_floats == 0 && ready[i / layer_floats] == 0;
      ASSERT_TRUE(begins ? found_unwanted[i] == 0 : is_nan(found_unwanted[i])) << "float " << i;
    }
  }
  EXPECT_EQ(cuda::point_states({}, nullptr), cudaSuccess);
}

TEST_F(ChunkSelectionCuda, RowsOfReadyLanesAreCopied) {
  for (const size_t width : {4, 384, 516, 4096}) {
    const std::vector<uint32_t> ready{0, 1, 1, 0, 1, 0, 0, 1};
    std::vector<float> x(lanes_max * width);
    std::iota(x.begin(), x.end(), 1.0f);
    const DeviceArray<float> device_x(x), y(lanes_max * width);
    const DeviceArray<uint32_t> device_ready(ready);
    y.fill(0);
    must(cuda::copy_rows(device_x.data(), device_ready.data(), static_cast<uint32_t>(width), y.data(), nullptr));
    std::vector<float> expected(lanes_max * width);
    for (size_t lane = 0; lane < lanes_max; ++lane)
      if (ready[lane] != 0) std::copy_n(x.begin() + lane * width, width, expected.begin() + lane * width);
    EXPECT_EQ(y.host(), expected) << "width " << width;
  }
}

// ---- fill_slots

// Chunks of two memories; every third one leaves the cache, the others come into slots that are far from each other.
void expect_fills(size_t count, size_t kv_bytes) {
  SCOPED_TRACE("fills " + std::to_string(count) + " of " + std::to_string(kv_bytes) + " bytes");
  constexpr uint32_t stride = 3;
  const size_t words = kv_bytes / sizeof(uint32_t), slots = count * stride + 1, chunks = count + 2;
  cuda::PinnedBuffer records;
  must(cuda::PinnedBuffer::allocate(count * kv_bytes, records));
  auto* const of_records = records.as<uint32_t>();
  for (size_t i = 0; i < count * words; ++i) of_records[i] = static_cast<uint32_t>(i) * 2654435761u;
  const DeviceArray<uint32_t> cache(slots * words), first_pages(chunks), second_pages(chunks);
  for (const auto* array : {&cache, &first_pages, &second_pages}) array->fill(before_byte);
  std::vector<uint32_t> expected_cache(slots * words, before_word);
  std::vector<std::vector<uint32_t>> expected_pages(2, std::vector<uint32_t>(chunks, before_word));

  std::vector<cuda::SlotFill> fills;
  for (size_t i = 0; i < count; ++i) {
    const size_t memory = i % 2, chunk = 1 + (count - i) / 2;
    const bool leaves = i % 3 == 2;
    const uint32_t slot = leaves ? no_chunk : static_cast<uint32_t>((count - i) * stride);
    fills.push_back({.record = leaves ? nullptr : of_records + i * words,
                     .page_table = memory == 0 ? first_pages.data() : second_pages.data(),
                     .chunk = static_cast<uint32_t>(chunk),
                     .slot = slot});
    expected_pages[memory][chunk] = slot;
    if (!leaves) std::copy_n(of_records + i * words, words, expected_cache.begin() + slot * words);
  }
  must(cuda::fill_slots(fills.data(), fills.size(), static_cast<uint32_t>(kv_bytes), cache.data(), nullptr));
  EXPECT_EQ(first_pages.host(), expected_pages[0]);
  EXPECT_EQ(second_pages.host(), expected_pages[1]);
  EXPECT_TRUE(same_bits<uint32_t>(cache.host(), expected_cache));
}

TEST_F(ChunkSelectionCuda, RecordsComeIntoTheirSlotsAndChunksLeave) {
  for (const size_t count : {1, 2, 95, 96, 97, 192, 193, 500})
    for (const size_t kv_bytes : {16, 4080, 4112, 16384}) expect_fills(count, kv_bytes);
}

// The host says what becomes of each record after the kernel has begun to wait; what does not come changes nothing.
TEST_F(ChunkSelectionCuda, RecordsThatArriveLaterAreAwaitedAndThoseThatDoNotComeLeftOut) {
  cuda::Stream stream;
  must(cuda::Stream::open(stream));
  for (const uint32_t count : {1u, 8u, 97u}) {
    SCOPED_TRACE(std::to_string(count) + " records");
    constexpr size_t words = 4096;
    cuda::PinnedBuffer records, words_of_host;
    must(cuda::PinnedBuffer::allocate(count * words * sizeof(uint32_t), records));
    must(cuda::PinnedBuffer::allocate(count * sizeof(uint32_t), words_of_host));
    auto* const of_records = records.as<uint32_t>();
    auto* const arrivals = words_of_host.as<uint32_t>();
    std::memset(of_records, 0, records.bytes());
    const DeviceArray<uint32_t> cache(count * words), pages(count + 1);
    cache.fill(before_byte);
    pages.fill(before_byte);
    must(cudaDeviceSynchronize());  // the stream does not wait for that
    std::vector<uint32_t> expected_cache(count * words, before_word), expected_pages(count + 1, before_word);
    std::vector<cuda::SlotFill> fills{
        {.record = nullptr, .page_table = pages.data(), .chunk = count, .slot = no_chunk}};
    expected_pages[count] = no_chunk;  // it need not wait
    for (uint32_t i = 0; i < count; ++i) {
      arrivals[i] = cuda::on_its_way;
      fills.push_back({.record = of_records + i * words,
                       .page_table = pages.data(),
                       .chunk = i,
                       .slot = count - 1 - i,
                       .arrival = arrivals + i});
    }
    must(cuda::fill_slots(fills.data(), fills.size(), words * sizeof(uint32_t), cache.data(), stream.get()));
    for (uint32_t i = count; i-- > 0;) {
      if (i % 8 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      EXPECT_EQ(cudaStreamQuery(stream.get()), cudaErrorNotReady) << "it waits";
      cudaGetLastError();
      const bool comes = i % 5 != 3;
      for (size_t word = 0; word < words; ++word) of_records[i * words + word] = i * 7919 + static_cast<uint32_t>(word);
      std::atomic_ref(arrivals[i]).store(comes ? cuda::has_arrived : cuda::does_not_come, std::memory_order_release);
      if (!comes) continue;
      std::copy_n(of_records + i * words, words, expected_cache.begin() + (count - 1 - i) * words);
      expected_pages[i] = count - 1 - i;
    }
    must(cudaStreamSynchronize(stream.get()));
    EXPECT_EQ(pages.host(), expected_pages);
    EXPECT_TRUE(same_bits<uint32_t>(cache.host(), expected_cache));
  }
}

TEST_F(ChunkSelectionCuda, ARecordThatNeverArrivesIsGivenUp) {
  cuda::PinnedBuffer memory;
  must(cuda::PinnedBuffer::allocate(32, memory));
  const DeviceArray<uint32_t> cache(4), pages(1);
  cache.fill(before_byte);
  pages.fill(before_byte);
  auto* const arrival = memory.as<uint32_t>(16);
  *arrival = cuda::on_its_way;
  const cuda::SlotFill fill{
      .record = memory.as<void>(), .page_table = pages.data(), .chunk = 0, .slot = 0, .arrival = arrival};
  must(cuda::fill_slots(&fill, 1, 16, cache.data(), nullptr));
  must(cudaStreamSynchronize(nullptr));
  EXPECT_EQ(cache.host(), std::vector<uint32_t>(4, before_word));
  EXPECT_EQ(pages.host(), std::vector<uint32_t>(1, before_word));
}

TEST_F(ChunkSelectionCuda, NoFillsChangeNothing) {
  const DeviceArray<uint32_t> cache(4);
  cache.fill(before_byte);
  EXPECT_EQ(cuda::fill_slots(nullptr, 0, 16, cache.data(), nullptr), cudaSuccess);
  EXPECT_EQ(cache.host(), std::vector<uint32_t>(4, before_word));
}

// ---- what is refused

TEST_F(ChunkSelectionCuda, ShapesThatAreOutOfBoundsAreRefused) {
  const auto refused = [](uint32_t lanes, uint32_t heads, uint32_t k) {
    cuda::ChunkSelection selection;
    selection.lane_count = lanes;
    selection.heads = heads;
    selection.k = k;
    return cuda::select_chunks(selection, nullptr) == cudaErrorInvalidValue &&
           cuda::select_chunks_for({}, selection, nullptr, nullptr) == cudaErrorInvalidValue;
  };
  EXPECT_TRUE(refused(lanes_max + 1, 1, 8));
  EXPECT_TRUE(refused(1, 0, 8));
  EXPECT_TRUE(refused(1, 1, 0));
  EXPECT_TRUE(refused(1, 1, cuda::selection_k_max + 1));

  float* const floats = nullptr;
  EXPECT_EQ(cuda::copy_rows(floats, nullptr, 0, floats, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(cuda::copy_rows(floats, nullptr, 6, floats, nullptr), cudaErrorInvalidValue);
}

TEST_F(ChunkSelectionCuda, FillsThatAreOutOfBoundsAreRefusedTogether) {
  cuda::PinnedBuffer record;
  must(cuda::PinnedBuffer::allocate(32, record));
  const DeviceArray<uint32_t> cache(4), pages(2);
  for (const auto* array : {&cache, &pages}) array->fill(before_byte);
  const cuda::SlotFill right{.record = record.as<void>(), .page_table = pages.data(), .chunk = 0, .slot = 0};
  const auto fill = [&](uint32_t kv_bytes, const cuda::SlotFill& last) {
    std::vector<cuda::SlotFill> fills{right, last};
    return cuda::fill_slots(fills.data(), fills.size(), kv_bytes, cache.data(), nullptr);
  };
  const auto changed = [&](const void* from, uint32_t slot) {
    return cuda::SlotFill{.record = from, .page_table = pages.data(), .chunk = 1, .slot = slot};
  };
  EXPECT_EQ(fill(0, right), cudaErrorInvalidValue);
  EXPECT_EQ(fill(24, right), cudaErrorInvalidValue);
  EXPECT_EQ(fill(16, changed(record.as<void>(), no_chunk)), cudaErrorInvalidValue);
  EXPECT_EQ(fill(16, changed(nullptr, 0)), cudaErrorInvalidValue);
  cuda::SlotFill leaves = changed(nullptr, no_chunk);
  leaves.arrival = record.as<uint32_t>();
  EXPECT_EQ(fill(16, leaves), cudaErrorInvalidValue);
  EXPECT_EQ(fill(16, changed(record.as<char>(8), 0)), cudaErrorInvalidValue);
  EXPECT_EQ(cache.host(), std::vector<uint32_t>(4, before_word));
  EXPECT_EQ(pages.host(), std::vector<uint32_t>(2, before_word));
}

}  // namespace
}  // namespace recalld
