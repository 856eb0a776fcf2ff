// socket.io-client over long-polling, over WebSocket, and upgrading from one to the other, all in one room.
import { check, http, like, ok, oneOrder, PORT, run, token, until, visit } from "./lib.mjs";

const TRANSPORTS = [["polling"], ["websocket"], ["polling", "websocket"]];

const enter = async (user, transports, room) => {
  const guest = await visit("/", { transports, auth: { token: token(user) } }, `${user} (${transports})`);
  guest.log = [];
  guest.push = ([event, message]) => { if (event === "message") guest.log.push(JSON.parse(message.content)); else if (event === "error") throw new Error(JSON.stringify(message)); };
  const joined = await guest.ask("room:join", { roomId: room });
  ok(joined.success === true, `${user} could not join: ${JSON.stringify(joined)}`);
  return guest;
};
const transport = (guest) => guest.socket.io.engine.transport.name;

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

check("10,000 messages while 200 clients upgrade: each hears each once, in one order", async () => {
  const [SENDERS, EACH, CLIENTS] = [2, 25, 200];
  const senders = await Promise.all(Array.from({ length: SENDERS }, (_, index) => enter(`sender${index}`, ["websocket"], "upgrade")));
  const connecting = Array.from({ length: CLIENTS }, (_, index) => enter(`climber${index}`, ["polling", "websocket"], "upgrade"));
  // Everybody is in by polling; the upgrades are under way while this is said.
  const climbers = await Promise.all(connecting);
  const upgraded = climbers.filter((guest) => transport(guest) === "websocket").length;
  const answers = [];
  for (let number = 0; number < EACH; number += 1) {
    senders.forEach((guest, sender) => answers.push(guest.ask("message", { roomId: "upgrade", content: JSON.stringify({ sender, number }) })));
    await Promise.all(answers.slice(-SENDERS));
  }
  await Promise.all(answers);
  await until(() => climbers.every((guest) => transport(guest) === "websocket"), "all upgrades", 60_000);
  await until(() => climbers.every((guest) => guest.log.length >= SENDERS * EACH), "all messages everywhere", 30_000);
  oneOrder(climbers.map((guest) => guest.log), SENDERS, EACH);
  console.log(`     ${upgraded} of ${CLIENTS} had upgraded when the first message was sent`);
  await Promise.all([...senders, ...climbers].map((guest) => guest.end()));
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
