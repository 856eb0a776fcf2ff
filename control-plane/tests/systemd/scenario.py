"""What an administrator does with the package, done on a machine with systemd as process 1: runs inside it as root, started by `systemd_boot.rs`. Each case is a
function; they run in the order of the file and lean on each other, so the first failure ends the run. One line is printed for each."""

import base64
import ctypes
import json
import os
import pathlib
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback

HERE = pathlib.Path("/srv/test")
OLD, NEW = HERE / "old.deb", HERE / "new.deb"
ETC = pathlib.Path("/etc/uringcast")
CONFIG = ETC / "uringcast.toml"
DROP_IN = pathlib.Path("/run/systemd/system/uringcast.service.d/test.conf")
KEEP_DROP_IN = DROP_IN.with_name("zz-keep.conf")
SOCKET_DROP_IN = pathlib.Path("/run/systemd/system/uringcast.socket.d/test.conf")
PUBLIC = ("127.0.0.1", 3000)
SECRETS = ("jwt_secret", "admin_token")
# Seconds within which a local machine does anything it is asked to, however busy.
PATIENCE = 30


def run(*command, expect=0):
    """Runs a command; its output. `expect` is its exit status, None for any."""
    done = subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=2 * PATIENCE)
    told = done.stdout + done.stderr
    assert expect is None or done.returncode == expect, f"{command} ended with {done.returncode} and not {expect}:\n{told}"
    return told


def shown(name, unit="uringcast.service"):
    return run("systemctl", "show", "--property", name, "--value", unit).strip()


def main_pid():
    return int(shown("MainPID"))


def until(what, is_so, patience=PATIENCE):
    """Waits until `is_so()` is true; its value."""
    end = time.monotonic() + patience
    while True:
        value = is_so()
        if value:
            return value
        assert time.monotonic() < end, f"not within {patience} s: {what}"
        time.sleep(0.05)


def until_active(besides=0):
    """Waits until the service runs as another process than this one; its id."""
    def other():
        pid = main_pid()
        return pid if shown("ActiveState") == "active" and pid not in (0, besides) else None
    return until("the service is active", other)


def journal():
    return run("journalctl", "--unit", "uringcast.service", "--output", "cat", "--no-pager")


def until_said(words, before=""):
    """Waits until the journal has these words after what it had before."""
    return until(f"the journal says {words!r}", lambda: words in journal()[len(before):])


