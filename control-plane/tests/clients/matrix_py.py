"""The checks of matrix.mjs with python-socketio, as far as it has what they are about: by polling, by WebSocket, and upgrading."""

import base64
import hashlib
import hmac
import json
import os
import queue
import socket
import sys
import threading
import time
import urllib.request

import engineio
import socketio

PORT, CONTROL = int(os.environ["PORT"]), os.environ["CONTROL"]
SECRET, ADMIN_TOKEN = os.environ["SECRET"].encode(), os.environ["ADMIN_TOKEN"]
# No answer of a local server takes this long, even on a busy machine.
PATIENCE = 10
WAYS = {"polling": ["polling"], "websocket": ["websocket"], "polling, then websocket": ["polling", "websocket"]}
# By default this client breaks when more than 16 packets come in one answer; this is its documented remedy.
engineio.payload.Payload.max_decode_packets = 10_000

serial = 0


def fresh(name):
    global serial
    serial += 1
    return f"py-{name}-{serial}"


def encoded(value):
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


def token(sub, expires_in=3600):
    body = f'{encoded({"alg": "HS256", "typ": "JWT"})}.{encoded({"sub": sub, "name": sub, "exp": int(time.time()) + expires_in})}'
    return f"{body}.{encoded(hmac.new(SECRET, body.encode(), hashlib.sha256).digest())}"


def until(condition, what):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {PATIENCE} s"
        time.sleep(0.02)


class InOrder(engineio.Client):
    """As the library's own, which hears each message in a thread of its own, but one after the other: order is what is looked at."""

    def _trigger_event(self, event, *args, **kwargs):
        if event == "message":
            kwargs["run_async"] = False
        return super()._trigger_event(event, *args, **kwargs)


class Client(socketio.Client):
    def _engineio_client_class(self):
        return InOrder


class Guest:
    """A client with every event in a queue."""

    def __init__(self, way, user, namespaces=("/",), auth=None, port=PORT, **options):
        self.user, self.events, self.reasons, self.refusals, self.greetings = user, queue.Queue(), [], [], 0
        self.client = Client(handle_sigint=False, **{"reconnection": False, **options})
        for namespace in namespaces:
            self.client.on("*", lambda event, *args: self.events.put((event, *args)), namespace=namespace)
            self.client.on("disconnect", self.reasons.append, namespace=namespace)
            self.client.on("connect_error", self.refusals.append, namespace=namespace)
            self.client.on("connect", self._greeted, namespace=namespace)
        auth = {"token": token(user)} if auth is None else auth
        self.client.connect(f"http://127.0.0.1:{port}", auth=auth, transports=WAYS[way], namespaces=list(namespaces), wait_timeout=PATIENCE)
        assert self.client.transport() == WAYS[way][-1], f"it travels by {self.client.transport()}"

    def _greeted(self):
        self.greetings += 1

    def ask(self, event, data, namespace="/"):
        return self.client.call(event, data, namespace=namespace, timeout=PATIENCE)

    def tell(self, event, data):
        self.client.emit(event, data)

    def join(self, room):
        answer = self.ask("room:join", {"roomId": room})
        assert answer["success"] is True and answer["room"]["id"] == room, answer
        return self

    def hear(self, name):
        """The next event of that name; others, presence above all, are passed over."""
        while True:
            event, *args = self.events.get(timeout=PATIENCE)
            if event == name:
                return args[0]

    def end(self):
        self.client.disconnect()


