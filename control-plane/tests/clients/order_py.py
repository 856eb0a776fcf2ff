"""community with `websockets` from PyPI: one order for all in small, and what the WebSocket protocol itself asks of a server."""

import asyncio
import base64
import hashlib
import hmac
import json
import os
import sys
import time

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

PORT = os.environ["PORT"]
SECRET = os.environ["SECRET"].encode()
SENDERS, RECEIVERS, EACH = 3, 10, 100


def encoded(value):
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


def token(sub):
    body = f'{encoded({"alg": "HS256", "typ": "JWT"})}.{encoded({"sub": sub, "name": sub, "exp": int(time.time()) + 3600})}'
    return f"{body}.{encoded(hmac.new(SECRET, body.encode(), hashlib.sha256).digest())}"


def address(sub):
    return f"ws://127.0.0.1:{PORT}/talk?token={token(sub)}"


async def enter(sub, room=None):
    client = await connect(address(sub), max_size=None, proxy=None)
    greeting = json.loads(await client.recv())
    assert greeting == {"type": "USER_JOINED", "payload": {"userId": sub, "message": "Connected to WebSocket server"}}, greeting
    if room is not None:
        await client.send(json.dumps({"type": "SUBSCRIBE", "payload": {"roomId": room}}))
        # Others who enter meanwhile may be told before the answer.
        while json.loads(await client.recv())["type"] != "SUBSCRIBED":
            pass
    return client


async def answers_ping(client):
    await client.send('{"type":"PING"}')
    while True:
        answer = json.loads(await client.recv())
        if answer == {"type": "PONG", "payload": {}}:
            return
        assert answer["type"] in ("USER_JOINED", "USER_LEFT"), answer


async def check_one_order():
    """Every receiver gets every message once; all agree on the order; each sender's own order is kept."""
    receivers = [await enter(f"py-receiver{n}", "py-order") for n in range(RECEIVERS)]
    senders = [await enter(f"py-sender{n}", "py-order") for n in range(SENDERS)]

    async def say(client, sender):
        for number in range(EACH):
            content = json.dumps([sender, number])
            await client.send(json.dumps({"type": "CHAT_MESSAGE", "payload": {"roomId": "py-order", "content": content}}))

    async def listen(client):
        log = []
        while len(log) < SENDERS * EACH:
            frame = json.loads(await client.recv())
            assert frame["type"] != "ERROR", frame
            if frame["type"] == "CHAT_MESSAGE":
                log.append(tuple(json.loads(frame["payload"]["content"])))
        return log

    everybody = receivers + senders
    results = await asyncio.gather(*[listen(c) for c in everybody], *[say(c, n) for n, c in enumerate(senders)])
    logs = results[: len(everybody)]
    assert all(log == logs[0] for log in logs), "two receivers saw two orders"
    assert len(set(logs[0])) == SENDERS * EACH, "a message came twice"
    for sender in range(SENDERS):
        assert [n for s, n in logs[0] if s == sender] == list(range(EACH)), f"sender {sender} was reordered"
    for client in everybody:
        await client.close()


async def closed_with(client, code):
    try:
        while True:
            await client.recv()
    except ConnectionClosed as end:
        assert end.rcvd is not None and end.rcvd.code == code, f"closed with {end.rcvd}, not {code}"


async def check_bad_utf8():
    for bad in (b"\xff", b'{"type":"\xc3\x28"}', b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"abc\xe2\x82"):
        client = await enter("py-utf8")
        await client.send(bad, text=True)
        await closed_with(client, 1007)
    client = await enter("py-utf8")
    try:
        await client.send([b'{"type":"\xe2', b"\x28\xa1"], text=True)
    except ConnectionClosed:
        # The server may see the fault in the first fragment already.
        pass
    await closed_with(client, 1007)


async def check_character_across_fragments():
    client = await enter("py-fragments")
    text = '{"type":"PING","payload":{"x":"€𝄞"}}'.encode()
    await client.send([text[i : i + 1] for i in range(len(text))], text=True)
    assert json.loads(await client.recv()) == {"type": "PONG", "payload": {}}
    await client.close()


async def check_oversize():
    neighbour = await enter("py-neighbour")
    client = await enter("py-oversize")
    await client.send("x" * 1_000_000)
    assert json.loads(await client.recv())["payload"]["code"] == "INVALID_MESSAGE"
    try:
        await client.send("x" * 1_000_001)
    except ConnectionClosed:
        # Closed while still sending: the close frame is read below all the same.
        pass
    await closed_with(client, 1009)
    client = await enter("py-oversize")
    try:
        await client.send(["x" * 300_000] * 4)
    except ConnectionClosed:
        pass
    await closed_with(client, 1009)
    await answers_ping(neighbour)
    await neighbour.close()


async def check_unauthorized():
    for path in ("/talk", "/talk?token=nonsense", f"/talk?token={token('x')[:-2]}"):
        try:
            await connect(f"ws://127.0.0.1:{PORT}{path}", proxy=None)
        except InvalidStatus as refusal:
            assert refusal.response.status_code == 401, refusal.response.status_code
            body = json.loads(refusal.response.body)
            assert body["success"] is False and body["error"]["code"] == "UNAUTHORIZED" and body["error"]["message"], body
        else:
            raise AssertionError(f"{path} was accepted")


async def check_pings():
    client = await enter("py-ping")
    await asyncio.wait_for(await client.ping(b"payload of the ping"), 10)
    await answers_ping(client)
    await client.close(code=4321, reason="bye")
    assert client.close_code in (4321, 1000), client.close_code


async def main():
    failed = 0
    for check in (check_one_order, check_bad_utf8, check_character_across_fragments, check_oversize, check_unauthorized, check_pings):
        try:
            await asyncio.wait_for(check(), 60)
            print(f"ok   {check.__name__}")
        except Exception as fault:  # noqa: BLE001: whatever went wrong is what is to be told
            failed += 1
            print(f"FAIL {check.__name__}: {type(fault).__name__}: {fault}")
    sys.exit(1 if failed else 0)


asyncio.run(main())
