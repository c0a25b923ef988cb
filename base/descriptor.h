// Owns a file descriptor, and closes it in the end.
#pragma once

#include <unistd.h>

#include <utility>

namespace recalld {

class Descriptor {
 public:
  Descriptor() = default;                            // none
  explicit Descriptor(int value) : value_(value) {}  // none when it is -1, as a failed call returns it
  Descriptor(Descriptor&& other) noexcept : value_(other.release()) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(value_, other.value_);
    return *this;
  }
  ~Descriptor() {
    if (value_ != -1) ::close(value_);
  }

  int get() const { return value_; }
  int release() { return std::exchange(value_, -1); }  // the caller's to close from here on

 private:
  int value_ = -1;
};

}  // namespace recalld
