// Binary values from socket.io-client to socket.io-client, over every transport and from each to each.
import { check, like, ok, run, settled, token, transport, TRANSPORTS, until, visit } from "./lib.mjs";

const enter = async (user, transports, room) => {
  const guest = await visit("/", { transports, auth: { token: token(user) } }, `${user} (${transports})`);
  ok((await guest.ask("room:join", { roomId: room })).success === true, `${user} could not join`);
  return guest;
};

// A hole that is filled by exactly these bytes, as a Buffer and not as what JSON makes of one.
const bytes = (...expected) => (value) => Buffer.isBuffer(value) && value.equals(Buffer.from(expected));
const many = (length) => Buffer.from(Array.from({ length }, (_, at) => (at * 31) % 256));
const sameAs = (expected) => (value) => Buffer.isBuffer(value) && value.equals(expected);

const CHANGES = {
  "a Uint8Array": [new Uint8Array([0, 127, 128, 255]), bytes(0, 127, 128, 255)],
  "a Buffer": [Buffer.from("é"), bytes(0xc3, 0xa9)],
  "an ArrayBuffer": [new Uint8Array([1, 2]).buffer, bytes(1, 2)],
  "nothing at all": [new Uint8Array(0), bytes()],
  "one inside others": [{ steps: [{ at: 1.5, data: Buffer.from([7]) }], text: "\u2028" }, { steps: [{ at: 1.5, data: bytes(7) }], text: "\u2028" }],
  "two": [[Buffer.from([1]), "between", Buffer.alloc(0)], [bytes(1), "between", bytes()]],
  "ten": [Array.from({ length: 10 }, (_, at) => Buffer.from([at])), Array.from({ length: 10 }, (_, at) => bytes(at))],
  "a large one": [many(600_000), sameAs(many(600_000))],
};

for (const from of TRANSPORTS) {
  check(`changes from ${from.join(", then ")} to everywhere`, async () => {
    const room = `binary-${from.join("-")}`;
    const ann = await enter("ann", from, room);
    const others = [];
    for (const to of TRANSPORTS) others.push(await enter("bob", to, room));
    for (const guest of [ann, ...others]) await settled(guest);
    for (const [name, [changes, pattern]] of Object.entries(CHANGES)) {
      like(await ann.ask("document:edit", { roomId: room, changes, cursor: { line: 1 } }), { success: true }, name);
      for (const bob of others) await bob.hear("document:edit", { userId: "ann", roomId: room, changes: pattern, cursor: { line: 1 } });
    }
    for (const guest of [ann, ...others]) await guest.end();
  });

  check(`acknowledgements and history by ${from.join(", then ")}`, async () => {
    const room = `kept-${from.join("-")}`;
    const [ann, bob] = [await enter("ann", from, room), await enter("bob", ["websocket"], room)];
    const metadata = { thumbnail: Buffer.from([9, 8, 7]), size: 3, more: [Buffer.alloc(0)] };
    const answer = await ann.ask("message", { roomId: room, content: "see", type: "image", metadata });
    const pattern = { thumbnail: bytes(9, 8, 7), size: 3, more: [bytes()] };
    like(answer.message.metadata, pattern, "the acknowledgement");
    like((await bob.hear("message", (message) => message.content === "see")).metadata, pattern, "the event");
    const joined = await bob.ask("room:join", { roomId: room });
    const kept = { thumbnail: { type: "Buffer", data: [9, 8, 7] }, size: 3, more: [{ type: "Buffer", data: [] }] };
    like(joined.history.map((message) => message.metadata), [kept], "the history, which is JSON");
    // What only looks like a placeholder is data.
    const looks = { _placeholder: true, num: 0 };
    await ann.ask("message", { roomId: room, content: "looks", metadata: looks });
    like((await bob.hear("message", (message) => message.content === "looks")).metadata, looks, "data");
    await Promise.all([ann.end(), bob.end()]);
  });
}

check("binary and plain events keep their order while the transport is upgraded", async () => {
  const room = "binary-order";
  const bob = await enter("bob", ["websocket"], room);
  const ann = await enter("ann", ["polling", "websocket"], room);
  for (let number = 0; number < 50; number += 1) {
    const changes = number % 2 ? Buffer.from([number]) : number;
    ann.tell("document:edit", { roomId: room, changes });
    if (number === 25) await until(() => transport(ann) === "websocket", "the upgrade");
  }
  for (let number = 0; number < 50; number += 1) {
    await bob.hear("document:edit", { userId: "ann", roomId: room, changes: number % 2 ? bytes(number) : number });
  }
  await Promise.all([ann.end(), bob.end()]);
});

await run();
