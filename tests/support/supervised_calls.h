// A kernel that answers otherwise: system calls of one thread are decided by the test, through seccomp.
#pragma once

#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <future>
#include <iterator>
#include <optional>
#include <thread>

#include "base/descriptor.h"

namespace recalld {

// Runs body() on a thread of its own. Each of its system calls of this number, and of threads that it starts, waits
// for decide(const seccomp_data&), which runs on the calling thread: what it returns is the result of the call (or
// -errno), and with nothing the kernel carries the call out as usual. Nobody else's calls are touched.
template <class Decide, class Body>
void with_supervised_calls(uint32_t number, Decide decide, Body body) {
  std::promise<int> listener_of_body;
  std::thread thread([&] {
    sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    const sock_fprog filter{std::size(program), program};
    ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    const auto listener =
        static_cast<int>(::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &filter));
    listener_of_body.set_value(listener);
    if (listener != -1) body();
  });
  const Descriptor listener(listener_of_body.get_future().get());
  EXPECT_NE(listener.get(), -1) << "supervise system calls: seccomp refuses a listener";
  while (listener.get() != -1) {
    pollfd ready{listener.get(), POLLIN, 0};
    if (::poll(&ready, 1, -1) == -1 && errno == EINTR) continue;
    if ((ready.revents & POLLIN) == 0) break;  // the last thread with this filter has ended
    seccomp_notif call{};
    if (::ioctl(listener.get(), SECCOMP_IOCTL_NOTIF_RECV, &call) == -1) continue;  // it was interrupted meanwhile
    const std::optional<int64_t> result = decide(call.data);
    seccomp_notif_resp answer{};
    answer.id = call.id;
    if (!result)
      answer.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
    else if (*result < 0)
      answer.error = static_cast<int32_t>(*result);
    else
      answer.val = *result;
    ::ioctl(listener.get(), SECCOMP_IOCTL_NOTIF_SEND, &answer);
  }
  thread.join();
}

// What the supervised call's argument points to. Copied by the kernel, as TSan does not know that the thread waits.
template <class T>
T read_argument(uint64_t address) {
  T value{};
  const iovec to{&value, sizeof value};
  const iovec from{reinterpret_cast<void*>(address), sizeof value};
  EXPECT_EQ(::process_vm_readv(::getpid(), &to, 1, &from, 1, 0), static_cast<ssize_t>(sizeof value));
  return value;
}

}  // namespace recalld
