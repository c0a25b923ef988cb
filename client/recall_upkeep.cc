// Commands of recall that look after what is stored: forget, memories delete, verify, backup, reencode.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <array>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/shorten.h"
#include "client/cli.h"
#include "client/filter_options.h"
#include "client/progress.h"
#include "client/text.h"

namespace recalld::client {

namespace {

constexpr auto poll_interval = std::chrono::milliseconds(500);

// ---- forget

// "4", "10-20", or several with commas between.
Expected<std::vector<TurnRange>> turn_ranges(const std::string& text) {
  std::vector<TurnRange> out;
  const char* at = text.data();
  const char* const end = at + text.size();
  const auto refuse = [&] {
    return fail(ErrorKind::invalid_request,
                "expected numbers of turns, or ranges such as 10-20, got '" + shortened(text) + "'");
  };
  for (;;) {
    TurnRange range;
    const auto first = std::from_chars(at, end, range.first);
    if (first.ec != std::errc()) return refuse();
    range.last = range.first;
    at = first.ptr;
    if (at != end && *at == '-') {
      const auto last = std::from_chars(at + 1, end, range.last);
      if (last.ec != std::errc() || range.last < range.first) return refuse();
      at = last.ptr;
    }
    out.push_back(range);
    if (at == end) return out;
    if (*at++ != ',') return refuse();
  }
}

std::string turns_check(const std::string& text) {
  const auto ranges = turn_ranges(text);
  return ranges ? "" : ranges.error().message;
}

struct ForgetArguments {
  std::string memory;
  std::vector<std::string> turns;
  FilterOptions which;
  bool dry_run = false;
  bool yes = false;
  bool no_wait = false;
};

Expected<ForgetRequest> forget_request(const ForgetArguments& arguments) {
  if (arguments.memory.ends_with('*'))
    return fail(ErrorKind::invalid_request,
                "forget: '" + shortened(arguments.memory) +
                    "' is the beginning of names, which search alone takes; forget in one memory at a time (recall "
                    "memories list PREFIX tells which there are)");
  ForgetRequest request;
  request.memory = arguments.memory;
  request.wait = !arguments.no_wait;
  RECALLD_TRY(request.filter, arguments.which.read());
  const bool filtered = !request.filter.is_null();
  if (filtered && !arguments.turns.empty()) {
    return fail(
        ErrorKind::invalid_request,
        "forget: give turns by number, or by --role, --name, --before, --after, --where and --filter, not both; "
        R"(a filter may name numbers too: --filter '{"turn":{"gte":10,"lte":20}}')");
  }
  if (!filtered && arguments.turns.empty()) {
    return fail(ErrorKind::invalid_request,
                "forget: say which turns, by number or by --role, --name, --before, --after, --where or --filter; "
                "recall memories "
                "delete removes a whole memory");
  }
  for (const std::string& text : arguments.turns) {
    RECALLD_TRY(const std::vector<TurnRange> ranges, turn_ranges(text));
    request.turns.insert(request.turns.end(), ranges.begin(), ranges.end());
  }
  return request;
}

int fail_unchanged(const Error& error) {
  if (!Interrupt::seen()) return fail_with(error);
  return fail_with({ErrorKind::busy, "interrupted: nothing was changed"}, exit_interrupted);
}

// The answer was not yes.
int kept() {
  if (Interrupt::seen()) std::fputs("\n", stderr);  // behind the question
  if (Interrupt::seen()) return fail_unchanged({});
  std::fputs("Kept.\n", stderr);
  return exit_error;
}

int fail_forgetting(const Error& error) {
  if (!Interrupt::seen()) return fail_with(error);
  return fail_with({ErrorKind::busy,
                    "interrupted: if the daemon had begun, the turns are gone from every read, and it "
                    "goes on erasing them; recall stats shows how far it is"},
                   exit_interrupted);
}

void say_that_it_takes_a_while(bool waits) {
  if (waits && isatty(STDERR_FILENO) != 0) std::fputs("Erasing; Ctrl-C leaves the rest of it to the daemon.\n", stderr);
}

int run_forget(const Globals& globals, const ForgetArguments& arguments) {
  auto request = forget_request(arguments);
  if (!request) return fail_with(request.error(), exit_usage);
  const bool ask = !arguments.yes && !arguments.dry_run;
  if (ask && !can_ask()) {
    return fail_with({ErrorKind::invalid_request, "forget turns of " + arguments.memory +
                                                      ": nobody to ask; give --dry-run to see how much would go, and "
                                                      "--yes to forget it"},
                     exit_usage);
  }
  const Interrupt interrupt;
  auto client = connect(globals, true, Interrupt::seen);
  if (!client) return fail_with(client.error(), exit_no_daemon);
  if (ask) {
    request->dry_run = true;
    const auto would = client->forget(*request);
    if (!would) return fail_unchanged(arguments.which.named(would.error()));
    std::fputs(report(*would, Style{}).c_str(), stderr);
    if (would->turn_count == 0) return exit_ok;
    if (!confirmed("Forget them for good?")) return kept();
    // Exactly what was shown, whatever was appended meanwhile.
    if (would->turns.size() <= forget_ranges_max) {
      request->turns = would->turns;
      request->filter = nullptr;
    }
  }
  request->dry_run = arguments.dry_run;
  say_that_it_takes_a_while(request->wait && !request->dry_run);
  const auto result = client->call("forget", params(*request));
  if (!result) {
    const Error error = arguments.which.named(result.error());
    return request->dry_run ? fail_unchanged(error) : fail_forgetting(error);
  }
  return print_reply<Receipt>(globals, *result);
}

// ---- verify

int run_verify(const Globals& globals, const VerifyRequest& request) {
  const Interrupt interrupt;
  auto client = connect(globals, true, Interrupt::seen);
  if (!client) return fail_with(client.error(), exit_no_daemon);
  const auto result = client->call("verify", params(request));
  if (!result && Interrupt::seen())
    return fail_with({ErrorKind::busy,
                      "interrupted: if the daemon had begun, it goes on; recall stats shows how far it is, and then "
                      "what it found"},
                     exit_interrupted);
  if (!result) return fail_with(result.error());
  const auto reply = decode<VerifyReply>(*result);
  if (!reply) return fail_with(reply.error());
  const int code = globals.json ? print_line(*result) : print(report(*reply, Style::of_standard_output()));
  if (code != exit_ok) return code;
  return reply->problem_count > reply->repaired_count ? exit_error : exit_ok;
}

// The directory as the daemon needs it, whose own directory is another.
std::string absolute(const std::string& directory) {
  return std::filesystem::absolute(directory).lexically_normal().string();
}

// ---- backup

int run_backup(const Globals& globals, const std::string& directory) {
  const Interrupt interrupt;
  auto client = connect(globals, true, Interrupt::seen);
  if (!client) return fail_with(client.error(), exit_no_daemon);
  const auto result = client->call("backup", {{"directory", absolute(directory)}});
  if (!result && Interrupt::seen())
    return fail_with({ErrorKind::busy, "interrupted: if the daemon had begun, it goes on; " + absolute(directory) +
                                           " is there as soon as it is whole"},
                     exit_interrupted);
  if (!result) return fail_with(result.error());
  return print_reply<BackupReply>(globals, *result);
}

// ---- reencode

// Shows how far a job is until it ends, or until Ctrl-C, which leaves it running.
int follow(const Globals& globals, Client& client, Job job) {
  {
    Progress progress(STDERR_FILENO);
    while (job.state == "running" && !Interrupt::seen()) {
      const bool known = job.total > 0;
      progress.show(
          known ? std::optional(static_cast<double>(job.done) / static_cast<double>(job.total)) : std::nullopt,
          printable(job.kind) + "  " + with_thousands(job.done) + " of " + counted(job.total, "chunk"));
      std::this_thread::sleep_for(poll_interval);
      const auto jobs = client.jobs();
      if (!jobs && Interrupt::seen()) break;
      if (!jobs) return fail_with(jobs.error());
      const auto found = std::ranges::find(jobs->jobs, job.job, &Job::job);
      if (found == jobs->jobs.end()) {
        return fail_with({ErrorKind::not_found,
                          "job " + std::to_string(job.job) + " is no longer among the daemon's jobs; see its log"},
                         exit_error);
      }
      job = *found;
    }
  }
  if (job.state == "running") {
    return fail_with({ErrorKind::busy, "job " + std::to_string(job.job) +
                                           " goes on in the daemon; recall stats shows how far it is, recall reencode "
                                           "--cancel drops it"},
                     exit_interrupted);
  }
  if (job.state == "failed") {
    return fail_with({ErrorKind::internal, job.kind + " failed: " + job.message});
  }
  if (globals.json) {
    return print_line({{"job", job.job}, {"kind", job.kind}, {"state", job.state}, {"message", job.message}});
  }
  return print(report(job, Style::of_standard_output()));
}

int run_reencode(const Globals& globals, const std::string& model, bool cancel, bool wait) {
  if (model.empty() != cancel) {
    return fail_with(
        {ErrorKind::invalid_request, cancel ? "reencode: give the directory of a model or --cancel, not both"
                                            : "reencode: give the directory of a model, or --cancel"},
        exit_usage);
  }
  const Interrupt interrupt;
  auto client = connect(globals, true, Interrupt::seen);
  if (!client) return fail_with(client.error(), exit_no_daemon);
  const auto result = client->call("reencode", cancel ? Json{{"cancel", true}} : Json{{"model", absolute(model)}});
  if (!result) return fail_with(result.error(), Interrupt::seen() ? exit_interrupted : exit_error);
  const auto job = decode<Job>(*result);
  if (!job) return fail_with(job.error());
  const bool follows = !cancel && (wait || isatty(STDERR_FILENO) != 0);
  if (follows && job->state == "running") return follow(globals, *client, *job);
  return globals.json ? print_line(*result) : print(report(*job, Style::of_standard_output()));
}

}  // namespace

int run_memories_delete(const Globals& globals, const std::string& memory, bool yes, bool wait) {
  const Interrupt interrupt;
  auto client = connect(globals, true, Interrupt::seen);
  if (!client) return fail_with(client.error(), exit_no_daemon);
  if (!yes) {
    if (!can_ask()) {
      return fail_with({ErrorKind::invalid_request, "delete " + memory + ": nobody to ask; give --yes to delete it"},
                       exit_usage);
    }
    const auto found = client->memory(memory);
    if (!found) return fail_unchanged(found.error());
    if (!confirmed("Delete " + memory + " with " + counted(found->turns, "turn") + " for good?")) return kept();
  }
  Json arguments{{"memory", memory}};
  if (!wait) arguments["wait"] = "none";
  say_that_it_takes_a_while(wait);
  const auto result = client->call("memories.delete", std::move(arguments));
  if (!result) return fail_forgetting(result.error());
  return print_reply<DeleteReply>(globals, *result);
}

void add_forget(CLI::App& app, const Globals& globals, Run& run) {
  auto arguments = std::make_shared<ForgetArguments>();
  CLI::App* command = app.add_subcommand("forget", "Forget turns of a memory, for good and without a trace");
  command->add_option("MEMORY", arguments->memory, "The name of the memory")->required();
  command->add_option("TURNS", arguments->turns, "Numbers of turns and ranges, such as 4 10-20")->check(turns_check);
  arguments->which.add(*command, "All turns");
  command->add_flag("--dry-run", arguments->dry_run, "Only say what would go");
  command->add_flag("--yes", arguments->yes, "Do not ask");
  command->add_flag("--no-wait", arguments->no_wait, "Do not wait until the bytes are erased from the disk");
  command->callback(
      [&globals, &run, arguments] { run = [&globals, arguments] { return run_forget(globals, *arguments); }; });
}

void add_verify(CLI::App& app, const Globals& globals, Run& run) {
  auto request = std::make_shared<VerifyRequest>();
  CLI::App* command = app.add_subcommand("verify", "Read everything that is stored and say what is damaged");
  command->add_option("MEMORY", request->memory, "Only this memory; default: all")
      ->check(not_empty("the name of a memory"));
  command->add_flag("--repair", request->repair, "Make again what follows from the turns");
  command->callback([&globals, &run, request] { run = [&globals, request] { return run_verify(globals, *request); }; });
}

void add_backup(CLI::App& app, const Globals& globals, Run& run) {
  auto directory = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand("backup", "Copy the whole store while it is in use");
  command->add_option("DIR", *directory, "Where to: a directory that does not exist yet, on the daemon's machine")
      ->required()
      ->check(not_empty("a directory"));
  command->callback(
      [&globals, &run, directory] { run = [&globals, directory] { return run_backup(globals, *directory); }; });
}

void add_reencode(CLI::App& app, const Globals& globals, Run& run) {
  struct Arguments {
    std::string model;
    bool cancel = false;
    bool wait = false;
  };
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = app.add_subcommand("reencode", "Encode everything with another model, behind what is served");
  command->add_option("MODEL_DIR", arguments->model, "The directory of the model's checkpoint");
  command->add_flag("--cancel", arguments->cancel, "Drop what has been encoded with another model");
  command->add_flag("--wait", arguments->wait, "Wait until it is ready; on a terminal this is so without it");
  command->callback([&globals, &run, arguments] {
    run = [&globals, arguments] { return run_reencode(globals, arguments->model, arguments->cancel, arguments->wait); };
  });
}

}  // namespace recalld::client