def drop_in(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    run("systemctl", "daemon-reload")


def token_of(user):
    return run("uringcast", "token", "--sub", user, "--rooms", "r", "--secret-file", ETC / "jwt_secret").strip()


class WebSocket:
    def __init__(self, path, patience=PATIENCE):
        self.stream = socket.create_connection(PUBLIC, patience)
        key = base64.b64encode(os.urandom(16)).decode()
        self.stream.sendall((f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                             f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n").encode())
        self.unread = b""
        while b"\r\n\r\n" not in self.unread:
            more = self.stream.recv(4096)
            assert more, f"the connection ended in its handshake: {self.unread!r}"
            self.unread += more
        head, self.unread = self.unread.split(b"\r\n\r\n", 1)
        assert head.startswith(b"HTTP/1.1 101"), head

    def take(self, count):
        while len(self.unread) < count:
            more = self.stream.recv(4096)
            if not more:
                raise EOFError("the connection ended without a close frame")
            self.unread += more
        taken, self.unread = self.unread[:count], self.unread[count:]
        return taken

    def frame(self):
        first, length = self.take(2)
        if length == 126:
            length, = struct.unpack("!H", self.take(2))
        return first & 15, self.take(length)

    def close_code(self):
        """What it is told at the end."""
        while True:
            opcode, payload = self.frame()
            if opcode == 8:
                return struct.unpack("!H", payload[:2])[0] if payload else None

    def is_cut(self):
        try:
            while True:
                self.frame()
        except (EOFError, ConnectionError):
            return True


class Client(WebSocket):
    """A client of the community endpoint; every word of it can be counted on to fail if the connection is not the one it began with."""

    def __init__(self, user, token=None):
        super().__init__(f"/api/community/ws?token={token or token_of(user)}")
        self.hear("USER_JOINED")

    def hear(self, kind):
        """The next message of this kind; others are passed over."""
        while True:
            opcode, payload = self.frame()
            assert opcode == 1, f"frame {opcode} {payload!r} instead of {kind}"
            message = json.loads(payload)
            if message["type"] == kind:
                return message

    def ping(self):
        text = b'{"type":"PING"}'
        self.stream.sendall(bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text)
        self.hear("PONG")


class Newcomers(threading.Thread):
    """Comes and goes without pause; counts those who were refused or cut."""

    def __init__(self):
        super().__init__(daemon=True)
        self.over, self.came, self.failed = False, 0, []
        self.start()

    def run(self):
        while not self.over:
            try:
                with socket.create_connection(PUBLIC, PATIENCE) as stream:
                    stream.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                    assert stream.recv(16).startswith(b"HTTP/1.1 "), "no answer"
                self.came += 1
            except (OSError, AssertionError) as fault:
                self.failed.append(repr(fault))
            time.sleep(0.005)

    def end(self):
        self.over = True
        self.join()
        return self.came, self.failed


def exit_statuses():
    return shown("Result"), int(shown("ExecMainStatus"))


def an_installed_package_serves():
    run("dpkg", "--install", OLD)
    pid = until_active()
    assert shown("UnitFileState") == "enabled"
    assert run("systemctl", "is-enabled", "uringcast.socket", expect=None).strip() == "disabled", "the socket is for whoever wants it"
    for secret in SECRETS:
        file = ETC / secret
        found = file.stat()
        assert (found.st_mode & 0o777, found.st_uid) == (0o600, 0) and re.fullmatch("[0-9a-f]{64}", file.read_text()), secret
    assert len({(ETC / secret).read_text() for secret in SECRETS}) == 2
    assert str(CONFIG) in run("dpkg-query", "--show", "--showformat=${Conffiles}", "uringcast")
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    uid = int(re.search(r"^Uid:\s+(\d+)", status, re.MULTILINE)[1])
    assert uid == int(run("id", "--user", "uringcast")) != 0, "the account of the package"
    assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE) and re.search(r"^Seccomp:\s+2$", status, re.MULTILINE), status
    assert re.search(r"serves: .*\(\d+ shards, io_uring\)", journal()), "io_uring works under the unit:\n" + journal()
    json.loads(run("uringcast", "stats", "--json"))
    for page in ("man/man1/uringcast.1.gz", "man/man1/uringcast-kick.1.gz", "bash-completion/completions/uringcast",
                 "zsh/vendor-completions/_uringcast", "fish/vendor_completions.d/uringcast.fish"):
        # The image leaves documentation out; what the package has is what counts.
        assert f"/usr/share/{page}" in run("dpkg", "--listfiles", "uringcast"), page


def clients_are_served():
    clients = [Client(f"user{number}") for number in range(4)]
    for client in clients:
        client.ping()
    assert len(json.loads(run("uringcast", "connections", "--json"))["connections"]) == 4


def a_killed_process_is_started_again():
    # Less patience than the unit has, and more starts within a minute than it allows.
    drop_in(DROP_IN, "[Unit]\nStartLimitIntervalSec=0\n"
            "[Service]\nRestartSec=100ms\nWatchdogSec=3\nEnvironment=URINGCAST_SERVER_DRAIN_SECONDS=1\n")
    pid, client = until_active(), Client("killed")
    os.kill(pid, signal.SIGKILL)
    until_active(besides=pid)
    assert client.is_cut()
    Client("killed").ping()


def a_store_that_is_not_allowed_is_told_of():
    before = journal()
    drop_in(KEEP_DROP_IN, "[Service]\nEnvironment=URINGCAST_SERVER_KEEP_SOCKETS=true\n")
    run("systemctl", "restart", "uringcast.service")
    until_said("server.keep_sockets has no effect: the service manager does not keep what it is given", before)
    Client("unkept").ping()


def the_clients_of_a_killed_process_are_told():
    drop_in(KEEP_DROP_IN, (HERE / "keep-sockets.conf").read_text())
    run("systemctl", "restart", "uringcast.service")
    pid, before, tokens = until_active(), journal(), [token_of(f"kept{number}") for number in range(4)]
    shards = os.cpu_count()
    assert int(shown("NFileDescriptorStore")) == shards
    plain = [Client("", tokens[number % 4]) for number in range(200)]
    engine_io = [WebSocket("/socket.io/?EIO=4&transport=websocket") for _ in range(20)]
    # Copies go into the queue ten times a second, and over a reload.
    time.sleep(0.5)
    run("systemctl", "reload", "uringcast.service")
    time.sleep(1)
    os.kill(pid, signal.SIGKILL)
    assert [client.close_code() for client in plain] == [1012] * 200
    assert [client.close_code() for client in engine_io] == [None] * 20
    again = [Client("", tokens[number % 4]) for number in range(200)]
    for client in again:
        client.ping()
    until_active(besides=pid)
    until_said("220 of its clients were told, 0 were gone", before)
    assert int(shown("NFileDescriptorStore")) == shards, "those of the new process alone"
    run("systemctl", "stop", "uringcast.service")
    assert [client.close_code() for client in again] == [1001] * 200
    assert int(shown("NFileDescriptorStore")) == 0
    KEEP_DROP_IN.unlink()
    run("systemctl", "daemon-reload")
    run("systemctl", "start", "uringcast.service")


def a_fed_watchdog_is_quiet():
    pid, client = until_active(), Client("watched")
    time.sleep(5)
    client.ping()
    assert main_pid() == pid, "it lives longer than the watchdog's time"


def a_stopped_process_is_found_by_the_watchdog():
    pid, before = until_active(), journal()
    os.kill(pid, signal.SIGSTOP)
    until_active(besides=pid)
    until_said("Watchdog timeout", before)
    Client("after").ping()


def a_hanging_shard_is_found_by_the_watchdog():
    pid, before = until_active(), journal()
    threads = pathlib.Path(f"/proc/{pid}/task")
    shard, = [int(task.name) for task in threads.iterdir() if (task / "comm").read_text().strip() == "shard-0"]
    stop_thread(shard)
    until_said("shard 0 has not turned for", before)
    until_said("Watchdog timeout", before)
    let_die(shard)
    until_active(besides=pid)
    Client("after").ping()


def stop_thread(thread):
    """Stops one thread as a debugger does; the others go on."""
    seize, interrupt = 0x4206, 0x4207
    libc = ctypes.CDLL(None, use_errno=True)
    for request in (seize, interrupt):
        assert libc.ptrace(request, thread, None, None) == 0, os.strerror(ctypes.get_errno())


def let_die(thread):
    """A process is not gone until whoever debugs one of its threads has heard of that one's end."""
    while not os.WIFSIGNALED(os.waitpid(thread, 0x40000000)[1]):
        pass


def a_reload_keeps_the_connections():
    pid, client = until_active(), Client("reloaded")
    client.ping()
    told = run("systemctl", "reload", "uringcast.service", expect=0)
    client.ping()
    assert (main_pid(), shown("ActiveState")) == (pid, "active"), told


def a_reload_with_a_wrong_configuration_is_refused():
    pid, client, good = until_active(), Client("refused"), CONFIG.read_text()
    CONFIG.write_text(good + "\n[nonsense]\nkey = 1\n")
    run("systemctl", "reload", "uringcast.service", expect=1)
    CONFIG.write_text(good)
    client.ping()
    assert (main_pid(), shown("ActiveState")) == (pid, "active")


def a_wrong_configuration_is_not_tried_twice():
    good, restarts = CONFIG.read_text(), shown("NRestarts")
    CONFIG.write_text(good + "\n[nonsense]\nkey = 1\n")
    run("systemctl", "restart", "uringcast.service", expect=None)
    until("it has failed", lambda: shown("ActiveState") == "failed")
    assert exit_statuses() == ("exit-code", 78)
    time.sleep(1)
    assert shown("ActiveState") == "failed" and shown("NRestarts") in ("0", restarts), "another start would say the same"
    CONFIG.write_text(good)
    run("systemctl", "start", "uringcast.service")
    Client("again").ping()


def a_passed_socket_starts_the_service():
    run("systemctl", "stop", "uringcast.service")
    run("systemctl", "start", "uringcast.socket")
    assert shown("ActiveState") == "inactive"
    Client("first").ping()
    until_active()
    assert "systemd has bound (sockets: 1)" in journal()


def a_restart_refuses_nobody_where_the_socket_is_passed():
    pid, newcomers = until_active(), Newcomers()
    run("systemctl", "restart", "uringcast.service")
    os.kill(until_active(besides=pid), signal.SIGKILL)
    time.sleep(0.3)
    until_active(besides=pid)
    time.sleep(0.3)
    came, failed = newcomers.end()
    # Whoever was in the killed process is cut; nobody finds the port closed.
    refused = [fault for fault in failed if "refused" in fault.lower()]
    assert came > 20 and not refused and len(failed) <= 3, f"{came} came, and of others: {failed}"


def a_socket_for_each_shard_is_passed():
    run("systemctl", "stop", "uringcast.socket", "uringcast.service")
    drop_in(SOCKET_DROP_IN, "[Socket]\nReusePort=yes\nListenStream=127.0.0.1:3000\n")
    run("systemctl", "start", "uringcast.socket")
    # Of twenty some come to each socket.
    clients = [Client(f"spread{number}") for number in range(20)]
    before = journal()
    assert "systemd has bound (sockets: 2)" in before
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", "uringcast.service")
    assert all(client.close_code() == 1001 for client in clients)
    for number in range(20):
        Client(f"spread{number}").ping()
    until_said("systemd has bound (sockets: 2)", before)


def more_sockets_than_shards_are_refused():
    before = journal()
    run("systemctl", "stop", "uringcast.socket", "uringcast.service")
    shards = os.cpu_count()
    drop_in(SOCKET_DROP_IN, "[Socket]\nReusePort=yes\n" + "ListenStream=127.0.0.1:3000\n" * shards)
    run("systemctl", "start", "uringcast.socket")
    run("systemctl", "start", "uringcast.service", expect=1)
    assert exit_statuses() == ("exit-code", 78)
    until_said("and each needs a shard", before)
    run("systemctl", "stop", "uringcast.socket")
    SOCKET_DROP_IN.unlink()
    run("systemctl", "daemon-reload")
    run("systemctl", "reset-failed")
    run("systemctl", "start", "uringcast.service")


def an_upgrade_keeps_the_connections():
    CONFIG.write_text("# The administrator's own line.\n" + CONFIG.read_text())
    kept = {file: file.read_text() for file in (CONFIG, *(ETC / secret for secret in SECRETS))}
    pid, clients = until_active(), [Client(f"upgraded{number}") for number in range(4)]
    told = run("dpkg", "--install", NEW)
    for client in clients:
        client.ping()
    assert (main_pid(), shown("ActiveState")) == (pid, "active"), told
    assert {file: file.read_text() for file in kept} == kept, "nothing of the administrator's is overwritten"
    is_old = os.readlink(f"/proc/{pid}/exe").endswith("(deleted)")
    assert not is_old, "the binary is the new one"
    assert "goes on as the old one" not in told, told


def a_stop_says_goodbye():
    clients = [Client(f"stopped{number}") for number in range(4)]
    run("systemctl", "stop", "uringcast.service")
    assert [client.close_code() for client in clients] == [1001] * 4
    assert exit_statuses() == ("success", 0)


def a_removed_package_keeps_what_is_the_administrators():
    run("systemctl", "start", "uringcast.service")
    kept = {file: file.read_text() for file in (CONFIG, *(ETC / secret for secret in SECRETS))}
    client = Client("removed")
    run("dpkg", "--remove", "uringcast")
    assert client.close_code() == 1001
    assert shown("LoadState") in ("masked", "not-found") and not pathlib.Path("/usr/bin/uringcast").exists()
    run("dpkg", "--install", NEW)
    until_active()
    assert {file: file.read_text() for file in kept} == kept


def a_purged_package_leaves_nothing_of_its_own():
    url = ETC / "redis_url"
    url.write_text("redis://127.0.0.1\n")
    run("dpkg", "--purge", "uringcast")
    assert list(ETC.iterdir()) == [url], "only what the administrator put there himself"
    leftovers = run("find", "/etc", "/usr", "/var/lib/systemd", "-path", ETC, "-prune", "-o", "-name", "*uringcast*", "-print").split()
    assert not leftovers, leftovers


CASES = [
    an_installed_package_serves,
    clients_are_served,
    a_killed_process_is_started_again,
    a_store_that_is_not_allowed_is_told_of,
    the_clients_of_a_killed_process_are_told,
    a_fed_watchdog_is_quiet,
    a_stopped_process_is_found_by_the_watchdog,
    a_hanging_shard_is_found_by_the_watchdog,
    a_reload_keeps_the_connections,
    a_reload_with_a_wrong_configuration_is_refused,
    a_wrong_configuration_is_not_tried_twice,
    a_passed_socket_starts_the_service,
    a_restart_refuses_nobody_where_the_socket_is_passed,
    a_socket_for_each_shard_is_passed,
    more_sockets_than_shards_are_refused,
    an_upgrade_keeps_the_connections,
    a_stop_says_goodbye,
    a_removed_package_keeps_what_is_the_administrators,
    a_purged_package_leaves_nothing_of_its_own,
]


def main():
    for case in CASES:
        began = time.monotonic()
        try:
            case()
        except Exception:
            print(f"FAILED {case.__name__}\n{traceback.format_exc()}\nThe journal:\n" + run("journalctl", "--unit", "uringcast.*", "--no-pager", "--lines=60"), flush=True)
            return 1
        print(f"passed {case.__name__} ({time.monotonic() - began:.1f} s)", flush=True)
    print("all passed", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
