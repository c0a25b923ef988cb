// Byte views, and a writer and a reader for the little records that go to disk.
// Integers are little-endian; "varint" is LEB128, at most 10 bytes; a string is its varint length and its bytes.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace recalld {

using ByteView = std::span<const std::byte>;
using ByteSpan = std::span<std::byte>;

inline ByteView as_bytes(std::string_view text) {
  return std::as_bytes(std::span(text));
}
inline std::string_view as_text(ByteView bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// Appends fields to a string that it borrows.
class ByteWriter {
 public:
  explicit ByteWriter(std::string& out) : out_(out) {}

  void u8(uint8_t value) { out_.push_back(static_cast<char>(value)); }
  void u32(uint32_t value) { little_endian(value, 4); }
  void u64(uint64_t value) { little_endian(value, 8); }
  // Most significant byte first, so that keys sort by number.
  void key64(uint64_t value) {
    for (int shift = 56; shift >= 0; shift -= 8) u8(static_cast<uint8_t>(value >> shift));
  }
  void varint(uint64_t value) {
    for (; value >= 0x80; value >>= 7) u8(static_cast<uint8_t>(value | 0x80));
    u8(static_cast<uint8_t>(value));
  }
  void text(std::string_view value) {
    varint(value.size());
    out_.append(value);
  }

 private:
  void little_endian(uint64_t value, int bytes) {
    for (int i = 0; i < bytes; ++i) u8(static_cast<uint8_t>(value >> (8 * i)));
  }

  std::string& out_;
};

// Takes fields off the front of a view. A field that is not there whole yields 0 or "" and turns ok() false for good,
// so that a record is read field by field and judged once.
class ByteReader {
 public:
  explicit ByteReader(std::string_view in) : in_(in) {}

  bool ok() const { return ok_; }
  bool done() const { return ok_ && in_.empty(); }
  std::string_view rest() const { return in_; }

  uint8_t u8() { return static_cast<uint8_t>(little_endian(1)); }
  uint32_t u32() { return static_cast<uint32_t>(little_endian(4)); }
  uint64_t u64() { return little_endian(8); }
  uint64_t key64() {
    const std::string_view field = take(8);
    uint64_t value = 0;
    for (const char c : field) value = value << 8 | static_cast<uint8_t>(c);
    return value;
  }
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 70; shift += 7) {
      const uint8_t byte = u8();
      if (!ok_ || (shift == 63 && byte > 1)) break;
      value |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
    ok_ = false;
    return 0;
  }
  std::string_view text() { return take(varint()); }
  std::string_view take(uint64_t bytes) {
    if (!ok_ || bytes > in_.size()) {
      ok_ = false;
      return {};
    }
    const std::string_view field = in_.substr(0, bytes);
    in_.remove_prefix(bytes);
    return field;
  }

 private:
  uint64_t little_endian(int bytes) {
    const std::string_view field = take(static_cast<uint64_t>(bytes));
    uint64_t value = 0;
    for (size_t i = field.size(); i-- > 0;) value = value << 8 | static_cast<uint8_t>(field[i]);
    return value;
  }

  std::string_view in_;
  bool ok_ = true;
};

}  // namespace recalld
