// rooms over `socket.io-client`: 4 senders, 50 receivers on both shards, 2,000 acknowledged messages; none lost, none twice, one order.
import { check, bothShards, like, ok, oneOrder, run, token, until, visit } from "./lib.mjs";

const SENDERS = 4, RECEIVERS = 50, EACH = 500;

check("2,000 acknowledged messages of 4 senders reach 50 receivers once, in one order", async () => {
  const enter = async (user) => {
    const guest = await visit("/", { auth: { token: token(user, { name: user }) } }, user);
    guest.log = [];
    guest.push = ([event, message]) => { if (event === "message") guest.log.push(JSON.parse(message.content)); else if (event === "error") throw new Error(JSON.stringify(message)); };
    const joined = await guest.ask("room:join", { roomId: "order" });
    ok(joined.success === true, `${user} could not join: ${JSON.stringify(joined)}`);
    return guest;
  };
  const receivers = await Promise.all(Array.from({ length: RECEIVERS }, (_, index) => enter(`receiver${index}`)));
  const senders = await Promise.all(Array.from({ length: SENDERS }, (_, index) => enter(`sender${index}`)));
  const [first, second] = await bothShards("rooms");
  console.log(`     ${first} connections on shard 0, ${second} on shard 1`);

  const answers = [];
  for (let number = 0; number < EACH; number += 1) {
    senders.forEach((guest, sender) => answers.push(guest.ask("message", { roomId: "order", content: JSON.stringify({ sender, number }) })));
    if (number % 25 === 24) await Promise.all(answers.slice(-SENDERS));
  }
  const acknowledged = await Promise.all(answers);
  acknowledged.forEach((answer, index) => {
    ok(answer.success === true, `message ${index} was refused: ${JSON.stringify(answer)}`);
    like(JSON.parse(answer.message.content), { sender: index % SENDERS, number: Math.floor(index / SENDERS) }, "the acknowledgement belongs to its message");
  });
  const ids = new Set(acknowledged.map((answer) => answer.message.id));
  ok(ids.size === SENDERS * EACH, `only ${ids.size} different message ids`);

  const everybody = [...receivers, ...senders];
  await until(() => everybody.every((guest) => guest.log.length >= SENDERS * EACH), "all messages everywhere", 30_000);
  oneOrder(everybody.map((guest) => guest.log), SENDERS, EACH);

  // A newcomer's history is the end of that same order.
  const late = await visit("/", { auth: { token: token("late") } }, "late");
  const { history } = await late.ask("room:join", { roomId: "order" });
  like(history.map((message) => JSON.parse(message.content)), receivers[0].log.slice(-50), "history of the join");
  await Promise.all([...everybody, late].map((guest) => guest.end()));
});

await run();
