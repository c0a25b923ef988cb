#include <recalld/client/append_stream.h>
#include <recalld/client/client.h>

#include <cstdio>

// Asks a socket that does not exist: what must come back is the error that says how to start the daemon.
int main() {
  const auto client = recalld::client::Client::connect("/nonexistent/recalld.sock");
  if (client) return 1;
  std::puts(client.error().message.c_str());
  return client.error().kind == recalld::ErrorKind::io ? 0 : 1;
}
