// The HTTP side: the client's files, long-polling over connections that stay, compressed answers, the cookie.
import { readFileSync } from "node:fs";
import { Agent, request } from "node:http";
import { join } from "node:path";
import { check, like, need, ok, PORT, run, token, visit } from "./lib.mjs";

// socket.io-client hides it where it is required and not imported.
const { Fetch } = need("engine.io-client");
const DIST = join(process.env.CLIENT_MODULES, "node_modules/socket.io-client/dist");
const at = (path) => `http://127.0.0.1:${PORT}${path}`;

check("the client's files are those of the folder", async () => {
  for (const name of ["socket.io.js", "socket.io.min.js", "socket.io.esm.min.js", "socket.io.msgpack.min.js", "socket.io.js.map"]) {
    const answer = await fetch(at(`/socket.io/${name}`), { headers: { Origin: "https://app.example" } });
    ok(answer.status === 200 && (await answer.text()) === readFileSync(join(DIST, name), "utf8"), `${name}: ${answer.status}`);
    const kind = name.endsWith(".map") ? "application/json" : "application/javascript";
    like(answer.headers.get("content-type"), `${kind}; charset=utf-8`, name);
    like(answer.headers.get("access-control-allow-origin"), "https://app.example", name);
    const again = await fetch(at(`/socket.io/${name}`), { headers: { "If-None-Match": answer.headers.get("etag") } });
    ok(again.status === 304 && (await again.text()) === "", `${name} again: ${again.status}`);
  }
  const module = { exports: {} };
  new Function("module", "exports", await (await fetch(at("/socket.io/socket.io.js"))).text())(module, module.exports);
  like(typeof module.exports.io, "function", "it runs");
  like((await fetch(at("/socket.io/socket.io.nothing.js"))).status, 400, "any other name");
});

check("two guests talk by fetch, whose connections stay", async () => {
  const enter = async (user) => {
    const guest = await visit("/", { transports: [Fetch], auth: { token: token(user) } }, user);
    ok((await guest.ask("room:join", { roomId: "kept" })).success, `${user} could not join`);
    return guest;
  };
  const [ann, bob] = [await enter("ann"), await enter("bob")];
  const content = "é😀 ".repeat(1000);
  for (let number = 0; number < 50; number += 1) {
    ok((await ann.ask("message", { roomId: "kept", content: `${number} ${content}` })).success, "not sent");
    ok((await bob.ask("message", { roomId: "kept", content: `${number}` })).success, "not sent");
  }
  const heard = bob.clear().filter(([event]) => event === "message").map(([, message]) => message);
  // The last may still be on their way; what came is in its sender's order. Which of the two comes first the room decides: they write on
  // different shards, and an acknowledgement may be faster than the message on its way to the room.
  ok(heard.length >= 90, `bob heard ${heard.length}`);
  for (const sender of [ann, bob]) {
    const numbers = heard.filter(({ userId }) => userId === sender.name).map((message) => message.content.split(" ")[0]);
    like(numbers, Array.from({ length: numbers.length }, (_, index) => `${index}`), `${sender.name}'s messages at bob`);
  }
  await Promise.all([ann.end(), bob.end()]);
});

check("one connection carries many sessions, the cookie with each", async () => {
  const agent = new Agent({ keepAlive: true, maxSockets: 1 });
  let reused = 0;
  const ask = (method, path, body, headers = {}) => new Promise((resolve, reject) => {
    const asked = request({ host: "127.0.0.1", port: PORT, method, path, agent, headers }, (answer) => {
      reused += asked.reusedSocket ? 1 : 0;
      const parts = [];
      answer.on("data", (part) => parts.push(part));
      answer.on("end", () => resolve({ status: answer.statusCode, headers: answer.headers, bytes: Buffer.concat(parts) }));
    });
    asked.on("error", reject);
    // Without a length Node sends it in chunks.
    for (const part of body ?? []) asked.write(part);
    asked.end();
  });
  for (let round = 0; round < 20; round += 1) {
    const path = "/socket.io/?EIO=4&transport=polling";
    const opened = await ask("GET", path);
    const sid = JSON.parse(opened.bytes.toString().slice(1)).sid;
    like(opened.headers["set-cookie"], [`io=${sid}; Path=/; HttpOnly; SameSite=Lax`], "the cookie");
    const auth = JSON.stringify({ token: token("cat") });
    const entered = await ask("POST", `${path}&sid=${sid}`, [`40${auth.slice(0, 9)}`, `${auth.slice(9)}\u001e42["room:join",{"roomId":"long"}]`]);
    ok(entered.status === 200 && entered.bytes.toString() === "ok", `POST: ${entered.status}`);
    const greeted = await ask("GET", `${path}&sid=${sid}`);
    ok(greeted.bytes.toString().startsWith("40{"), greeted.bytes.toString());
  }
  ok(reused >= 55, `${reused} of 60 requests came over a connection that was there`);
  agent.destroy();
});

check("long answers are compressed", async () => {
  const path = "/socket.io/?EIO=4&transport=polling";
  const sid = JSON.parse((await (await fetch(at(path))).text()).slice(1)).sid;
  const say = async (body) => (await fetch(at(`${path}&sid=${sid}`), { method: "POST", body })).text();
  const long = "long ".repeat(1000);
  await say(`40${JSON.stringify({ token: token("dan") })}\u001e420["room:join",{"roomId":"packed"}]\u001e42["message",{"roomId":"packed","content":"${long}"}]`);
  for (let heard = ""; !heard.includes(long);) {
    const answer = await fetch(at(`${path}&sid=${sid}`));
    const text = await answer.text();
    heard += text;
    if (text.length >= 1024) {
      like(answer.headers.get("content-encoding"), "gzip", "encoding");
      ok(Number(answer.headers.get("content-length")) < text.length / 10, "shorter");
      ok(answer.headers.get("vary").includes("Accept-Encoding"), "vary");
    }
  }
});

await run();
