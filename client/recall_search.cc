// recall search: the chunks that answer a question.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/request_defaults.h"
#include "base/shorten.h"
#include "client/cli.h"
#include "client/filter_options.h"
#include "client/said.h"
#include "client/text.h"

namespace recalld::client {

namespace {

// Who searches for what somebody said wants to read that, and not what others said around it. Where this cannot be
// told, a result stays whole; so does one that is explained, as that is about all of its tokens.
void show_said(Client& client, const SearchRequest& request, const Speaker& speaker, SearchReply& reply) {
  constexpr size_t turns_max = 200;  // of one page
  for (SearchReply::Result& result : reply.results) {
    const bool mixed = std::ranges::any_of(result.turns, [&](const auto& turn) { return !speaker.said(turn); });
    if (!mixed || result.why.is_object() || result.turns.size() > turns_max) continue;
    const auto page = client.turns({.memory = result.memory.empty() ? request.memory : result.memory,
                                    .limit = result.turns.size(),
                                    .first = result.turns.front().turn});
    if (page) keep_said(result, speaker, page->turns);
  }
}

// What the daemon says of an argument, under the name of the option that it came from.
Error named(Error error) {
  constexpr std::array<std::pair<std::string_view, std::string_view>, 5> options{{{"limit:", "--limit:"},
                                                                                  {"max_tokens:", "--max-tokens:"},
                                                                                  {"mode:", "--mode:"},
                                                                                  {"expand:", "--expand:"},
                                                                                  {"min_score:", "--min-score:"}}};
  for (const auto& [argument, option] : options)
    if (error.message.starts_with(argument)) error.message.replace(0, argument.size(), option);
  return error;
}

// A score tells how far a chunk stands out among the others of its memory. Where there are few, that is not far.
constexpr uint64_t few_chunks = 50;

// What to say of low scores behind the results of a hybrid search; nothing where they are none, or tell something.
std::string hint_of_scores(const SearchRequest& request, const SearchReply& reply, const Memory& memory) {
  constexpr double low = 0.5;
  const bool hybrid = request.mode.empty() || request.mode == "hybrid";
  if (!hybrid || reply.results.empty() || reply.results.front().score >= low || memory.chunks >= few_chunks) return "";
  return "Scores are low in a memory of a few chunks, of the right one too: here the order counts.\n";
}

// The newest turns, where too many chunks wait for a search to encode them itself.
void warn_of_unsearched(const SearchReply& reply, const Memory& memory) {
  const uint64_t first = reply.searchable_through ? *reply.searchable_through + 1 : 0;
  const uint64_t waiting = memory.chunks - std::min(memory.chunks, memory.encoded_chunks);
  if (first >= memory.next_turn || waiting == 0) return;
  warn(turn_range(first, memory.next_turn - 1) + (first + 1 == memory.next_turn ? " was" : " were") +
       " not searched: " + counted(waiting, "chunk") + (waiting == 1 ? " waits" : " wait") +
       " to be encoded; search again later (recall health counts them)");
}

int run_search(const Globals& globals, const SearchRequest& request, const FilterOptions& which) {
  auto client = connect(globals);
  if (!client) return fail_with(client.error(), exit_no_daemon);
  const auto result = client->call("search", params(request));
  if (!result) return fail_with(named(which.named(result.error())));
  if (globals.json) return print_line(*result);
  auto reply = decode<SearchReply>(*result);
  if (!reply) return fail_with(reply.error());
  show_said(*client, request, {which.role, which.name}, *reply);
  // Where something is always found, the best chunk did not fit.
  const bool may_find_nothing =
      request.mode == "lexical" || !request.filter.is_null() || request.min_score || request.memory.ends_with('*');
  const auto too_small = may_find_nothing ? std::nullopt : request.max_tokens;
  std::string shown = report(*reply, Style::of_standard_output(), too_small);
  std::optional<Memory> memory;  // of a search of one
  if (!reply->memories)
    if (auto found = client->memory(request.memory)) memory = std::move(*found);
  if (memory) shown += hint_of_scores(request, *reply, *memory);
  const int code = print(shown);
  warn(reply->unreadable);
  if (memory) warn_of_unsearched(*reply, *memory);
  if (reply->results.empty() && request.min_score)
    warn(std::string("nothing scores as much as --min-score") +
         (memory && memory->chunks >= few_chunks ? "; without it the best there is comes first, with its score"
                                                 : "; in a memory of a few chunks even the right one scores near 0"));
  return code;
}

}  // namespace

void add_search(CLI::App& app, const Globals& globals, Run& run) {
  struct Arguments {
    SearchRequest request;
    std::vector<std::string> words;
    std::vector<std::string> also;
    FilterOptions which;
  };
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = app.add_subcommand("search", "Find the chunks that answer a question");
  command
      ->add_option("MEMORY", arguments->request.memory,
                   "The name of the memory; 'BEGINNING*' in quotes: all that begin so")
      ->required();
  command->add_option("QUERY", arguments->words, "The question; several words are joined")->required();
  command->add_option("--also", arguments->also, "Search this memory together with MEMORY; once for each of several")
      ->allow_extra_args(false);
  command->add_option("--limit", arguments->request.limit, "At most so many chunks, 1 to 128")
      ->check(count_check)
      ->default_str(std::to_string(search_limit_default));
  command
      ->add_option("--max-tokens", arguments->request.max_tokens,
                   "At most so many tokens in all; a chunk has up to 64; default: no limit")
      ->check(count_check);
  command->add_option("--mode", arguments->request.mode, "How to rank: hybrid, landmark or lexical")
      ->check(not_empty("hybrid, landmark or lexical"))
      ->default_str("hybrid");
  command
      ->add_option(
          "--expand", arguments->request.expand,
          "What to show of what is found: none (chunks), chunks (joined where they touch) or turns (whole ones)")
      ->check(not_empty("none, chunks or turns"))
      ->default_str("none");
  command
      ->add_option("--min-score", arguments->request.min_score,
                   "In a hybrid search, leave out what scores below this, from 0 to 1")
      ->check(number_check(0, 1));
  command->add_flag("--explain", arguments->request.explain, "Say why each chunk was chosen");
  arguments->which.add(*command, "Only chunks with turns");
  command->footer(
      "A chunk may begin or end within a turn, a word or a number: \"…\" shows where, and --expand turns shows whole "
      "turns. Several options together mean the turns that fit all of them. With --role or --name, what others said in "
      "the chunks is not shown, except by --json and --explain.");
  command->callback([&globals, &run, arguments] {
    run = [&globals, arguments] {
      arguments->request.query = joined(arguments->words);
      if (!arguments->also.empty()) {
        std::vector<std::string>& memories = arguments->request.memories;
        memories = {arguments->request.memory};
        std::ranges::copy(arguments->also, std::back_inserter(memories));
        const auto beginning = std::ranges::find_if(memories, [](const auto& each) { return each.ends_with('*'); });
        if (beginning != memories.end())
          return fail_with({ErrorKind::invalid_request,
                            "--also: '" + shortened(*beginning) +
                                "' is the beginning of names, which stands alone: search for it without --also, or "
                                "give --also for each memory (recall memories list PREFIX tells which there are)"},
                           exit_usage);
      }
      auto filter = arguments->which.read();
      if (!filter) return fail_with(filter.error(), exit_usage);
      arguments->request.filter = *std::move(filter);
      return run_search(globals, arguments->request, arguments->which);
    };
  });
}

}  // namespace recalld::client
