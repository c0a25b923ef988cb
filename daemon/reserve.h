// Room for forgetting on a disk that is full: a file that is given up so that the intent can be written.
#pragma once

#include <cstdint>
#include <filesystem>

namespace recalld {

// Any thread may call any function.
class Reserve {
 public:
  Reserve(std::filesystem::path file, uint64_t bytes);

  // Makes the file, unless it is there or there is no room for it.
  void take();

  // Removes the file; false when there is none.
  bool give_up();

  // The same when the disk has less room than the reserve: opening a store needs some.
  void give_up_when_short();

 private:
  const std::filesystem::path file_;
  const uint64_t bytes_;
};

}  // namespace recalld
