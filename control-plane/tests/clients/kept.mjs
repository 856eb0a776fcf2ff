// A server that is killed and started again by the test around this script, which holds its sockets meanwhile: clients of WebSockets hear that it was restarted, those of
// Socket.IO that the transport is closed, and all come back.
import { PORT, WebSocket, check, io, ok, query, run, token, within } from "./lib.mjs";

const LATEST_MS = 60_000;
const url = (user) => `ws://127.0.0.1:${PORT}/api/community/ws${query({ token: token(user) })}`;

/** A client as its page would write it: it comes back once. */
function page(user) {
  const first = new WebSocket(url(user));
  const here = new Promise((resolve, reject) => { first.once("message", resolve); first.once("error", reject); });
  const closed = new Promise((resolve) => { first.once("close", resolve); });
  const back = closed.then(() => new Promise((resolve, reject) => {
    const again = new WebSocket(url(user));
    again.once("message", () => { again.terminate(); resolve(); });
    again.once("error", reject);
  }));
  return { here, closed, back };
}

/** One of Socket.IO, which comes back by itself. */
function guest(user, transports) {
  const socket = io(`http://127.0.0.1:${PORT}`, { transports, auth: { token: token(user) }, forceNew: true, reconnectionDelay: 200, reconnectionDelayMax: 500 });
  const here = new Promise((resolve, reject) => { socket.once("connect", resolve); socket.once("connect_error", reject); });
  const upgraded = here.then(() => socket.io.engine.transport.name === transports.at(-1) || new Promise((resolve) => { socket.io.engine.once("upgrade", resolve); }));
  const closed = new Promise((resolve) => { socket.once("disconnect", resolve); });
  const back = closed.then(() => new Promise((resolve) => { socket.once("connect", resolve); })).then(() => socket.disconnect());
  return { here: upgraded, closed, back };
}

check("everybody is told, and comes back", async () => {
  const pages = Array.from({ length: 200 }, (_, index) => page(`page${index}`));
  const sockets = Array.from({ length: 10 }, (_, index) => guest(`socket${index}`, ["websocket"]));
  const upgraded = Array.from({ length: 10 }, (_, index) => guest(`upgraded${index}`, ["polling", "websocket"]));
  const pollers = Array.from({ length: 5 }, (_, index) => guest(`poller${index}`, ["polling"]));
  const all = [...pages, ...sockets, ...upgraded, ...pollers];
  const everybody = (what, promises) => within(Promise.all(promises), what, LATEST_MS);
  await everybody("they are connected", all.map((client) => client.here));
  console.log("ready");
  const codes = await everybody("a goodbye", pages.map((client) => client.closed));
  ok(codes.every((code) => code === 1012), `close codes ${[...new Set(codes)]}`);
  const reasons = await everybody("a goodbye", [...sockets, ...upgraded].map((client) => client.closed));
  ok(reasons.every((reason) => reason === "transport close"), `reasons ${[...new Set(reasons)]}`);
  await everybody("they come back", all.map((client) => client.back));
});

await run();
