// What one speaker said in a result of a search.
#pragma once

#include <span>
#include <string>

#include "client/messages.h"

namespace recalld::client {

struct Speaker {
  std::string role;  // empty: any
  std::string name;  // likewise

  bool said(const SearchReply::Source& turn) const;
};

// Leaves in a result the speaker's turns and what they say: all of a short one, of a longer one what lies in the result
// and a little more, with "…" where it goes on. `turns` are those of the result, whole. Where these are not its turns,
// as some were forgotten meanwhile, or none is the speaker's, the result stays as it is.
void keep_said(SearchReply::Result& result, const Speaker& speaker, std::span<const StoredTurn> turns);

}  // namespace recalld::client
