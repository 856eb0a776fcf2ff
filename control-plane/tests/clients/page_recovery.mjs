// A page of another origin with socket.io-client in a real browser: acknowledgements, binary, a network that is lost twice over, and what
// was missed meanwhile. The page is made of nothing but the client's own bundle, and served by the browser's interception.
// Leaves a screenshot where SCREENSHOT says.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { check, like, need, ok, Proxy, run, token, TRANSPORTS, until, visit } from "./lib.mjs";

const { chromium } = need("playwright-core");
const OPTIONS = {
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
};
const BUNDLE = readFileSync(join(process.env.CLIENT_MODULES, "node_modules/socket.io-client/dist/socket.io.min.js"));
// The server lists the first.
const [OURS, THEIRS] = ["https://app.example", "https://evil.example"];

/** What the page does; it runs in the browser. */
function visitor([port, transports, auth, roomId]) {
  const line = (text) => document.body.append(Object.assign(document.createElement("div"), { textContent: text }));
  const socket = globalThis.io(`http://127.0.0.1:${port}/kept`, { transports, auth, withCredentials: true, reconnectionDelay: 50, reconnectionDelayMax: 200, timeout: 2_000 });
  const state = globalThis.state = { socket, log: [], returns: [], losses: 0, faults: [] };
  const number = (changes) => (changes instanceof ArrayBuffer ? new DataView(changes).getUint32(0) : `${Object.prototype.toString.call(changes)}`);
  socket.on("connect", () => { state.returns.push({ recovered: socket.recovered, id: socket.id }); line(`connected as ${socket.id}, recovered: ${socket.recovered}`); });
  socket.on("disconnect", (reason) => { state.losses += 1; line(`disconnected: ${reason}`); });
  socket.on("connect_error", (fault) => state.faults.push(fault.message));
  socket.on("message", ({ content }) => { state.log.push(JSON.parse(content)); line(`heard ${content}`); });
  socket.on("document:edit", ({ changes }) => { state.log.push(number(changes)); line(`heard ${number(changes)}, binary`); });
  state.ask = (event, said) => new Promise((resolve) => socket.emit(event, said, resolve));
  state.join = () => state.ask("room:join", { roomId });
}

let serial = 0;
const fresh = (name) => `${name}-${++serial}`;

/** A page of an origin, in a context of its own. */
async function open(browser, origin, faults) {
  const context = await browser.newContext({ viewport: { width: 700, height: 900 } });
  await context.grantPermissions(["local-network-access"], { origin }).catch(() => {});
  await context.route(`${origin}/**`, (route) => (route.request().url().endsWith(".js")
    ? route.fulfill({ contentType: "text/javascript", body: BUNDLE })
    : route.fulfill({ contentType: "text/html", body: "<!doctype html><title>A page</title><script src=socket.io.js></script><body>" })));
  const page = await context.newPage();
  page.on("pageerror", (fault) => faults.push(`${fault}`));
  await page.goto(`${origin}/`);
  return { context, page };
}

const browser = await chromium.launch(OPTIONS);

for (const transports of TRANSPORTS) {
  check(`${transports.join(", then ")}: a page loses its network, comes back and has missed nothing`, async () => {
    const faults = [], roomId = fresh("room"), user = fresh("page"), proxy = await Proxy.start();
    const ann = await visit("/kept", { auth: { token: token("ann") } }, "ann");
    ok((await ann.ask("room:join", { roomId })).success === true, "ann joins");
    const { context, page } = await open(browser, OURS, faults);
    const state = () => page.evaluate(() => ({ ...state, socket: undefined, connected: state.socket.connected, way: state.socket.io.engine?.transport.name }));
    const becomes = (what, condition) => until(async () => condition(await state()), `the page ${what}`);
    let next = 0;
    const says = async () => {
      for (let each = 0; each < 20; each += 1, next += 1) {
        const binary = Buffer.alloc(4);
        binary.writeUInt32BE(next);
        const answer = next % 5 ? ann.ask("message", { roomId, content: JSON.stringify(next) }) : ann.ask("document:edit", { roomId, changes: binary });
        ok((await answer).success === true, "ann says");
      }
    };
    const hasHeard = async () => {
      await becomes("has heard everything", ({ log }) => log.length >= next);
      like((await state()).log, Array.from({ length: next }, (_, number) => number), "the page's log");
    };

    await page.evaluate(visitor, [proxy.port, transports, { token: token(user) }, roomId]);
    await becomes("is connected", ({ connected }) => connected);
    await becomes("is upgraded", ({ way }) => way === transports.at(-1));
    ok((await page.evaluate(() => state.join())).success === true, "the page joins");
    await says();
    await hasHeard();
    const edited = page.evaluate((roomId) => state.ask("document:edit", { roomId, changes: { steps: [new Uint8Array([1, 2, 255]), new Uint8Array(0)] } }), roomId);
    like(await edited, { success: true });
    await ann.hear("document:edit", { userId: user, roomId, changes: { steps: [(value) => value.equals(Buffer.from([1, 2, 255])), (value) => value.equals(Buffer.alloc(0))] } });

    const { returns: [{ id }] } = await state();
    const losses = [
      ["the browser is offline", () => context.setOffline(true), () => context.setOffline(false)],
      ["the line is cut", () => proxy.cut(), () => proxy.mend()],
      ["the browser is offline again", () => context.setOffline(true), () => context.setOffline(false)],
    ];
    for (const [at, [what, lose, mend]] of losses.entries()) {
      await lose();
      await becomes(`notices that ${what}`, (now) => now.losses === at + 1);
      await says();
      await mend();
      await becomes("is back", ({ returns }) => returns.length === at + 2);
      await says();
      await hasHeard();
      like((await state()).returns.at(-1), { recovered: true, id }, what);
    }
    ok((await page.evaluate((roomId) => state.ask("message", { roomId, content: "9" }), roomId)).success === true, "a member as before");
    if (process.env.SCREENSHOT) await page.screenshot({ path: process.env.SCREENSHOT });
    ok(faults.length === 0, faults.join("\n"));
    await context.close();
    await ann.end();
    proxy.server.close();
  });
}

check("a page of an origin that is not listed cannot poll", async () => {
  const { context, page } = await open(browser, THEIRS, []);
  await page.evaluate(visitor, [process.env.PORT, ["polling"], { token: token("eve") }, "room"]);
  await until(() => page.evaluate(() => state.faults.length > 0), "the page is refused");
  like(await page.evaluate(() => [state.faults[0], state.returns.length]), ["xhr poll error", 0]);
  await context.close();
});

await run(() => browser.close());
