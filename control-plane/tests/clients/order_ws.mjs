// community over `ws`: 4 senders, 50 receivers on both shards, 2,000 messages; none lost, none twice, one order for all.
import { check, bothShards, oneOrder, open, query, run, token, until } from "./lib.mjs";

const SENDERS = 4, RECEIVERS = 50, EACH = 500;

check("2,000 messages of 4 senders reach 50 receivers once, in one order", async () => {
  const enter = async (user) => {
    const peer = await open("/talk" + query({ token: token(user, { name: user }) }), { name: user });
    await peer.next("the greeting");
    peer.say("SUBSCRIBE", { roomId: "order" });
    // Others who enter meanwhile may be told before the answer.
    while ((await peer.next("the answer")).type !== "SUBSCRIBED") continue;
    peer.log = [];
    peer.push = (frame) => { if (frame.type === "CHAT_MESSAGE") peer.log.push(JSON.parse(frame.payload.content)); else if (frame.type === "ERROR") throw new Error(JSON.stringify(frame)); };
    return peer;
  };
  const receivers = await Promise.all(Array.from({ length: RECEIVERS }, (_, index) => enter(`receiver${index}`)));
  const senders = await Promise.all(Array.from({ length: SENDERS }, (_, index) => enter(`sender${index}`)));
  const [first, second] = await bothShards("talk");
  console.log(`     ${first} connections on shard 0, ${second} on shard 1`);

  for (let number = 0; number < EACH; number += 1) {
    senders.forEach((peer, sender) => peer.say("CHAT_MESSAGE", { roomId: "order", content: JSON.stringify({ sender, number }) }));
    // A breath now and then, so that the senders' bursts mix on the server.
    if (number % 25 === 24) await new Promise(setImmediate);
  }
  const everybody = [...receivers, ...senders];
  await until(() => everybody.every((peer) => peer.log.length >= SENDERS * EACH), "all messages everywhere", 30_000);
  oneOrder(everybody.map((peer) => peer.log), SENDERS, EACH);
  await Promise.all(everybody.map((peer) => peer.end()));
});

await run();
