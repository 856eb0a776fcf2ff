// socket.io-client over long-polling, over WebSocket, and upgrading from one to the other, all in one room.
import { Agent } from "node:http";
import { connect } from "node:net";
import { check, everyShard, http, like, ok, oneOrder, PORT, run, token, transport, TRANSPORTS, until, visit } from "./lib.mjs";

/** Connections through it wait until it is opened: an upgrade begins when the test wants it to. */
class Gate extends Agent {
  opened = new Promise((resolve) => { this.open = resolve; });
  createConnection({ host, port }, connected) {
    this.opened.then(() => connected(null, connect({ host, port })));
  }
}

const enter = async (user, transports, room, options = {}) => {
  const guest = await visit("/", { transports, auth: { token: token(user) }, ...options }, `${user} (${transports})`);
  guest.log = [];
  guest.push = ([event, message]) => { if (event === "message") guest.log.push(JSON.parse(message.content)); else if (event === "error") throw new Error(JSON.stringify(message)); };
  const joined = await guest.ask("room:join", { roomId: room });
  ok(joined.success === true, `${user} could not join: ${JSON.stringify(joined)}`);
  return guest;
};

for (const transports of TRANSPORTS) {
  check(`events and acknowledgements by ${transports.join(", then ")}`, async () => {
    const room = `talk-${transports.join("-")}`;
    const [ann, bob] = [await enter("ann", transports, room), await enter("bob", transports, room)];
    if (transports.length === 2) await until(() => transport(ann) === "websocket" && transport(bob) === "websocket", "the upgrades");
    ok(transport(ann) === transports.at(-1), `ann uses ${transport(ann)}`);
    for (let number = 0; number < 20; number += 1) {
      const answer = await ann.ask("message", { roomId: room, content: JSON.stringify({ sender: 0, number, text: "é😀 \u001e" }) });
      ok(answer.success === true, JSON.stringify(answer));
    }
    await until(() => bob.log.length === 20, "twenty messages at bob");
    like(bob.log.map((message) => message.number), Array.from({ length: 20 }, (_, number) => number), "bob's order");
    const gone = bob.ended;
    bob.socket.disconnect();
    ok(await gone === "io client disconnect", "bob leaves by himself");
    await ann.end();
  });
}

check("10,000 messages both ways while 200 clients upgrade: each hears each of its room once, in one order", async () => {
  const [CLIENTS, ROOMS, EACH, AHEAD] = [200, 40, 50, 2];
  const members = await Promise.all(Array.from({ length: CLIENTS }, async (_, index) => {
    const gate = new Gate(), number = Math.floor(index / ROOMS);
    const guest = await enter(`climber${index}`, ["polling", "websocket"], `upgrade-${index % ROOMS}`, { transportOptions: { websocket: { agent: gate } } });
    return Object.assign(guest, { gate, number, room: index % ROOMS, gap: 0, before: 0 });
  }));
  ok(members.every((guest) => transport(guest) === "polling"), "everybody begins by polling");
  await everyShard("rooms", 2);
  for (const guest of members) {
    let last = performance.now();
    guest.push = ([event, message]) => {
      if (event === "error") throw new Error(message.message);
      if (event !== "message") return;
      const now = performance.now();
      [guest.gap, last] = [Math.max(guest.gap, now - last), now];
      guest.before += transport(guest) === "polling";
      guest.log.push(JSON.parse(message.content));
    };
  }
  // Each says its words a few at a time, so that all are under way at once; and lets its WebSocket through somewhere in the midst of them.
  await Promise.all(members.map(async (guest, index) => {
    const answers = [];
    for (let number = 0; number < EACH; number += 1) {
      if (number === 5 + (index * 7) % 30) guest.gate.open();
      answers.push(guest.ask("message", { roomId: `upgrade-${guest.room}`, content: JSON.stringify({ sender: guest.number, number }) }));
      await answers[number - AHEAD];
    }
    for (const answer of await Promise.all(answers)) ok(answer.success === true, JSON.stringify(answer));
  }));
  await until(() => members.every((guest) => transport(guest) === "websocket"), "all upgrades", 60_000);
  const expected = EACH * CLIENTS / ROOMS;
  await until(() => members.every((guest) => guest.log.length >= expected), "all messages everywhere", 30_000);
  for (let room = 0; room < ROOMS; room += 1) oneOrder(members.filter((guest) => guest.room === room).map((guest) => guest.log), CLIENTS / ROOMS, EACH);
  const [byPolling, longest] = [members.reduce((sum, guest) => sum + guest.before, 0), Math.max(...members.map((guest) => guest.gap))];
  const heard = members.reduce((sum, guest) => sum + guest.log.length, 0);
  ok(byPolling > 0 && byPolling < heard, `${byPolling} of ${heard} were heard by polling; both ways should have been used`);
  console.log(`     ${EACH * CLIENTS} said, ${heard} heard, ${byPolling} of them by polling; the longest time without one was ${longest.toFixed()} ms`);
  await Promise.all(members.map((guest) => guest.end()));
});

check("a page of a listed origin may poll, another may not read", async () => {
  const path = "/socket.io/?EIO=4&transport=polling";
  const listed = await http(PORT, "GET", path, { headers: { Origin: "https://app.example" } });
  like(listed.headers["access-control-allow-origin"], "https://app.example", "allowed");
  like(listed.headers["access-control-allow-credentials"], "true", "with credentials");
  const other = await http(PORT, "GET", path, { headers: { Origin: "https://evil.example" } });
  ok(other.status === 200 && other.headers["access-control-allow-origin"] === undefined, "not allowed to read");
  const preflight = await http(PORT, "OPTIONS", path, { headers: { Origin: "https://app.example", "Access-Control-Request-Headers": "x-own" } });
  ok(preflight.status === 204 && preflight.headers["access-control-allow-headers"] === "x-own", `preflight: ${preflight.status}`);
});

await run();
