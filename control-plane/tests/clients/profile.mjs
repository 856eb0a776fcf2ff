// Each test profile with clients that others wrote: PROFILE says which one the server was started with.
import { check, http, io, like, ok, open, PORT, run, until, within } from "./lib.mjs";

const TRANSPORTS = [["polling"], ["websocket"], ["polling", "websocket"]];
const BYTES = Buffer.from([0, 1, 254, 255]);

if (process.env.PROFILE === "engine.io") {
  const PATH = "/engine.io/?EIO=4&transport=";
  const greeting = (text) => like(JSON.parse(text.slice(1)), {
    sid: (sid) => /^[A-Za-z0-9_-]{20}$/.test(sid), upgrades: Array.isArray, pingInterval: 300, pingTimeout: 200, maxPayload: 1_000_000,
  });
  // Between whatever else is said there are pings, which only want an answer.
  const heard = async (peer) => {
    for (;;) {
      const packet = await peer.next("an echo");
      if (packet !== "2") return packet;
      peer.send("3");
    }
  };

  check("text and binary come back by WebSocket, and the heartbeat goes on", async () => {
    const peer = await open(`${PATH}websocket`, { packets: true });
    greeting(await peer.next("the greeting"));
    for (const text of ["4", "40", "4é😀 \u001e"]) {
      peer.send(text);
      like(await heard(peer), text);
    }
    const binary = within(new Promise((resolve) => peer.socket.on("message", (data, isBinary) => isBinary && resolve(data))), "bytes");
    peer.send(BYTES);
    ok(BYTES.equals(await binary), "the same bytes");
    peer.send("4after");
    await until(async () => await heard(peer) === "4after", "what was said last");
    await peer.end();
  });

  check("text and binary come back by polling, and after the upgrade by WebSocket", async () => {
    const { sid } = greeting((await http(PORT, "GET", `${PATH}polling`)).text);
    const session = `${PATH}polling&sid=${sid}`, body = `4one\u001eb${BYTES.toString("base64")}\u001e4two`;
    like((await http(PORT, "POST", session, { body })).text, "ok");
    like((await http(PORT, "GET", session)).text, body);
    const peer = await open(`${PATH}websocket&sid=${sid}`, { packets: true });
    peer.send("2probe");
    like(await peer.next("the probe's answer"), "3probe");
    peer.send("5");
    peer.send("4three");
    like(await heard(peer), "4three");
    like((await http(PORT, "GET", session)).status, 400, "polling after the upgrade");
    await peer.end();
  });
} else {
  const enter = async (namespace, transports, auth) => {
    const socket = io(`http://127.0.0.1:${PORT}${namespace}`, { transports, auth, forceNew: true, reconnection: false });
    const greeting = within(new Promise((resolve) => socket.on("auth", resolve)), "the greeting");
    await within(new Promise((resolve, reject) => { socket.on("connect", resolve); socket.on("connect_error", reject); }), "connecting");
    return { socket, auth: await greeting };
  };
  // A Buffer arrives as what the transport makes of it.
  const plain = (value) => (ArrayBuffer.isView(value) || value instanceof ArrayBuffer ? { bytes: [...Buffer.from(value)] } : value);

  for (const transports of TRANSPORTS) {
    for (const namespace of ["/", "/custom"]) {
      check(`${namespace} by ${transports.join(", then ")}`, async () => {
        const { socket, auth } = await enter(namespace, transports, { token: "123", n: [1] });
        like(auth, { token: "123", n: [1] });
        if (transports.length === 2) await until(() => socket.io.engine.transport.name === "websocket", "the upgrade");
        const said = [1, "2", { 3: [true] }, BYTES, null];
        const back = within(new Promise((resolve) => socket.on("message-back", (...args) => resolve(args))), "message-back");
        socket.emit("message", ...said);
        like((await back).map(plain), said.map(plain));
        const answer = within(new Promise((resolve) => socket.emit("message-with-ack", ...said, (...args) => resolve(args))), "the answer");
        like((await answer).map(plain), said.map(plain));
        socket.disconnect();
      });
    }
  }

  check("without auth the greeting is empty; an unknown namespace is refused; whoever joins none is closed", async () => {
    const { socket, auth } = await enter("/", ["websocket"]);
    like(auth, {});
    socket.disconnect();
    const fault = await enter("/random", ["websocket"]).then(() => ({}), (fault) => fault);
    like(fault.message, "Invalid namespace");
    const peer = await open("/socket.io/?EIO=4&transport=websocket", { packets: true });
    peer.socket.on("message", (data) => data.toString() === "2" && peer.send("3"));
    await peer.closed(1005);
  });
}

await run();
