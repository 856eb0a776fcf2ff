"""The OpenAPI document against the built binary: schemathesis makes calls of it, right ones and wrong ones, and holds every answer against it.

What a schema cannot say (which endpoints there are, whose ids live) is put into the right calls here; wrong calls go out as they were made.
"""

import base64
import hashlib
import hmac
import json
import os
import sys
import tempfile
import time
import urllib.request

import schemathesis
from schemathesis.cli import schemathesis as command
from websockets.sync.client import connect

PORT, CONTROL = os.environ["PORT"], f"http://127.0.0.1:{os.environ['CONTROL']}"
SECRET, ADMIN_TOKEN = os.environ["SECRET"].encode(), os.environ["ADMIN_TOKEN"]
ROOM, ENDPOINT = "hall", "talk"
# Where another one is asked.
ENDPOINTS = {"/v1/endpoints/{name}/documents/{id}/steps": "fabric"}
ROOMS_CURSOR = base64.urlsafe_b64encode(b"2r").rstrip(b"=").decode()
# Right calls for each operation beyond those that try every boundary of it once.
EXAMPLES = 20
# An answer takes longer only if something hangs.
REQUEST_SECONDS = 10
# The first ends what the others are asked of, and the second never ends.
LEFT_OUT = ("/v1/drain", "/v1/events")


def encoded(value):
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


def token(sub):
    body = f'{encoded({"alg": "HS256", "typ": "JWT"})}.{encoded({"sub": sub, "name": sub, "exp": int(time.time()) + 3600})}'
    return f"{body}.{encoded(hmac.new(SECRET, body.encode(), hashlib.sha256).digest())}"


def ask(path):
    request = urllib.request.Request(CONTROL + path, headers={"Authorization": f"Bearer {ADMIN_TOKEN}"})
    with urllib.request.urlopen(request, timeout=REQUEST_SECONDS) as answer:
        return json.load(answer)


class Guest:
    """Somebody who is connected, in the room."""

    serial = 0

    def __init__(self):
        Guest.serial += 1
        self.user = f"guest{Guest.serial}"
        self.client = connect(f"ws://127.0.0.1:{PORT}/talk?token={token(self.user)}&roomId={ROOM}", max_size=None, proxy=None, legacy=True)
        self.client.recv(timeout=REQUEST_SECONDS)
        self.id = ask(f"/v1/users/{self.user}")["connections"][0]["id"]


guests = [Guest() for _ in range(4)]
cursor = ask(f"/v1/connections?endpoint={ENDPOINT}&limit=1")["cursor"]


def guest(is_to_go):
    """One that lives; whoever takes him away gets the last."""
    if is_to_go:
        guests.append(Guest())
        return guests.pop()
    return guests[0]


@schemathesis.hook
def before_call(context, case, kwargs):
    """Makes every second right call one about what is there."""
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    before_call.count += 1
    real = before_call.count % 2 == 0
    if "cursor" in case.query:
        # Any other text is a wrong one, which a schema cannot tell.
        case.query["cursor"] = ROOMS_CURSOR if case.path == "/v1/rooms" else cursor
    if "endpoint" in case.query and real:
        case.query["endpoint"] = ENDPOINT
    if case.path.startswith("/v1/rooms"):
        # A room that was made is on one endpoint, and on that it is to be found.
        for said in (case.query, case.body):
            if isinstance(said, dict) and "endpoint" in said:
                said["endpoint"] = "rooms"
    if real and case.path.startswith("/v1/connections/"):
        case.path_parameters["id"] = guest(case.method == "DELETE").id
    if real and case.path.startswith("/v1/users/"):
        case.path_parameters["id"] = guest(case.method == "DELETE").user
    if real and "userId" in case.path_parameters:
        case.path_parameters["userId"] = guest(False).user
    if real and "name" in case.path_parameters:
        case.path_parameters["name"] = ENDPOINTS.get(case.path, ENDPOINT)
    if case.path == "/v1/cleanup" and isinstance(case.body, dict):
        # The guests are silent and shall stay.
        case.body["inactiveMinutes"] = 1000 + case.body.get("inactiveMinutes", 0)
    if case.path == "/v1/rooms/{id}/messages" and case.method == "POST" and case.body.get("type") == "notification":
        # Endpoints of chat alone have these.
        del case.body["type"]
    for emit in case.body if case.path == "/v1/batch" else [case.body] if case.path == "/v1/emit" else []:
        complete(emit, real)


before_call.count = 0


def complete(emit, real):
    """What is said of an emit in words only: not both, and not everything on every endpoint."""
    emit["endpoint"] = "rooms" if real else "nothing"
    if "data" in emit:
        emit.pop("args", None)
    # Nobody acknowledges, and all would be waited for.
    if "ack" in emit:
        emit["ack"]["timeoutMs"] = min(emit["ack"]["timeoutMs"], 20)


CONFIGURATION = """
[checks.positive_data_acceptance]
# What is not there is told so, and is no fault of the call.
expected-statuses = ["2xx", "404", "409"]
"""


def walk():
    """Runs the program; whether it found nothing."""
    with tempfile.TemporaryDirectory() as folder, tempfile.NamedTemporaryFile("w", suffix=".toml") as configuration:
        configuration.write(CONFIGURATION)
        configuration.flush()
        # It keeps what it found in the folder it is in, which would be the sources.
        os.chdir(folder)
        arguments = ["--config-file", configuration.name, "run", f"{CONTROL}/openapi.json", "--no-color", "--generation-deterministic",
                     "--phases", "coverage,fuzzing,stateful", "--max-examples", str(EXAMPLES), "--request-timeout", str(REQUEST_SECONDS),
                     "--header", f"Authorization: Bearer {ADMIN_TOKEN}"]
        for path in LEFT_OUT:
            arguments += ["--exclude-path", path]
        try:
            return command(args=arguments, standalone_mode=False) in (None, 0)
        except SystemExit as end:
            return end.code in (None, 0)


good = walk()
status = ask("/healthz")["status"]
print(f"healthz says {status}")
sys.exit(0 if good and status == "ok" else 1)
