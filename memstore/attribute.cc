#include "memstore/attribute.h"

#include <utility>

namespace recalld {

std::vector<Attribute> attributes_of(const Turn& turn, const MetadataReader& read_metadata) {
  std::vector<Attribute> attributes;
  if (!turn.metadata.empty()) attributes = read_metadata(turn.metadata);
  attributes.push_back({std::string(role_attribute), std::string(name(turn.role))});
  if (turn.name) attributes.push_back({std::string(name_attribute), *turn.name});
  attributes.push_back({std::string(time_attribute), turn.time_us});
  return attributes;
}

ComparedValue ComparedValue::of(const AttributeValue& value) {
  struct Reader {
    ComparedValue operator()(Incomparable) const { return {}; }
    ComparedValue operator()(bool flag) const { return {.kind = Kind::flag, .flag = flag, .text = {}}; }
    ComparedValue operator()(int64_t number) const { return of_number(static_cast<long double>(number)); }
    ComparedValue operator()(uint64_t number) const { return of_number(static_cast<long double>(number)); }
    ComparedValue operator()(double number) const { return of_number(number); }
    ComparedValue operator()(const std::string& text) const { return {.kind = Kind::text, .text = text}; }
    static ComparedValue of_number(long double number) { return {.kind = Kind::number, .number = number, .text = {}}; }
  };
  return std::visit(Reader(), value);
}

std::strong_ordering ComparedValue::order(const ComparedValue& other) const {
  if (kind != other.kind) return kind <=> other.kind;
  switch (kind) {
    case Kind::incomparable:
      return std::strong_ordering::equal;
    case Kind::flag:
      return flag <=> other.flag;
    case Kind::number:
      if (number < other.number) return std::strong_ordering::less;
      return number > other.number ? std::strong_ordering::greater : std::strong_ordering::equal;
    case Kind::text:
      return text.compare(other.text) <=> 0;
  }
  return std::strong_ordering::equal;
}

}  // namespace recalld
