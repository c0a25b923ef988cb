// Going through rows of the catalog over damage: a row that cannot be read does not hide those behind it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string_view>
#include <utility>

#include "memstore/catalog.h"
#include "memstore/rows.h"

namespace recalld {

// Walks the rows of `id` whose number lies between `from` and `end` (excluded), in order.
// row(number, key, value) gets every row that there is, `value` being an Expected<std::string_view>, and ends the walk
// by returning false. lost(number, error) is told where rows cannot even be listed, and returns the number at which to
// go on, which is greater.
template <class Row, class Lost>
void walk_rows(const Catalog& catalog, Family family, uint64_t id, uint64_t from, uint64_t end, Row row, Lost lost) {
  Catalog::Cursor rows = catalog.cursor(family, row_key(id));
  uint64_t at = from;
  Expected<bool> found = rows.seek(row_key(id, at));
  while (true) {
    if (!found && !rows.on_row()) {
      at = std::max(lost(at, found.error()), at + 1);
      if (at >= end) return;
      found = rows.seek(row_key(id, at));
      continue;
    }
    if (found && !*found) return;
    const uint64_t number = number_of(rows.key());
    if (number >= end) return;
    const auto value = found ? Expected<std::string_view>(rows.value()) : std::unexpected(std::move(found).error());
    if (!row(number, rows.key(), value)) return;
    at = number + 1;
    found = rows.next();
  }
}

}  // namespace recalld
