// What it takes to read a few K/V records of a store in one batch: by the store, by io_uring alone, and by fio.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "base/descriptor.h"
#include "memstore/store.h"

namespace recalld::bench {

// Microseconds of the store to fetch `count` chunks at random places into aligned memory, as an answer waits for them
// that is written alone: the median of many fetches, each after a rest of so long, in which the thread stays awake.
double fetch_us(const Store& store, const MemoryInfo& memory, uint32_t kv_bytes, size_t count, std::mt19937& random,
                std::chrono::microseconds rest = {});

class ReadBatches {
 public:
  // Opens the segments that hold the encoded chunks of `memory`, past the page cache where their file system allows it.
  ReadBatches(const Store& store, const MemoryInfo& memory, const std::filesystem::path& data, uint32_t kv_bytes);

  // "io_uring, O_DIRECT", or what there is instead: reads one after another, the page cache.
  std::string describe() const;

  // Microseconds of `count` records at random places, read by one submission with nothing registered: the median of
  // many batches, each after a rest as above.
  double plain_us(size_t count, std::mt19937& random, std::chrono::microseconds rest = {}) const;

  // The same by fio, as many at a time, with registered files and buffers: the mean of what `seconds` seconds took.
  // Nothing when fio is not installed.
  std::optional<double> fio_us(size_t count, unsigned seconds) const;

 private:
  struct Place {
    int file = -1;
    uint64_t offset = 0;
  };
  struct Segment {
    std::filesystem::path path;
    Descriptor file;
    uint64_t bytes = 0;  // that hold records
  };

  const size_t record_bytes_;
  std::map<uint32_t, Segment> segments_;
  std::vector<Place> places_;
  bool direct_ = true;
  bool uring_ = true;
};

}  // namespace recalld::bench
