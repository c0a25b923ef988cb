// recall: the command line of recalld. Options here, work in the client library, words for people in report.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <iterator>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "base/shorten.h"
#include "client/append_stream.h"
#include "client/cli.h"
#include "client/client.h"
#include "client/progress.h"
#include "client/report.h"
#include "client/text.h"
#include "client/turn_reader.h"

namespace recalld::client {
namespace {

constexpr std::string_view footer = R"(
Exit codes:
  0  done
  1  the daemon failed or is busy, output could not be written, or verify left problems
  2  wrong usage, a value that is refused, or input that cannot be read as turns or records
  3  no daemon answers at the socket
  4  no such memory or chunk
  130  interrupted by Ctrl-C; the message says what was done

Examples:
  recall append notes chat.txt               one turn a line of text
  recall append notes chat.jsonl --wait      one JSON object a line: role, content, name, time, metadata
  git log -1 | recall append notes --role tool
  recall search notes where did we leave the boat key --expand turns
  recall search notes "boat key" --limit 3 --json
  recall search 'user/alice/*' where is the key
  recall search notes --also diary where is the key
  recall ask notes what is the code of the boathouse --sources
  recall chunks notes 12                     everything about one chunk
  recall forget notes 4 10-20                these turns, for good
  recall export notes notes.jsonl            recall import notes.jsonl restores it
)";

constexpr size_t page_limit = 200;

// ---- append

struct AppendArguments {
  std::string memory;
  std::string file = "-";
  std::string format = "auto";
  std::string role = "user";
  std::string name;
  std::string operation_id;
  bool wait = false;
};

// Turns that were given to a load and are not known to be stored.
struct Uncertain {
  uint64_t in_flight = 0;  // sent and not answered: they may be stored
  uint64_t not_sent = 0;
};

// Ctrl-C ended a load: how much of it is stored, and how to go on.
int tell_interrupted(const AppendArguments& arguments, const AppendStream::Total& total, const Uncertain& turns,
                     const std::string& source) {
  std::string message = "interrupted: " + counted(total.turns, "turn") + (total.turns == 1 ? " was" : " were") +
                        " stored in " + arguments.memory;
  if (total.end_line > 0) message += ", up to line " + std::to_string(total.end_line) + " of " + source;
  if (turns.in_flight > 0) message += "; " + counted(turns.in_flight, "turn") + " more may have been";
  if (turns.not_sent > 0)
    message += "; " + counted(turns.not_sent, "turn") + " behind them " + (turns.not_sent == 1 ? "was" : "were") +
               " read and not stored";
  if (!arguments.operation_id.empty()) message += "; the same command again goes on from there";
  return fail_with({ErrorKind::invalid_request, message}, exit_interrupted);
}

// Behind a line that was refused, where lines before it are stored.
std::string how_to_go_on(const AppendArguments& arguments, uint64_t line) {
  if (!arguments.operation_id.empty())
    return "; mend the line and give the same command again, which adds only what is missing";
  const std::string from = std::to_string(line);
  if (arguments.file == "-") return "; mend the line and append from line " + from + " on";
  return "; mend the line and append from line " + from + " on, for example with tail -n +" + from +
         " FILE: the whole file again would add those before it twice, which --operation-id prevents";
}

// For ClientOptions::stop: true once Ctrl-C was pressed and what is in flight has had `grace` to be answered.
std::function<bool()> interrupted_for(std::chrono::seconds grace) {
  return [grace, since = std::optional<std::chrono::steady_clock::time_point>()]() mutable {
    if (!Interrupt::seen()) return false;
    const auto now = std::chrono::steady_clock::now();
    if (!since) since = now;
    return now - *since >= grace;
  };
}

// After how long without a chunk --wait passes on what the daemon names as a problem.
constexpr auto stall_max = std::chrono::seconds(5);

// Waits until the chunks that are complete now are encoded: those of every turn that was acknowledged. It asks, rather
// than appending with wait "searchable", so that turns are acknowledged when they are durable and not with the last
// chunk. The daemon tries again what fails, so a problem that it names is a warning: it may be another memory's. Fails
// with Error::busy on Ctrl-C and after `limit_s`, where there is one.
Expected<Memory> wait_until_searchable(Client& client, const std::string& name, std::optional<double> limit_s) {
  constexpr auto pause_max = std::chrono::milliseconds(250);
  Progress progress(STDERR_FILENO);
  const auto start = std::chrono::steady_clock::now();
  auto moved = start;
  auto pause = std::chrono::milliseconds(10);
  std::optional<uint64_t> chunks;
  uint64_t encoded = 0;
  std::string told;
  for (;;) {
    RECALLD_TRY(Memory memory, client.memory(name));
    // Forgetting closes up the numbers of chunks: some may never be there.
    const uint64_t wanted = std::min(chunks.value_or(memory.chunks), memory.chunks);
    if (memory.encoded_chunks >= wanted) return memory;
    if (Interrupt::seen()) return fail(ErrorKind::busy, "interrupted");
    const auto now = std::chrono::steady_clock::now();
    if (!chunks || memory.encoded_chunks > encoded) moved = now;
    chunks = wanted;
    encoded = memory.encoded_chunks;
    if (now - moved >= stall_max) {
      moved = now;
      RECALLD_TRY(const Health health, client.health());
      if (!health.problem.empty() && health.problem != told)
        warn("nothing of " + name + " was encoded for 5 s, and recalld says: " + health.problem +
             ". It tries again; Ctrl-C ends the waiting and keeps the turns");
      told = health.problem;
    }
    if (limit_s && std::chrono::duration<double>(now - start).count() >= *limit_s)
      return fail(ErrorKind::busy, "not everything was encoded within " + fixed(*limit_s, 2) + " s");
    progress.show(static_cast<double>(encoded) / static_cast<double>(wanted),
                  with_thousands(encoded) + " of " + counted(wanted, "chunk") + " encoded");
    std::this_thread::sleep_for(pause);
    pause = std::min(2 * pause, pause_max);
  }
}

// Ctrl-C, the time or an error ended the waiting of --wait. Every turn was acknowledged by then.
int tell_waiting_ended(const AppendArguments& arguments, const AppendStream::Total& total, Error error) {
  if (Interrupt::seen()) error = {ErrorKind::busy, "interrupted"};
  error.message +=
      ": " + (total.turns == 1 ? "the 1 turn was" : "all " + counted(total.turns, "turn") + " were") + " acknowledged";
  if (error.kind == ErrorKind::busy) {
    error.message += std::string(" and ") + (total.turns == 1 ? "is" : "are") + " kept in " + arguments.memory +
                     "; only the waiting was given up, not the encoding: recall memories get " + arguments.memory +
                     " tells how far it is";
  } else if (error.kind == ErrorKind::not_found) {
    error.message += ", and the memory was deleted while its encoding was waited for";
  } else {
    error.message += " as durable; the encoding goes on as soon as recalld does";
  }
  return Interrupt::seen() ? fail_with(error, exit_interrupted) : fail_with(error);
}

int run_append(const Globals& globals, const AppendArguments& arguments) {
  TurnReader::Options reading;
  reading.format = arguments.format == "text"    ? InputFormat::text
                   : arguments.format == "jsonl" ? InputFormat::json_lines
                                                 : InputFormat::automatic;
  reading.role = arguments.role;
  if (!arguments.name.empty()) reading.name = arguments.name;
  const Interrupt interrupt;
  std::optional<Error> unreadable;
  std::optional<Error> refused;
  std::function<void()> on_pause = [] {};
  reading.lines.stop = [&] { return Interrupt::seen() || refused; };
  reading.lines.on_pause = [&] { on_pause(); };
  auto reader = TurnReader::open(arguments.file, reading);
  if (!reader) return fail_with(reader.error(), exit_usage);
  auto client = connect(globals, false, interrupted_for(std::chrono::seconds(2)));
  if (!client) return fail_with(client.error(), exit_no_daemon);
  const bool typed = arguments.file == "-" && can_ask();
  if (typed) std::fputs("One turn a line; end with Ctrl-D on a line of its own.\n", stderr);

  const auto start = std::chrono::steady_clock::now();
  AppendStream::Total total;
  Uncertain uncertain;
  {
    Progress progress(typed ? -1 : STDERR_FILENO, reader->bytes_total());
    AppendStream::Options options;
    options.operation_prefix = arguments.operation_id;
    if (!arguments.operation_id.empty()) {
      const auto memory = client->memory(arguments.memory);
      if (!memory && memory.error().kind != ErrorKind::not_found) return fail_with(memory.error());
      options.turns_there = memory ? memory->next_turn : 0;
    }
    options.source = reader->source();
    options.on_reply = [&](const AppendStream::Total& so_far) {
      progress.show(so_far.end_byte, so_far.turns, so_far.tokens);
    };
    AppendStream stream(*client, arguments.memory, std::move(options));
    on_pause = [&] {
      if (auto sent = stream.flush(); !sent) refused = sent.error();
    };
    while (!refused) {
      auto item = reader->next();
      if (!item) unreadable = item.error();
      if (!item || !*item) break;
      if (auto added = stream.add(std::move((*item)->turn), (*item)->origin); !added) refused = added.error();
    }
    // What was read before a bad line or Ctrl-C is appended all the same: its turns are good, and the message says how
    // far it went. Under an operation id that holds for whole requests alone, so that the load can be repeated.
    if (!refused) {
      const bool whole_requests = !arguments.operation_id.empty() && (Interrupt::seen() || unreadable);
      if (whole_requests) uncertain.not_sent = stream.turns_waiting();
      if (auto ended = whole_requests ? stream.settle() : stream.finish(); !ended) refused = ended.error();
    }
    total = stream.total();
    uncertain.in_flight = stream.turns_in_flight();
  }
  if (reader->skipped() > 0) {
    warn(counted(reader->skipped(), "line") + " without content skipped, the first is " + reader->source() + ":" +
         std::to_string(reader->first_skipped_line()));
  }
  if (Interrupt::seen()) return tell_interrupted(arguments, total, uncertain, reader->source());
  if (refused || unreadable) {
    Error error = refused ? *refused : *unreadable;
    if (total.turns > 0 || uncertain.in_flight > 0) {
      error.message += " (" + counted(total.turns, "turn") + (total.turns == 1 ? " was" : " were") + " stored";
      if (uncertain.in_flight > 0) {
        error.message += ", " + counted(uncertain.in_flight, "turn") + " more may have been; recall memories get " +
                         arguments.memory + " tells";
      }
      error.message += ")";
      if (unreadable && !refused) error.message += how_to_go_on(arguments, reader->line());
    }
    return unreadable && !refused ? fail_with(error, exit_usage) : fail_with(error);
  }
  if (arguments.wait && total.turns > 0) {
    const bool limited = globals.timeout_given && globals.timeout_s > 0;
    const auto memory =
        wait_until_searchable(*client, arguments.memory, limited ? std::optional(globals.timeout_s) : std::nullopt);
    if (!memory) return tell_waiting_ended(arguments, total, memory.error());
    total.searchable_through = memory->searchable_through;
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (!globals.json) return print(report(total, arguments.memory, seconds));
  const auto or_null = [](const std::optional<uint64_t>& number) { return number ? Json(*number) : Json(nullptr); };
  Json result{{"memory", arguments.memory},
              {"first_turn", or_null(total.first_turn)},
              {"last_turn", or_null(total.last_turn)},
              {"tokens", total.tokens},
              {"searchable_through", or_null(total.searchable_through)}};
  return print_line(result);
}

// ---- listings

struct ListArguments {
  std::string memory;
  std::optional<uint64_t> from;
  std::optional<uint64_t> limit;
};

// Prints page after page until the end or until `limit` entries. With --json every page is one line.
int print_pages(const Globals& globals, std::string_view method, const ListArguments& arguments,
                std::string_view name_key, std::string_view entries_key,
                const std::function<Expected<std::string>(const Json& page, bool first)>& to_text) {
  auto client = connect(globals);
  if (!client) return fail_with(client.error(), exit_no_daemon);
  PageRequest request;
  request.memory = arguments.memory;
  request.first = arguments.from;
  uint64_t left = arguments.limit.value_or(UINT64_MAX);
  for (bool first = true;; first = false) {
    request.limit = std::min<uint64_t>(page_limit, left);
    const auto page = client->call(method, params(request, name_key));
    if (!page) return fail_with(page.error());
    if (globals.json) {
      if (const int code = print_line(*page); code != exit_ok) return code;
    } else {
      const auto text = to_text(*page, first);
      if (!text) return fail_with(text.error());
      const auto listed = page->find(entries_key);
      if (first && !arguments.memory.empty() && name_key == "memory" && listed != page->end() && listed->empty()) {
        const std::string from = arguments.from ? " from " + std::to_string(*arguments.from) + " on" : "";
        warn(arguments.memory + " has no " + std::string(entries_key) + from);
      }
      if (const int code = print(*text); code != exit_ok) return code;
    }
    const auto entries = page->find(entries_key);
    const auto next = page->find("next_cursor");
    left -= std::min<uint64_t>(left, entries != page->end() ? entries->size() : 0);
    if (left == 0 || next == page->end() || !next->is_string()) return exit_ok;
    request.cursor = next->get<std::string>();
    request.first.reset();
  }
}

template <class Reply>
Expected<std::string> page_text(const Json& page) {
  RECALLD_TRY(const Reply reply, decode<Reply>(page));
  return report(reply, Style::of_standard_output());
}

// ---- the command table

// Arguments are shared by the bindings of their options, which CLI11 keeps, and by the callback.

void add_append(CLI::App& app, const Globals& globals, Run& run) {
  auto arguments = std::make_shared<AppendArguments>();
  CLI::App* command = app.add_subcommand("append", "Append turns from a file or a pipe");
  command->add_option("MEMORY", arguments->memory, "The memory; made when it does not exist")->required();
  command->add_option("FILE", arguments->file, "What to read; - is standard input")->capture_default_str();
  command->add_option("--format", arguments->format, "auto, text (a turn a non-empty line) or jsonl (an object a line)")
      ->check(word_check({"auto", "text", "jsonl"}))
      ->capture_default_str();
  command->add_option("--role", arguments->role, "Role of turns that name none: user, assistant, system or tool")
      ->check(word_check({"user", "assistant", "system", "tool"}))
      ->capture_default_str();
  command->add_option("--name", arguments->name, "Speaker of turns that name none")->check(not_empty("a name"));
  command
      ->add_option("--operation-id", arguments->operation_id,
                   "Make the load repeatable: the same input under the same id again changes nothing. Turns are then "
                   "sent in whole batches alone, the last when the input ends")
      ->check([](const std::string& id) {
        const size_t most = AppendStream::operation_prefix_bytes_max;
        return !id.empty() && id.size() <= most ? "" : "expected 1 to " + std::to_string(most) + " bytes";
      });
  command->add_flag(
      "--wait", arguments->wait,
      "Wait until everything is encoded and searchable, not only stored: as long as it takes, or as --timeout says");
  command->footer(
      "Turns are sent while the input is read, at the latest when a pipe or a terminal has been waited for 0.2 s. "
      "Ctrl-C "
      "stores the whole lines that have come, and says how many turns are stored. Neither sends a batch under an "
      "--operation-id before it is full: its turns must be the same each time.");
  command->callback(
      [&globals, &run, arguments] { run = [&globals, arguments] { return run_append(globals, *arguments); }; });
}

void add_memories(CLI::App& app, const Globals& globals, Run& run) {
  auto name = std::make_shared<std::string>();
  auto yes = std::make_shared<bool>(false);
  auto no_wait = std::make_shared<bool>(false);
  CLI::App* command = app.add_subcommand("memories", "List, show or delete memories");
  command->require_subcommand(0, 1);
  const auto list = [&globals, name] {
    return print_pages(globals, "memories.list", {*name, {}, {}}, "prefix", "memories",
                       [name](const Json& page, bool first) -> Expected<std::string> {
                         RECALLD_TRY(const auto reply, decode<MemoriesReply>(page));
                         if (first && reply.memories.empty() && !name->empty())
                           return "No memory begins with " + printable(*name) + ".\n";
                         return report(reply, Style::of_standard_output(), first);
                       });
  };
  command->callback([command, &run, list] {
    if (command->get_subcommands().empty()) run = list;
  });

  CLI::App* listing = command->add_subcommand("list", "List memories by name");
  listing->add_option("--prefix,PREFIX", *name, "Only names that begin with this; default: all");
  listing->callback([&run, list] { run = list; });

  CLI::App* get = command->add_subcommand("get", "Show one memory");
  get->add_option("MEMORY", *name, "The name of the memory")->required();
  get->callback([&globals, &run, name] {
    run = [&globals, name] { return call_and_report<Memory>(globals, "memories.get", {{"memory", *name}}); };
  });

  CLI::App* erase = command->add_subcommand("delete", "Delete one memory, for good");
  erase->add_option("MEMORY", *name, "The name of the memory")->required();
  erase->add_flag("--yes", *yes, "Do not ask");
  erase->add_flag("--no-wait", *no_wait, "Do not wait until its bytes are erased from the disk");
  erase->callback([&globals, &run, name, yes, no_wait] {
    run = [&globals, name, yes, no_wait] { return run_memories_delete(globals, *name, *yes, !*no_wait); };
  });
}

void add_turns(CLI::App& app, const Globals& globals, Run& run) {
  auto arguments = std::make_shared<ListArguments>();
  CLI::App* command = app.add_subcommand("turns", "Print the turns of a memory, as they were appended");
  command->add_option("MEMORY", arguments->memory, "The name of the memory")->required();
  command->add_option("--from", arguments->from, "Begin with this turn")->check(index_check)->default_str("0");
  command->add_option("--limit", arguments->limit, "At most so many turns; default: all")->check(count_check);
  command->callback([&globals, &run, arguments] {
    run = [&globals, arguments] {
      return print_pages(globals, "turns.list", *arguments, "memory", "turns",
                         [](const Json& page, bool) { return page_text<TurnsReply>(page); });
    };
  });
}

void add_chunks(CLI::App& app, const Globals& globals, Run& run) {
  struct Arguments {
    ListArguments list;
    std::optional<uint64_t> chunk;
  };
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = app.add_subcommand("chunks", "List the encoded chunks of a memory, or show one whole");
  command->add_option("MEMORY", arguments->list.memory, "The name of the memory")->required();
  command->add_option("CHUNK", arguments->chunk, "Show this chunk: text, tokens, place of its KV, landmark norm")
      ->check(index_check);
  command->add_option("--from", arguments->list.from, "Begin with this chunk")->check(index_check)->default_str("0");
  command->add_option("--limit", arguments->list.limit, "At most so many chunks; default: all")->check(count_check);
  command->callback([&globals, &run, arguments] {
    run = [&globals, arguments] {
      if (!arguments->chunk) {
        return print_pages(globals, "chunks.list", arguments->list, "memory", "chunks",
                           [](const Json& page, bool) { return page_text<ChunksReply>(page); });
      }
      return call_and_report<Chunk>(globals, "chunks.get",
                                    {{"memory", arguments->list.memory}, {"chunk", *arguments->chunk}});
    };
  });
}

void add_inspection(CLI::App& app, const Globals& globals, Run& run) {
  app.add_subcommand("stats", "Print the daemon's figures")->callback([&globals, &run] {
    run = [&globals] { return call_and_report<Json>(globals, "stats"); };
  });
  app.add_subcommand("health", "Say whether the daemon is ready and how much waits")->callback([&globals, &run] {
    run = [&globals] { return call_and_report<Health>(globals, "health"); };
  });
  app.add_subcommand("version", "Print the daemon's version and model")->callback([&globals, &run] {
    run = [&globals] { return call_and_report<Version>(globals, "version"); };
  });
}

// What CLI11 says, which repeats what was typed, however long.
std::string with_shortened(std::string message, std::span<char* const> typed) {
  for (const std::string_view argument : typed) {
    const std::string_view value =
        argument.starts_with("--") ? argument.substr(std::min(argument.size(), argument.find('=') + 1)) : argument;
    const std::string brief = shortened(value);
    if (brief == value) continue;
    for (size_t at = message.find(value); at != std::string::npos; at = message.find(value, at + brief.size()))
      message.replace(at, value.size(), brief);
  }
  return message;
}

// What was wrong, in the words of all other messages where CLI11 has its own.
std::string worded(const CLI::App& app, const CLI::ParseError& problem) {
  const std::string said = problem.what();
  std::vector<std::string> unexpected = app.remaining(true);
  std::erase(unexpected, "--");
  const bool without_command = app.get_subcommands().empty();
  const bool extras = dynamic_cast<const CLI::ExtrasError*>(&problem) != nullptr;
  if ((without_command || extras) && !unexpected.empty()) {
    if (unexpected.front().starts_with('-')) return "there is no option '" + unexpected.front() + "'";
    if (without_command) return "there is no command '" + unexpected.front() + "'";
    std::string all;
    for (const std::string& each : unexpected) all += (all.empty() ? "'" : " '") + each + "'";
    return "expected nothing more, got " + all;
  }
  const std::string option = said.substr(0, said.find(": "));
  if (said.contains(": At Most 1 required but received ")) return option + ": expected once, given more than once";
  if (dynamic_cast<const CLI::ArgumentMismatch*>(&problem) != nullptr && said.ends_with(" missing"))
    return option + ": expected a value, got none";
  if (said == "A subcommand is required") return "expected a command, got none";
  return said;
}

// An option such as --name= with nothing behind it, for which CLI11 takes the next argument; empty: none.
std::string option_without_value(std::span<char* const> typed) {
  for (const std::string_view argument : typed) {
    if (argument == "--") break;
    const std::string_view option = argument.substr(0, argument.find('='));
    if (option.starts_with("--") && option.size() + 1 == argument.size() && !option.contains(' '))
      return std::string(option);
  }
  return "";
}

// On one line, with the help that belongs to the command that was meant.
Error usage_error(const CLI::App& app, std::string message, std::span<char* const> typed) {
  std::string command = app.get_name();
  for (const CLI::App* named = &app; !named->get_subcommands().empty();) {
    named = named->get_subcommands().front();
    command += " " + named->get_name();
  }
  return {ErrorKind::invalid_request, with_shortened(std::move(message), typed) + "; see " + command + " --help"};
}

int run_main(int argc, char** argv) {
  Globals globals;
  Run run;
  CLI::App app("recall: talk to recalld, a memory for agents", "recall");
  app.set_version_flag("--version", "recall " RECALLD_VERSION);
  app.require_subcommand(1);
  app.fallthrough();  // --socket and --json may stand behind the command too
  globals.socket = default_socket();
  app.add_option("--socket", globals.socket, "The daemon's socket; else $RECALLD_SOCKET, else as recalld chooses it")
      ->check(not_empty("the path of a socket"))
      ->capture_default_str();
  app.add_flag("--json", globals.json, "Print the reply's result, one line of JSON (one a page)");
  const CLI::Option* timeout =
      app.add_option(
             "--timeout", globals.timeout_s,
             "Seconds to wait for a reply; 0: for ever. What may take long (append --wait, ask, forget, verify and "
             "the like) waits for ever unless this is given")
          ->check(number_check(0, 1e6))
          ->capture_default_str();

  add_append(app, globals, run);
  add_search(app, globals, run);
  add_ask(app, globals, run);
  add_memories(app, globals, run);
  add_turns(app, globals, run);
  add_chunks(app, globals, run);
  add_forget(app, globals, run);
  add_export(app, globals, run);
  add_import(app, globals, run);
  add_verify(app, globals, run);
  add_backup(app, globals, run);
  add_reencode(app, globals, run);
  add_inspection(app, globals, run);
  app.footer(std::string(footer));  // after the commands, which would inherit it

  const std::span<char* const> typed(argv, static_cast<size_t>(argc));
  std::string wrong;
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& problem) {
    if (problem.get_exit_code() == 0) return app.exit(problem);  // --help or --version
    wrong = worded(app, problem);
  }
  if (const std::string option = option_without_value(typed); !option.empty())
    wrong = option + ": expected a value behind " + option + "=";
  if (!wrong.empty()) return fail_with(usage_error(app, std::move(wrong), typed), exit_usage);
  globals.timeout_given = timeout->count() > 0;
  return run();
}

}  // namespace
}  // namespace recalld::client

int main(int argc, char** argv) {
  try {
    return recalld::client::run_main(argc, argv);
  } catch (const std::exception& problem) {  // what is left: no memory, or a mistake of ours
    std::fprintf(stderr, "recall: %s\n", problem.what());
    return recalld::client::exit_error;
  }
}
