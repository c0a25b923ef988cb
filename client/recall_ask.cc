// recall ask: an answer in the model's own words, written as it comes.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/request_defaults.h"
#include "base/shorten.h"
#include "client/cli.h"
#include "client/text.h"

namespace recalld::client {

namespace {

struct AskArguments {
  GenerateRequest request;
  std::vector<std::string> words;
  bool sources = false;
};

// Waits for the reply; the first Ctrl-C cancels the answer, which then ends with what is written.
Expected<Json> wait_or_cancel(Client& client, uint64_t request, bool& cancelling) {
  auto result = client.wait(request);
  if (result || !Interrupt::seen() || cancelling) return result;
  cancelling = true;
  RECALLD_CHECK(client.cancel(request));
  return client.wait(request);
}

// Options that only matter where there is chance. No error, as it is none for the daemon: a script may well set the
// seed and leave the temperature at 0.
void warn_of_chance_that_is_off(const GenerateRequest& request) {
  if (request.temperature.value_or(temperature_default) > 0 || !(request.top_p || request.seed)) return;
  const std::string options = !request.seed ? "--top-p has" : !request.top_p ? "--seed has" : "--top-p and --seed have";
  warn(options +
       " no effect without a temperature above 0, such as --temperature 0.7: the likeliest token is always taken");
}

// Whether the question is about the newest turns, as a search sees it. Nearly every memory ends in some that are not
// read in full: to tell of them each time would teach nobody anything.
bool asks_of(Client& client, const GenerateRequest& request, const TurnRange& newest) {
  SearchRequest search;
  search.memory = request.memory;
  search.query = request.prompt;
  search.limit = 1;
  const auto found = client.search(search);
  return !found || (!found->results.empty() &&
                    std::ranges::any_of(found->results.front().turns, [&](const SearchReply::Source& source) {
                      return source.turn >= newest.first;
                    }));
}

// Of turns that the model could look nothing up in, or not in all of them: it answers all the same.
void warn_of_unread(Client& client, const GenerateRequest& request, const GenerateReply& reply) {
  if (reply.unread && (reply.unread->reason != "open_chunk" || asks_of(client, request, reply.unread->turns))) {
    const auto& [turns, reason] = *reply.unread;
    const bool one = turns.first == turns.last;
    std::string why = reason;
    if (reason == "open_chunk")
      why = "ask reads complete chunks of 64 tokens; recall search finds " + std::string(one ? "it" : "them");
    else if (reason == "encoding")
      why = "more chunks wait to be encoded than ask reads (recall health counts them); ask again later";
    else if (reason == "forgetting")
      why = "turns of " + request.memory +
            " are being forgotten, and what follows them is encoded anew (recall stats shows the " +
            "job); ask again when that is done";
    warn(turn_range(turns.first, turns.last) + (one ? " was" : " were") + " not read in full: " + why);
  }
  if (reply.chunks.empty()) warn("the answer was read from no chunk of the memory");
}

int run_ask(const Globals& globals, const AskArguments& arguments) {
  warn_of_chance_that_is_off(arguments.request);
  const Interrupt interrupt;
  bool cancelling = false;
  auto client = connect(globals, true, [&cancelling] { return Interrupt::seen() && !cancelling; });
  if (!client) return fail_with(client.error(), exit_no_daemon);
  int code = exit_ok;
  std::string told;
  const auto on_text = [&](std::string_view text) {
    told += text;
    if (code == exit_ok) code = print(printable(text));
  };
  const auto submitted = client->submit_generate(arguments.request, on_text);
  if (!submitted) return fail_with(submitted.error());
  const auto result = wait_or_cancel(*client, *submitted, cancelling);
  if (!told.empty() && code == exit_ok && !result) code = print("\n");
  if (!result) return fail_with(result.error());
  if (globals.json) {
    code = print_line(*result);
    return code == exit_ok && result->value("finish", "") == "cancelled" ? exit_interrupted : code;
  }
  const auto reply = decode<GenerateReply>(*result);
  if (!reply) return fail_with(reply.error());

  // What the daemon held back, as it does with half a character, comes with the reply.
  if (code == exit_ok)
    code = print(printable(std::string_view(reply->text).substr(std::min(told.size(), reply->text.size()))) + "\n");
  if (code == exit_ok && arguments.sources) code = print("\n" + report(*reply, Style::of_standard_output()));
  warn(reply->unreadable);
  if (reply->finish == "cancelled")
    return fail_with({ErrorKind::busy, "cancelled: the answer is not complete"}, exit_interrupted);
  warn_of_unread(*client, arguments.request, *reply);
  if (reply->finish == "max_tokens")
    warn("the answer was cut after " + counted(reply->tokens, "token") + "; --max-tokens lets it be longer");
  else if (reply->text.empty())
    warn("the model wrote nothing; recall search finds the passages themselves");
  return code;
}

// A number from 0 to `most`.
CLI::Validator up_to(double most) {
  return CLI::Validator(
      [most](const std::string& text) {
        double number = -1;
        const bool valid = CLI::detail::lexical_cast(text, number) && number >= 0 && number <= most;
        return valid ? std::string()
                     : "expected a number from 0 to " + fixed(most, 0) + ", got '" + shortened(text) + "'";
      },
      "");
}

}  // namespace

void add_ask(CLI::App& app, const Globals& globals, Run& run) {
  auto arguments = std::make_shared<AskArguments>();
  GenerateRequest& request = arguments->request;
  CLI::App* command = app.add_subcommand("ask", "Answer a question in the model's own words, from what a memory holds");
  command->add_option("MEMORY", request.memory, "The name of the memory")->required();
  command->add_option("QUESTION", arguments->words, "The question; several words are joined")->required();
  command->add_option("--max-tokens", request.max_tokens, "At most so many tokens")
      ->check(count_check)
      ->default_str(std::to_string(generate_tokens_default));
  command->add_option("--temperature", request.temperature, "0: always the likeliest token; up to 2: more chance")
      ->check(up_to(2))
      ->default_str(default_text(temperature_default));
  command
      ->add_option("--top-p", request.top_p,
                   "With a temperature above 0, choose among the likeliest tokens that make up this share")
      ->check(up_to(1))
      ->default_str(default_text(top_p_default));
  command
      ->add_option("--seed", request.seed,
                   "With a temperature above 0, repeat what was written with this seed; default: another each time")
      ->check(index_check);
  command->add_flag("--sources", arguments->sources, "Show the chunks that the answer was read from");
  command->callback([&globals, &run, arguments] {
    run = [&globals, arguments] {
      arguments->request.prompt = joined(arguments->words);
      arguments->request.stream = !globals.json;
      return run_ask(globals, *arguments);
    };
  });
}

}  // namespace recalld::client
