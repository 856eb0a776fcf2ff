// What a back end emits over HTTP, as `ws` and `socket.io-client` clients hear it.
import { admin, check, like, metric, ok, open, query, run, token, until, visit } from "./lib.mjs";

const TRANSPORTS = [["polling"], ["websocket"], ["polling", "websocket"]];

const enter = async (user, transports, rooms = [], namespace = "/") => {
  const guest = await visit(namespace, { transports, auth: { token: token(user) } }, `${user} (${transports})`);
  for (const roomId of rooms) ok((await guest.ask("room:join", { roomId })).success === true, `${user} could not join ${roomId}`);
  return guest;
};

const emit = async (order, status = 200) => {
  const answer = await admin("POST", "/v1/emit", { body: { endpoint: "rooms", ...order } });
  ok(answer.status === status, `${JSON.stringify(order)}: ${answer.status} ${answer.text}`);
  return answer.json;
};

check("an emit reaches everybody, rooms, users and connections, each once, over every transport", async () => {
  const guests = [];
  for (const transports of TRANSPORTS) guests.push(await enter("ann", transports, ["first"]), await enter("bob", transports, ["second"]));
  const [anns, bobs] = [guests.filter((_, at) => at % 2 === 0), guests.filter((_, at) => at % 2 === 1)];
  const data = { message: "é😀", number: 1e100, none: null };
  const told = async (order, receivers) => {
    const name = `told-${Math.random()}`;
    like(await emit({ event: name, data, ...order }), { recipients: receivers.length }, JSON.stringify(order));
    for (const guest of receivers) await guest.hear(name, data);
    for (const guest of guests) await guest.deaf(name, 20);
  };
  await told({ to: { all: true } }, guests);
  await told({ to: { rooms: ["first"] } }, anns);
  await told({ to: { rooms: ["first", "second", "nowhere"] } }, guests);
  await told({ to: { users: ["bob", "nobody"] } }, bobs);
  await told({ to: { connections: [anns[0].socket.id, bobs[1].socket.id, "nonsense"] } }, [anns[0], bobs[1]]);
  await told({ to: { rooms: [anns[2].socket.id] } }, [anns[2]]);
  await told({ to: { all: true }, except: [anns[0].socket.id, "second"] }, anns.slice(1));
  await told({ to: { rooms: ["first"] }, except: anns.map((guest) => guest.socket.id) }, []);
  like(await emit({ to: { rooms: ["first"] }, event: "several", args: [1, "two", [3]] }), { recipients: 3 });
  for (const guest of anns) {
    let heard;
    do heard = await guest.next("several"); while (heard[0] !== "several");
    like(heard, ["several", 1, "two", [3]]);
  }
  await Promise.all(guests.map((guest) => guest.end()));
});

check("acknowledgements are counted until the last one has come, or the time is over", async () => {
  const guests = [];
  for (const transports of TRANSPORTS) guests.push(await enter("ann", transports, ["polled"]));
  for (const guest of guests) guest.socket.on("sure?", (question, answer) => answer("yes", Buffer.from([question])));
  const started = Date.now();
  like(await emit({ to: { rooms: ["polled"] }, event: "sure?", data: 7, ack: { timeoutMs: 30_000 } }), { recipients: 3, acks: 3 });
  ok(Date.now() - started < 20_000, "nobody waits for a deadline");
  const silent = await enter("ann", ["websocket"], ["polled"]);
  like(await emit({ to: { rooms: ["polled", "elsewhere"] }, event: "sure?", data: 7, ack: { timeoutMs: 500 } }), { recipients: 4, acks: 3 });
  like(await emit({ to: { rooms: ["nowhere"] }, event: "sure?", data: 7, ack: { timeoutMs: 30_000 } }), { recipients: 0, acks: 0 });
  await Promise.all([silent, ...guests].map((guest) => guest.end()));
});

