"""What a message in pub/sub costs Redis by the number of its listeners and of the messages that come with it in one turn.

    python3 benches/hosts/redis_listeners.py [redis-server]

Redis on the first core, everything else on the last. A line per case: CPU of Redis' main thread per message published.
"""

import os
import selectors
import socket
import subprocess
import sys
import time

SECONDS = 1.2
BODY = b"x" * 300
PUBLISH = b"*3\r\n$7\r\nPUBLISH\r\n$2\r\nch\r\n$%d\r\n%s\r\n" % (len(BODY), BODY)

cores = sorted(os.sched_getaffinity(0))
with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
program = sys.argv[1] if len(sys.argv) > 1 else "redis-server"
redis = subprocess.Popen(
    ["taskset", "-c", str(cores[0]), program, "--port", str(port), "--save", "", "--bind", "127.0.0.1"], stdout=subprocess.DEVNULL
)
os.sched_setaffinity(0, {cores[-1]})


def connect():
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def cpu_us():
    with open(f"/proc/{redis.pid}/task/{redis.pid}/schedstat", encoding="ascii") as file:
        return int(file.read().split()[0]) / 1e3


def measure(listening, batch, rate):
    """Publishes `rate` messages a second, `batch` at a time, while everybody listens."""
    publisher = connect()
    publisher.setblocking(False)
    listening.register(publisher, selectors.EVENT_READ)
    before, started, sent = cpu_us(), time.monotonic(), 0
    while (elapsed := time.monotonic() - started) < SECONDS:
        if elapsed * rate - sent >= batch:
            publisher.sendall(PUBLISH * batch)
            sent += batch
        for key, _ in listening.select(0.0005):
            key.fileobj.recv(1 << 20)
    time.sleep(0.1)
    used = cpu_us() - before
    listening.unregister(publisher)
    publisher.close()
    return used / sent


try:
    time.sleep(0.7)
    for count in (1, 2, 4, 8, 16, 32, 64, 128):
        listening = selectors.DefaultSelector()
        listeners = [connect() for _ in range(count)]
        for listener in listeners:
            listener.sendall(b"*2\r\n$9\r\nSUBSCRIBE\r\n$2\r\nch\r\n")
            listener.setblocking(False)
            listening.register(listener, selectors.EVENT_READ)
        time.sleep(0.2)
        for batch in (1, 10, 100):
            cost = measure(listening, batch, min(4000, 60000 // count))
            print(f"{count} listeners, {batch} messages a turn: {cost:.2f} us a message", flush=True)
        for listener in listeners:
            listener.close()
finally:
    redis.kill()
