"""A running recalld: calls through its socket, and one of our own for as long as it is needed. Standard library only."""
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path


class RpcError(Exception):
    """What the daemon answered instead of a result."""

    def __init__(self, method, error):
        super().__init__(f"{method}: {error['message']}")
        self.code, self.message = error["code"], error["message"]


class Rpc:
    """One connection; a call returns its result, and an error ends the program with its message."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        try:
            self.socket.connect(str(path))
        except OSError as error:
            sys.exit(f"connect to {path}: {error.strerror}; start recalld there, or name its socket")
        self.lines = self.socket.makefile("rwb")
        self.last_id = 0

    def call(self, method, **params):
        try:
            return self.request(method, **params)
        except RpcError as error:
            sys.exit(str(error))

    def request(self, method, **params):
        """As call, but an error of the daemon is raised as an RpcError."""
        self.last_id += 1
        request = {"jsonrpc": "2.0", "id": self.last_id, "method": method, "params": params}
        self.lines.write(json.dumps(request).encode() + b"\n")
        self.lines.flush()
        line = self.lines.readline()
        if not line:
            sys.exit(f"{method}: the daemon closed the connection")
        reply = json.loads(line)
        if "error" in reply:
            raise RpcError(method, reply["error"])
        return reply["result"]

    def resident_bytes_max(self):
        """The most that the daemon's process has held so far."""
        pid, _, _ = struct.unpack("3i", self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return int(re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())[1]) << 10


class DaemonProcess:
    """A recalld with a new store in a new directory under `folder`; both are gone at the end, by SIGTERM too."""

    def __init__(self, binary, folder, flags):
        if not Path(binary).is_file():
            sys.exit(f"start recalld: there is no {binary}; build the target recalld, or name it with --recalld")
        self.folder = Path(tempfile.mkdtemp(prefix="recalld-eval-", dir=folder))
        self.socket = self.folder / "socket"
        words = [binary, "--data", self.folder / "store", "--socket", self.socket, "--log-level", "warn", *flags]
        self.process = subprocess.Popen([str(word) for word in words], start_new_session=True)

    def __enter__(self):
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        try:
            until = time.monotonic() + 120
            while time.monotonic() < until and self.process.poll() is None:
                if self.socket.exists():
                    try:
                        return Rpc(self.socket)
                    except ConnectionRefusedError:
                        pass
                time.sleep(0.01)
        except BaseException:
            self.__exit__()
            raise
        gone = self.process.poll() is not None
        self.__exit__()
        sys.exit("start recalld: " + ("it exited; its message stands above" if gone else "no answer within two minutes"))

    def __exit__(self, *_):
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGTERM)
        status = self.process.wait()
        shutil.rmtree(self.folder)
        if status:
            print(f"recalld ended with {status}", file=sys.stderr)
