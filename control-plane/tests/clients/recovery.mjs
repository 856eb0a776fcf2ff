// Connection state recovery with socket.io-client over a network that fails, on three shards, so that who comes back comes to another one
// as a rule. Somebody who stays talks all the time; whoever comes back has missed nothing and hears nothing twice.
import { any, check, like, ok, Proxy, run, settled, token, TRANSPORTS, until, visit, within } from "./lib.mjs";

const BACK = { reconnection: true, reconnectionDelay: 30, reconnectionDelayMax: 100 };

let serial = 0;
const fresh = (name) => `${name}-${++serial}`;
const ends = (guests) => Promise.all(guests.map((guest) => guest.end()));

/** A member of the room who writes down what it hears, and how it came back each time. */
async function enter(user, roomId, options = {}) {
  const guest = await visit("/kept", { auth: { token: token(user) }, ...options }, user);
  guest.id = guest.socket.id;
  [guest.log, guest.returns, guest.losses] = [[], [], 0];
  guest.push = ([event, told]) => {
    if (event === "message") guest.log.push(JSON.parse(told.content));
    // What is binary is numbered like everything else.
    if (event === "document:edit") guest.log.push(told.changes.readUInt32BE());
  };
  guest.socket.on("disconnect", () => { guest.losses += 1; });
  guest.socket.on("connect", () => guest.returns.push({ recovered: guest.socket.recovered, id: guest.socket.id }));
  ok((await guest.ask("room:join", { roomId })).success === true, `${user} could not join`);
  await settled(guest);
  return guest;
}

/** Somebody who counts aloud. */
async function speaker(roomId) {
  const ann = await visit("/kept", { auth: { token: token(fresh("ann")) } }, "ann");
  ok((await ann.ask("room:join", { roomId })).success === true, "ann could not join");
  let next = 0;
  return {
    says: async (count) => {
      const said = Array.from({ length: count }, () => {
        const number = next++;
        const binary = Buffer.alloc(4);
        binary.writeUInt32BE(number);
        return number % 5 === 4 ? ann.ask("document:edit", { roomId, changes: binary }) : ann.ask("message", { roomId, content: JSON.stringify(number) });
      });
      for (const answer of await Promise.all(said)) ok(answer.success === true, JSON.stringify(answer));
    },
    /** Everybody has heard everything up to now, in order and once. */
    heardBy: async (guests) => {
      await until(() => guests.every(({ log }) => log.length >= next), `${next} messages everywhere; there are ${guests.map(({ log }) => log.length)}`);
      for (const { name, log } of guests) like(log, Array.from({ length: next }, (_, number) => number), name);
    },
    end: () => ann.end(),
  };
}

/** Who travels by polling is between two polls at times, and notices nothing then. */
const lost = (guests, times) => until(() => guests.every(({ losses }) => losses >= times), `loss ${times} of everybody`);
const returned = (guests, times) => until(() => guests.every(({ returns }) => returns.length >= times), `return ${times} of everybody`);
const same = (guests, times) => {
  for (const { name, id, returns } of guests) like(returns, Array.from({ length: times }, () => ({ recovered: true, id })), name);
};

for (const transports of TRANSPORTS) {
  const way = transports.join(", then ");

  check(`${way}: a network that is cut, five times`, async () => {
    const roomId = fresh("room"), proxy = await Proxy.start(), ann = await speaker(roomId);
    const guests = await Promise.all(Array.from({ length: 8 }, () => enter(fresh("bob"), roomId, { transports, port: proxy.port, ...BACK })));
    for (let time = 1; time <= 5; time += 1) {
      // Who has heard nothing yet has no place to go on from.
      await ann.says(1);
      await ann.heardBy(guests);
      // What is said at the cut is partly on its way.
      const before = ann.says(20);
      if (time % 2) await before;
      proxy.cut();
      await Promise.all([before, ann.says(20), lost(guests, time)]);
      proxy.mend();
      await Promise.all([ann.says(20), returned(guests, time)]);
      await ann.heardBy(guests);
      same(guests, time);
    }
    // They are members as before.
    for (const bob of guests) ok((await bob.ask("room:leave", { roomId })).success === true, "a member as before");
    await ends([...guests, ann]);
    proxy.server.close();
  });

  check(`${way}: half open, the server learns of it from the return only`, async () => {
    const roomId = fresh("room"), proxy = await Proxy.start(), ann = await speaker(roomId);
    const guests = await Promise.all(Array.from({ length: 8 }, () => enter(fresh("bob"), roomId, { transports, port: proxy.port, ...BACK })));
    await ann.says(10);
    await ann.heardBy(guests);
    for (let time = 1; time <= 2; time += 1) {
      const before = ann.says(10);
      proxy.halve();
      await Promise.all([before, ann.says(30), lost(guests, time)]);
      proxy.mend();
      await Promise.all([ann.says(10), returned(guests, time)]);
      await ann.heardBy(guests);
      same(guests, time);
    }
    await ends([...guests, ann]);
    proxy.server.close();
  });

  check(`${way}: the client's own transport closes, and comes back when it is told to`, async () => {
    const roomId = fresh("room"), ann = await speaker(roomId), bob = await enter(fresh("bob"), roomId, { transports });
    await ann.says(3);
    await ann.heardBy([bob]);
    for (let time = 1; time <= 5; time += 1) {
      const gone = new Promise((resolve) => bob.socket.once("disconnect", resolve));
      bob.socket.io.engine.close();
      await within(gone, "bob's end");
      await ann.says(20);
      bob.socket.connect();
      await returned([bob], time);
      await ann.heardBy([bob]);
    }
    same([bob], 5);
    await ends([bob, ann]);
  });

  check(`${way}: who took his leave starts anew`, async () => {
    const roomId = fresh("room"), ann = await speaker(roomId), bob = await enter(fresh("bob"), roomId, { transports });
    await ann.says(3);
    await ann.heardBy([bob]);
    bob.socket.disconnect();
    await ann.says(5);
    bob.socket.connect();
    await returned([bob], 1);
    like(bob.returns, [{ recovered: false, id: (id) => any.sid(id) && id !== bob.id }]);
    like(bob.log, [0, 1, 2], "bob's log");
    ok((await bob.ask("message", { roomId, content: "1" })).success === false, "bob is in no room");
    await ends([bob, ann]);
  });
}

await run();
