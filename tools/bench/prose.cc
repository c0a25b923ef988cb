#include "tools/bench/prose.h"

namespace recalld::bench {
namespace {

constexpr const char* people[] = {"Marta",        "Joren",       "my neighbour",
                                  "the plumber",  "Aunt Sigrid", "our new colleague",
                                  "the landlord", "Piet",        "the woman from the library",
                                  "Dr. Halloran", "Wim",         "Yolanda"};
constexpr const char* verbs[] = {"repaired",  "mentioned", "borrowed", "painted",      "forgot", "measured", "ordered",
                                 "postponed", "explained", "carried",  "photographed", "sold",   "returned", "counted"};
constexpr const char* adjectives[] = {"old",      "wooden",  "expensive", "blue",        "half-finished",
                                      "borrowed", "heavy",   "leaking",   "second-hand", "enormous",
                                      "quiet",    "foreign", "dusty",     "bright"};
constexpr const char* things[] = {"bicycle",     "kitchen shelf",    "boiler",      "contract",       "greenhouse",
                                  "piano",       "map of the coast", "spare key",   "sailing jacket", "printer",
                                  "garden wall", "recipe book",      "telescope",   "umbrella stand", "coffee machine",
                                  "ladder",      "tax return",       "train ticket"};
constexpr const char* places[] = {
    "in the cellar", "behind the station",   "at the market",    "on the way to Utrecht", "near the old harbour",
    "in the attic",  "at my parents' house", "across the river", "in the office kitchen", "between the two bridges"};
constexpr const char* times[] = {"yesterday",           "last week",        "on Tuesday morning",
                                 "before the holidays", "an hour ago",      "in early March",
                                 "after lunch",         "during the storm", "two summers ago"};
constexpr const char* endings[] = {", which nobody had expected.",
                                   ", so I will call again tomorrow.",
                                   " and it took all day.",
                                   ", but the price was fair.",
                                   " without saying a word.",
                                   " because of the rain.",
                                   ".",
                                   ".",
                                   "."};

}  // namespace

std::string Prose::sentence() {
  std::string text;
  switch (random_() % 3) {
    case 0:
      text = std::string(pick(people)) + " " + pick(verbs) + " the " + pick(adjectives) + " " + pick(things) + " " +
             pick(places) + " " + pick(times);
      break;
    case 1:
      text = std::string("I think that ") + pick(people) + " " + pick(verbs) + " a " + pick(things) + " for " +
             std::to_string(random_() % 900 + 12) + " euros " + pick(times);
      break;
    default:
      text = std::string("The ") + pick(adjectives) + " " + pick(things) + " " + pick(places) + " belongs to " +
             pick(people) + " since " + pick(times);
  }
  text[0] = static_cast<char>(text[0] >= 'a' && text[0] <= 'z' ? text[0] - 'a' + 'A' : text[0]);
  return text + pick(endings);
}

std::string Prose::turn() {
  std::string text = sentence();
  for (auto more = random_() % 5; more > 0; --more) text += " " + sentence();
  return text;
}

}  // namespace recalld::bench
