// recalld: reads its options, opens the engine, listens, and on a signal stops with everything durable.
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <exception>
#include <memory>
#include <utility>

#include <malloc.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>
#include <boost/asio/io_context.hpp>
#include <boost/asio/signal_set.hpp>

#include "daemon/commands.h"
#include "daemon/engine.h"
#include "daemon/gpu_library.h"
#include "daemon/json_rpc.h"
#include "daemon/options.h"
#include "daemon/requests.h"
#include "daemon/server.h"

namespace recalld {
namespace {

enum ExitStatus { stopped = 0, failed = 1, wrong_usage = 2 };

LineService line_service(Engine& engine) {
  const auto refusal = [](std::string message) {
    return error_line({code_invalid_request, ErrorKind::invalid_request, std::move(message)});
  };
  return {
      .serve = [&engine](
                   std::string line, Client client,
                   Respond respond) { serve_line(line, commands_of(engine, std::move(client)), std::move(respond)); },
      .closed = [&engine](uint64_t connection) { engine.connection_closed(connection); },
      .overloaded = [&engine] { return engine.overloaded(); },
      .overlong_reply =
          refusal("the line is longer than " + std::to_string(line_bytes_max) + " bytes; send less at a time"),
      .refusal = error_line(rpc_error({ErrorKind::busy, "too many connections are open; close one and try again"})),
  };
}

// Where few files may be open, the store's go first: without them no client could be served.
size_t connections_within_files_limit(size_t connections) {
  constexpr rlim_t store_files = 192;
  constexpr size_t connections_min = 16;
  rlimit files{};
  if (getrlimit(RLIMIT_NOFILE, &files) != 0 || files.rlim_cur >= store_files + connections) return connections;
  const size_t left = files.rlim_cur > store_files ? files.rlim_cur - store_files : 0;
  const size_t allowed = std::max(connections_min, left);
  spdlog::warn("{} files may be open: {} connections are served instead of {}; raise the limit with ulimit -n",
               files.rlim_cur, allowed, connections);
  return allowed;
}

Expected<void> serve(const Options& options, const Environment& environment) {
  // One thread for all connections: what it does is cut lines and read JSON, which the engine's own threads outweigh by
  // far, and it needs no locks for that.
  boost::asio::io_context io(1);
  boost::asio::signal_set signals(io, SIGINT, SIGTERM);  // from here on they wait until the engine can stop cleanly

  RECALLD_CHECK(Server::check(options.socket));
  EngineOptions engine_options;
  engine_options.data = options.data;
  engine_options.model = options.model;
  engine_options.device = options.device;
  engine_options.open_gpu = [&environment](const GpuOptions& gpu) { return open_gpu(environment, gpu); };
  engine_options.gpu_budget_bytes = options.gpu_budget_bytes;
  engine_options.precision = options.precision;
  engine_options.memory_budget_bytes = options.memory_budget_bytes;
  engine_options.threads = options.threads;
  engine_options.reencode = options.reencode;
  engine_options.repair = options.repair;
  RECALLD_TRY(std::unique_ptr<Engine> engine, Engine::open(std::move(engine_options)));

  ServerLimits limits;
  limits.connection.line_bytes_max = line_bytes_max;
  limits.connections_max = connections_within_files_limit(limits.connections_max);
  RECALLD_TRY(const std::unique_ptr<Server> server, Server::open(io, options.socket, line_service(*engine), limits));
  server->start();
  spdlog::info("ready: socket {}, data {}, model {}, device {}", options.socket.string(), options.data.string(),
               options.model.string(), engine->device());

  signals.async_wait([&](boost::system::error_code cancelled, int) {
    if (cancelled) return;
    spdlog::info("stopping: the requests in flight are finished first; a second signal cuts them off");
    signals.async_wait([&](boost::system::error_code again, int) {
      if (!again) server->stop_now();
    });
    engine->interrupt();
    server->stop([&] { signals.cancel(); });
  });
  io.run();

  engine.reset();  // commits what was accepted; late answers find their connections closed
  spdlog::info("stopped: everything accepted is durable");
  return {};
}

// Segments, the catalog's files and connections together can pass the usual soft limit of 1024 open files.
void raise_open_files_limit() {
  rlimit files{};
  if (getrlimit(RLIMIT_NOFILE, &files) != 0) return;
  files.rlim_cur = std::max(files.rlim_cur, std::min<rlim_t>(files.rlim_max, 16384));
  setrlimit(RLIMIT_NOFILE, &files);
}

// The heap gives large blocks back as soon as they are freed. Left alone, it raises this bound to the largest block
// that was ever freed, and keeps what is smaller. Pages of landmarks stay below it: a scan takes and frees one after
// the other. What is smaller comes from a few heaps that all threads share, since each keeps some of what it freed.
void bound_the_heap() {
  mallopt(M_MMAP_THRESHOLD, 256 << 10);
  mallopt(M_ARENA_MAX, 2);
}

int run(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);
  ::umask(0077);  // the store holds its owner's words: RocksDB, for one, makes files that everybody may read
  raise_open_files_limit();
  bound_the_heap();
  const Environment environment = process_environment();
  const auto command_line = read_options({argv, static_cast<size_t>(argc)}, environment);
  if (!command_line) {
    std::fprintf(stderr, "recalld: %s\n", command_line.error().message.c_str());
    return wrong_usage;
  }
  if (!command_line->print.empty()) {
    std::fputs(command_line->print.c_str(), stdout);
    return stopped;
  }
  spdlog::set_default_logger(spdlog::stderr_color_mt("recalld"));
  spdlog::set_pattern("%Y-%m-%dT%H:%M:%S.%eZ %^%l%$ %v", spdlog::pattern_time_type::utc);
  spdlog::set_level(spdlog::level::from_str(command_line->options.log_level));

  if (const auto served = serve(command_line->options, environment); !served) {
    std::fprintf(stderr, "recalld: %s\n", served.error().message.c_str());
    return failed;
  }
  return stopped;
}

}  // namespace
}  // namespace recalld

int main(int argc, char** argv) {
  try {
    return recalld::run(argc, argv);
  } catch (const std::exception& exception) {  // memory ran out, or a library broke its word
    std::fprintf(stderr, "recalld: %s\n", exception.what());
    return recalld::failed;
  }
}