class Proxy:
    """A TCP proxy before the public port whose connections can be cut."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port, self.sockets, self.is_down = self.listener.getsockname()[1], [], False
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            near, _ = self.listener.accept()
            if self.is_down:
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", PORT))
            self.sockets += [near, far]
            if self.is_down:
                # It came in the midst of the cut.
                self.cut()
                continue
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(source, target), daemon=True).start()

    @staticmethod
    def _carry(source, target):
        try:
            while data := source.recv(65536):
                target.sendall(data)
        except OSError:
            pass
        finally:
            Proxy._close(source)
            Proxy._close(target)

    @staticmethod
    def _close(end):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def cut(self):
        self.is_down = True
        ends, self.sockets = self.sockets, []
        for end in ends:
            self._close(end)


def admin(method, path, body=None):
    headers = {"Authorization": f"Bearer {ADMIN_TOKEN}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{CONTROL}{path}", method=method, data=data, headers=headers)
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        assert answer.status == 200, answer.status
        return json.load(answer)


# ---- the checks


def refusals(way):
    for bad, message in ((token("eve", -60), "Invalid authentication token"), ("nonsense", "Invalid authentication token"), (None, "Authentication token required")):
        guest = Guest.__new__(Guest)
        try:
            guest.__init__(way, "eve", auth={} if bad is None else {"token": bad})
        except socketio.exceptions.ConnectionError:
            assert guest.refusals == [{"message": message, "data": {"message": message}}], guest.refusals
        else:
            raise AssertionError("eve was let in")


def namespaces(way):
    room, user = fresh("room"), fresh("ann")
    ann = Guest(way, user, ("/", "/chat"))
    ids = [ann.client.get_sid("/"), ann.client.get_sid("/chat"), ann.client.eio.sid]
    assert len(set(ids)) == 3 and all(len(each) == 20 for each in ids), ids
    assert ann.ask("join-room", {"room": room}, "/chat") == {"success": True, "room": room, "memberCount": 1}
    ann.join(room).end()
    guest = Guest.__new__(Guest)
    try:
        guest.__init__(way, user, ("/", "/nowhere"))
    except socketio.exceptions.ConnectionError:
        assert guest.refusals == [{"message": "Invalid namespace"}], guest.refusals
    else:
        raise AssertionError("/nowhere was entered")


def acknowledgements(way):
    room = fresh("room")
    ann, bob = Guest(way, fresh("ann")).join(room), Guest(way, fresh("bob")).join(room)
    for number in range(20):
        answer = ann.ask("message", {"roomId": room, "content": f"number {number}"})
        assert answer["success"] is True and answer["message"]["content"] == f"number {number}", answer
        assert bob.hear("message") == answer["message"]
    answer = ann.ask("message", {"roomId": fresh("elsewhere"), "content": "hi"})
    assert answer == {"success": False, "error": {"message": "Failed to send message"}}, answer
    ann.end()
    bob.end()


def acknowledged_emits(way):
    heard, user = [], fresh("ann")

    def answer(data):
        heard.append(data)
        return "understood", {"bytes": b"\x00\xff"}

    guests = [Guest(way, user), Guest("websocket", user)]
    for guest in guests:
        guest.client.on("question", answer)
    order = {"endpoint": "rooms", "to": {"users": [user]}, "event": "question", "data": {"n": 1e100, "text": "é😀"}, "ack": {"timeoutMs": 10_000}}
    assert (told := admin("POST", "/v1/emit", order)) == {"recipients": 2, "acks": 2}, told
    assert heard == [order["data"]] * 2, heard
    for guest in guests:
        guest.end()


def relayed(way):
    """Binary, numbers and strings, there and back; what Python has no other way to write is written by matrix.mjs."""
    room = fresh("room")
    ann, bob, joe = Guest(way, fresh("ann")).join(room), Guest(way, fresh("bob")).join(room), Guest("websocket", fresh("joe")).join(room)
    many = bytes(at * 31 % 256 for at in range(200_000))
    for changes in (
        b"\x00\x7f\x80\xff", b"", {"steps": [{"at": 1.5, "data": b"\x07"}, b""], "text": "\u2028"}, [bytes([at]) for at in range(10)], many,
        12345678901234567890123, -(2**63), 1e100, 5e-324, 0.1, -0.0, True, [[], {}, [None]], {"": 1, "__proto__": 2},
        "\x00\x1e\x7f\ufeff\u2028", "é😀", "\ud800", "2probe", '42["message"]', {"_placeholder": True, "num": 0},
    ):
        for source, others in ((ann, (bob, joe)), (joe, (ann, bob))):
            assert source.ask("document:edit", {"roomId": room, "changes": changes}) == {"success": True}
            for other in others:
                heard = other.hear("document:edit")
                assert heard["userId"] == source.user and repr(heard["changes"]) == repr(changes), f"{heard!r:.300}, not {changes!r:.300}"
    for guest in (ann, bob, joe):
        guest.end()


def rooms_and_order(way):
    room, each = fresh("room"), 20
    members = [Guest(way, fresh("member")).join(room) for _ in range(6)] + [Guest("websocket", fresh("other")).join(room)]
    for number in range(each):
        for sender, member in enumerate(members):
            member.tell("message", {"roomId": room, "content": json.dumps([sender, number])})
    logs = [[tuple(json.loads(member.hear("message")["content"])) for _ in range(len(members) * each)] for member in members]
    assert all(log == logs[0] for log in logs), "two members heard two orders"
    assert len(set(logs[0])) == len(members) * each, "a message came twice"
    for sender in range(len(members)):
        assert [n for s, n in logs[0] if s == sender] == list(range(each)), f"sender {sender} was reordered"
    gone, ann, *others = members
    assert gone.ask("room:leave", {"roomId": room}) == {"success": True}
    assert ann.ask("message", {"roomId": room, "content": "after"})["success"] is True
    for other in others:
        assert other.hear("message")["content"] == "after"
    # Whatever was sent to it by mistake would have come before this.
    gone.join(fresh("room"))
    assert "message" not in [event for event, *_ in gone.events.queue], "who has left hears the room"
    for member in members:
        member.end()


def departures(way):
    room = fresh("room")
    ann, bob = Guest(way, fresh("ann")).join(room), Guest(way, fresh("bob")).join(room)
    ann.end()
    until(lambda: ann.reasons == ["client disconnect"], "ann's end")
    assert bob.hear("user:left")["userId"] == ann.user
    admin("DELETE", f"/v1/users/{bob.user}")
    until(lambda: bob.reasons, "bob's end")
    assert bob.reasons == ["server disconnect"], bob.reasons


def reconnection(way):
    proxy = Proxy()
    ann = Guest(way, fresh("ann"), port=proxy.port, reconnection=True, reconnection_delay=0.05, reconnection_delay_max=0.1)
    room = fresh("room")
    ann.join(room)
    for time_ in (1, 2):
        before = ann.client.get_sid()
        proxy.cut()
        until(lambda: len(ann.reasons) == time_, "the loss")
        proxy.is_down = False
        until(lambda: ann.greetings == time_ + 1 and ann.client.get_sid() != before, "the reconnection")
    assert ann.ask("message", {"roomId": room, "content": "hi"})["success"] is False, "rooms do not come along"
    ann.join(room)
    ann.end()


def oversize(way):
    room, large = fresh("room"), "x" * 990_000
    ann, bob = Guest(way, fresh("ann")).join(room), Guest("websocket", fresh("bob")).join(room)
    assert ann.ask("document:edit", {"roomId": room, "changes": large}) == {"success": True}
    assert bob.hear("document:edit")["changes"] == large
    ann.tell("document:edit", {"roomId": room, "changes": "x" * 1_000_001})
    until(lambda: ann.reasons, "ann's end")
    assert bob.hear("user:left")["userId"] == ann.user
    assert bob.ask("message", {"roomId": room, "content": "still here"})["success"] is True
    bob.end()


def main():
    failed = 0
    for way in WAYS:
        for check in (refusals, namespaces, acknowledgements, acknowledged_emits, relayed, rooms_and_order, departures, reconnection, oversize):
            name, started = f"{way}: {check.__name__.replace('_', ' ')}", time.monotonic()
            try:
                check(way)
                print(f"ok   {name} ({time.monotonic() - started:.1f} s)", flush=True)
            except Exception as fault:  # noqa: BLE001: whatever went wrong is what is to be told
                failed += 1
                print(f"FAIL {name}: {type(fault).__name__}: {fault}", flush=True)
    # Threads of clients that were not ended do not hold up the end.
    os._exit(1 if failed else 0)


main()
