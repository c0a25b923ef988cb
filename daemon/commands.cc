#include "daemon/commands.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/shorten.h"
#include "daemon/protocol.h"

namespace recalld {
namespace {

// Who asks: a request of a client.
struct Asking {
  const Client& client;
  const RequestId& id;

  Caller caller() const { return {client.connection, id.value_or("null")}; }
};

// The engine's half of an answer: the reply as JSON, written on the thread that has it.
auto answering(Answer answer) {
  return [answer = std::move(answer)](auto reply) mutable {
    if (reply)
      answer(json_text(*reply));
    else
      answer(std::unexpected(rpc_error(std::move(reply).error())));
  };
}

// The steps that all methods share: read the arguments, then start.
template <class Request, class Start>
void run(Expected<Request> request, Answer answer, Start start) {
  if (!request) return answer(std::unexpected(rpc_error(std::move(request).error())));
  start(*std::move(request), std::move(answer));
}

// A method whose request goes to the engine as it is.
template <auto read, auto start>
void command(Engine& engine, Json& params, const Asking&, Answer answer) {
  run(read(params), std::move(answer),
      [&engine](auto request, Answer to) { (engine.*start)(std::move(request), answering(std::move(to))); });
}

// A method without arguments.
template <auto start>
void query(Engine& engine, Json& params, const Asking&, Answer answer) {
  run(no_arguments(params), std::move(answer),
      [&engine](NoArguments, Answer to) { (engine.*start)(answering(std::move(to))); });
}

void chunks_get(Engine& engine, Json& params, const Asking&, Answer answer) {
  run(chunks_get_request(params), std::move(answer), [&engine](ChunksGetRequest request, Answer to) {
    engine.chunks_get(std::move(request.memory), request.chunk, answering(std::move(to)));
  });
}

void version(Engine& engine, Json& params, const Asking&, Answer answer) {
  run(no_arguments(params), std::move(answer), [&engine](NoArguments, Answer to) { to(json_text(engine.version())); });
}

// A generation may tell its text as it is written, in notifications that carry the request's id.
void generate(Engine& engine, Json& params, const Asking& asking, Answer answer) {
  run(generate_request(params), std::move(answer), [&](GenerateRequest request, Answer to) {
    request.caller = asking.caller();
    if (request.stream && asking.id && asking.client.notify)
      request.on_text = [notify = asking.client.notify, id = *asking.id](const std::string& text) {
        notify(notification_line("generate.text", R"({"id":)" + id + R"(,"text":)" + json_string(text) + "}"));
      };
    if (asking.client.set_aside) asking.client.set_aside();
    engine.generate(std::move(request), answering(std::move(to)));
  });
}

void cancel(Engine& engine, Json& params, const Asking& asking, Answer answer) {
  run(cancel_request(params), std::move(answer), [&](std::string id, Answer to) {
    to(json_text(engine.cancel({asking.client.connection, std::move(id)})));
  });
}

struct Command {
  std::string_view name;
  void (*handler)(Engine& engine, Json& params, const Asking& asking, Answer answer);
};

constexpr std::array commands{
    Command{"append", command<append_request, &Engine::append>},
    Command{"search", command<search_request, &Engine::search>},
    Command{"generate", generate},
    Command{"cancel", cancel},
    Command{"memories.list", command<memories_list_request, &Engine::memories_list>},
    Command{"memories.get", command<memory_request, &Engine::memories_get>},
    Command{"memories.delete", command<delete_request, &Engine::memories_delete>},
    Command{"turns.list", command<turns_list_request, &Engine::turns_list>},
    Command{"chunks.list", command<chunks_list_request, &Engine::chunks_list>},
    Command{"chunks.get", chunks_get},
    Command{"forget", command<forget_request, &Engine::forget>},
    Command{"verify", command<verify_request, &Engine::verify>},
    Command{"export", command<export_request, &Engine::export_memory>},
    Command{"import", command<import_request, &Engine::import_memory>},
    Command{"backup", command<backup_request, &Engine::backup>},
    Command{"reencode", command<reencode_request, &Engine::reencode>},
    Command{"stats", query<&Engine::stats>},
    Command{"health", query<&Engine::health>},
    Command{"version", version},
};

RpcError no_such_method(std::string_view method) {
  std::string names;
  for (const Command& command : commands) names.append(names.empty() ? "" : ", ").append(command.name);
  return {code_method_not_found, ErrorKind::invalid_request,
          "method: there is no " + json_string(shortened(method)) + "; there are " + names};
}

}  // namespace

Call commands_of(Engine& engine, Client client) {
  return
      [&engine, client = std::move(client)](std::string_view method, Json& params, const RequestId& id, Answer answer) {
        const auto found = std::ranges::find(commands, method, &Command::name);
        if (found == commands.end()) return answer(std::unexpected(no_such_method(method)));
        found->handler(engine, params, {client, id}, std::move(answer));
      };
}

}  // namespace recalld
