#!/usr/bin/env python3
"""A storm of newcomers, and what those who are connected notice of it.

    python3 benches/storm/measure.py SERVER BENCHES [--rounds 3] [--crowd 15000] [--port 3100]

SERVER and BENCHES are the release binaries. Each round starts a server of one shard on CPU 0 twice, in turn without a bound for handshakes and with
the default one; 1,000 clients ask 2,000 questions a second (`benches echo`, on CPU 1), and two seconds into that the crowd connects at once, each with
a token (from this process, on CPU 1 as well). Who is told to come again does, when he was told. One JSON line per run on stdout: the latency of the
1,000 over the whole window of 8 s, and what became of the crowd.
"""

import argparse
import base64
import hashlib
import hmac
import json
import os
import selectors
import socket
import subprocess
import sys
import tempfile
import time

SECRET = "0123456789abcdef0123456789abcdef"
CONFIG = """[limits]
rate_messages = 1000000
connections_per_user = 1000000
handshakes_per_address = 1000000
connections_per_address = 1000000
{door}
[[endpoint]]
name = "community"
dialect = "community"
bind = "/api/community/ws"
client_publish = true
"""


def token(user):
    def part(data):
        return base64.urlsafe_b64encode(data).rstrip(b"=")

    claims = json.dumps({"sub": user, "exp": int(time.time()) + 3600}).encode()
    message = part(b'{"alg":"HS256","typ":"JWT"}') + b"." + part(claims)
    return message + b"." + part(hmac.new(SECRET.encode(), message, hashlib.sha256).digest())


def head(user):
    return (
        b"GET /api/community/ws?token=" + token(user) + b" HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )


def storm(port, crowd):
    """Connects everybody at once; when each was in, and how often somebody was told to come again."""
    heads = [head(f"crowd{number % 5000}") for number in range(crowd)]
    selector, began = selectors.EpollSelector(), time.monotonic()
    later, inside, entered, told, cut = [], [], [], 0, 0

    def come(number):
        stream = socket.socket()
        stream.setblocking(False)
        # A source address has some 28,000 ports.
        stream.bind((f"127.0.1.{1 + number % 200}", 0))
        stream.connect_ex(("127.0.0.1", port))
        selector.register(stream, selectors.EVENT_WRITE, number)

    pending = list(range(crowd))
    while len(entered) + cut < crowd and time.monotonic() - began < 60:
        now = time.monotonic()
        pending += [number for at, number in later if at <= now]
        later = [(at, number) for at, number in later if at > now]
        for number in pending[:500]:
            come(number)
        pending = pending[500:]
        for key, events in selector.select(0 if pending else 0.02):
            stream, number = key.fileobj, key.data
            if events & selectors.EVENT_WRITE:
                try:
                    stream.send(heads[number])
                    selector.modify(stream, selectors.EVENT_READ, number)
                except OSError:
                    selector.unregister(stream)
                    cut += 1
                continue
            try:
                answer = stream.recv(4096)
            except OSError:
                answer = b""
            selector.unregister(stream)
            if answer.startswith(b"HTTP/1.1 101"):
                inside.append(stream)
                entered.append(time.monotonic() - began)
            elif answer.startswith(b"HTTP/1.1 503"):
                after = int(answer.split(b"Retry-After: ")[1].split(b"\r\n")[0])
                stream.close()
                told += 1
                later.append((time.monotonic() + after, number))
            else:
                cut += 1
    entered.sort()
    at = lambda share: round(entered[int(len(entered) * share) - 1], 3) if entered else None
    return {"crowd": crowd, "entered": len(entered), "half_in_s": at(0.5), "all_in_s": at(1), "told_to_come_again": told, "cut": cut}, inside


def run(arguments, door):
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as config:
        config.write(CONFIG.format(door=door))
        config.flush()
        environment = dict(os.environ, JWT_SECRET=SECRET)
        listen = ["--listen", f"127.0.0.1:{arguments.port}", "--control", f"127.0.0.1:{arguments.port + 1}"]
        server = subprocess.Popen(
            ["taskset", "-c", "0", arguments.server, "--config", config.name, "--shards", "1", *listen],
            env=environment,
            stderr=subprocess.DEVNULL,
        )
        try:
            time.sleep(0.5)
            echo = subprocess.Popen(
                ["taskset", "-c", "1", arguments.benches, "echo", "--rate", "2000", "--connections", "1000", "--warmup", "1", "--seconds", "8",
                 "--url", f"127.0.0.1:{arguments.port}"],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            time.sleep(3)
            crowd, _inside = storm(arguments.port, arguments.crowd) if arguments.crowd else ({"crowd": 0}, [])
            told = json.loads(echo.communicate()[0].splitlines()[-1])
        finally:
            server.kill()
            server.wait()
    keep = ["latency_us", "lost", "doubled", "misordered", "disconnected", "deliveries_per_second", "server_cpu_cores", "generator_cpu_share"]
    return {"door": door or "default", **crowd, **{name: told.get(name) for name in keep}}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server")
    parser.add_argument("benches")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--crowd", type=int, default=15_000)
    parser.add_argument("--port", type=int, default=3100)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {1})
    for _ in range(arguments.rounds):
        for door in ["handshakes_per_second = 0", ""]:
            print(json.dumps(run(arguments, door)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
