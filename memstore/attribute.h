// What filters compare turns by: attributes, each a name with a value, and conditions on them.
//
// A turn's role, name and time are attributes, and so is every member of its metadata, which somebody else reads: the
// store knows no JSON.
#pragma once

#include <compare>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "memstore/turn.h"

namespace recalld {

// Something that equals nothing, not even itself.
struct Incomparable {};

// Numbers compare by their value whatever their type, texts byte by byte, true and false are equal to themselves alone,
// and values of different kinds neither equal nor order each other. An attribute that a turn lacks, or that is null
// there, has no value.
using AttributeValue = std::variant<Incomparable, bool, int64_t, uint64_t, double, std::string>;

struct Attribute {
  std::string name;
  AttributeValue value;
};

// The members of a turn's metadata, as attributes: each name once, and no null. Any thread may call it.
using MetadataReader = std::function<std::vector<Attribute>(std::string_view metadata)>;

inline constexpr std::string_view role_attribute = "role", name_attribute = "name", time_attribute = "time";

// All attributes of a turn; the reader must give other names than those above.
std::vector<Attribute> attributes_of(const Turn& turn, const MetadataReader& read_metadata);

// A value as conditions see it. It borrows the text.
struct ComparedValue {
  enum class Kind : uint8_t { incomparable, flag, number, text };  // in this order in an index
  Kind kind = Kind::incomparable;
  bool flag = false;
  long double number = 0;  // which holds every integer of 64 bits and every double exactly
  std::string_view text;

  static ComparedValue of(const AttributeValue& value);
  bool equals(const ComparedValue& other) const { return kind != Kind::incomparable && order(other) == 0; }
  // One order of all values, in which those that are equal stand together.
  std::strong_ordering order(const ComparedValue& other) const;
};

// What a filter demands of a turn.
struct TurnCondition {
  enum class Kind : uint8_t {
    all,        // of those inside
    any,        // of those inside
    none,       // of the one inside
    attribute,  // whose value passes the test
    turn,       // whose number does; operands are uint64_t
  };
  enum class Test : uint8_t { one_of, above, from, below, to };  // the last four with one operand, which has a value

  Kind kind = Kind::all;
  std::vector<TurnCondition> inside{};
  std::string attribute{};
  Test test = Test::one_of;
  std::vector<std::optional<AttributeValue>> operands{};  // nothing: turns without a value
};

}  // namespace recalld