check("a room hears its clients and the back end in one order", async () => {
  const guests = await Promise.all(Array.from({ length: 8 }, (_, at) => enter(`guest${at}`, ["websocket"], ["order"])));
  const logs = guests.map((guest) => { const log = []; guest.push = ([event, value]) => { if (event === "message" || event === "back end") log.push(value.content); }; return log; });
  const waiting = [];
  for (let number = 0; number < 50; number += 1) {
    waiting.push(emit({ to: { rooms: ["order"] }, event: "back end", data: { content: `e${number}` } }));
    waiting.push(guests[number % 8].ask("message", { roomId: "order", content: `c${number}` }));
    if (number % 5 === 0) await Promise.all(waiting);
  }
  await Promise.all(waiting);
  await until(() => logs.every((log) => log.length === 100), "a hundred messages everywhere");
  for (const log of logs) like(log, logs[0], "one order");
  await Promise.all(guests.map((guest) => guest.end()));
});

check("volatile reaches who listens; a retry reaches nobody again; a batch keeps its order", async () => {
  const guest = await enter("ann", ["websocket"], ["small"]);
  like(await emit({ to: { rooms: ["small"] }, event: "tick", data: 1, volatile: true }), { recipients: 1 });
  await guest.hear("tick", 1);
  for (let attempt = 0; attempt < 3; attempt += 1) like(await emit({ to: { users: ["ann"] }, event: "once", data: 2, id: "order-1" }), { recipients: 1 });
  await guest.hear("once", 2);
  await guest.deaf("once");
  const orders = Array.from({ length: 1000 }, (_, number) => ({ endpoint: "rooms", to: { rooms: ["small"] }, event: "line", data: number }));
  const batch = await admin("POST", "/v1/batch", { body: orders });
  ok(batch.status === 200 && batch.json.results.length === 1000 && batch.json.results.every((result) => result.recipients === 1), batch.text.slice(0, 300));
  for (let number = 0; number < 1000; number += 1) await guest.hear("line", number);
  const wrong = await admin("POST", "/v1/batch", { body: [orders[0], { ...orders[1], event: "disconnect" }] });
  ok(wrong.status === 400, `${wrong.status} ${wrong.text}`);
  await guest.deaf("line");
  await guest.end();
});

check("plain WebSocket endpoints hear it in their own words", async () => {
  const peer = await open("/talk" + query({ token: token("ann"), roomId: "lobby" }), { name: "ann" });
  await peer.next("the greeting");
  await until(async () => (await admin("GET", "/v1/connections" + query({ endpoint: "talk", room: "room:lobby" }))).json.connections.length === 1, "ann is in");
  peer.clear();
  const talk = (order) => emit({ endpoint: "talk", event: "CHAT_MESSAGE", data: { id: "1" }, ...order });
  like(await talk({ to: { rooms: ["room:lobby"] } }), { recipients: 1 });
  await peer.expect({ type: "CHAT_MESSAGE", payload: { id: "1" } });
  await emit({ endpoint: "talk", to: { all: true }, event: "x", ack: { timeoutMs: 5 } }, 400);
  await peer.end();
  const reader = await open("/ws/fabric" + query({ token: token("ann", { documents: ["d"] }), documentId: "d", clientID: "c" }), { name: "reader" });
  await reader.next("the greeting");
  like(await emit({ endpoint: "fabric", to: { rooms: ["d"] }, event: "steps", data: { steps: [1], clientIDs: ["agent"], changeId: "x" } }), { recipients: 1 });
  await reader.expect({ type: "steps", steps: [1], clientIDs: ["agent"], changeId: "x" });
  await reader.end();
});

check("what is wrong is told, and nothing is sent", async () => {
  const guest = await enter("ann", ["websocket"]);
  for (const order of [{}, { to: { all: true } }, { to: { rooms: "r" }, event: "e" }, { to: { all: true }, event: "connect" }, { to: { all: true }, event: "e", colour: "red" }, { to: { all: true }, event: "e", data: 1, args: [1] }]) {
    ok((await emit(order, 400)).detail.length > 0, "it is told why");
  }
  await emit({ endpoint: "nope", to: { all: true }, event: "e" }, 404);
  const unsigned = await admin("POST", "/v1/emit", { bearer: null, body: { endpoint: "rooms", to: { all: true }, event: "e" } });
  ok(unsigned.status === 401, `${unsigned.status}`);
  await guest.deaf("e");
  ok((await metric("uringcast_messages_dropped_total", { endpoint: "rooms", reason: "volatile" })) >= 0, "the reason is counted");
  await guest.end();
});

await run();
