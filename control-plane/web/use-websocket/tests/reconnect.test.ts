// Connections that break off, and calls without a connection.

import { waitFor } from "@testing-library/react";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { WAITING_MAX } from "../src/calls.js";
import { WebSocketErrorCode, type UseWebSocketOptions } from "../src/index.js";
import { Guest, TIME } from "./guest.js";
import { Server, Way } from "./server.js";

let server: Server, way: Way;
beforeAll(async () => {
  server = await Server.start();
  way = await Way.to(server.url);
});
afterAll(async () => {
  way.end();
  await server.end();
});

afterEach(() => { way.isOpen = true; });

// A long-polling session that is cut off stays with the server for its heartbeat's time, and counts; a WebSocket ends at once.
const QUICK = { reconnectionDelay: 50, socketOptions: { reconnectionDelayMax: 200, transports: ["websocket"] } };
const enter = (name: string, options: UseWebSocketOptions = {}) => new Guest({ url: way.url, token: server.token(name), ...QUICK, ...options });
const NO_CONNECTION = { code: WebSocketErrorCode.CONNECTION_ERROR, message: expect.any(String) as string, timestamp: TIME };

test("after the server's restart the rooms are entered again before what waits is sent", async () => {
  const [ann, bob] = [enter("ann"), enter("bob", { url: server.url })];
  for (const guest of [ann, bob]) for (const room of ["one", "two", "left"]) await guest.now.joinRoom({ room });
  await ann.now.leaveRoom({ room: "left" });
  await server.stop("SIGTERM");
  await Promise.all([ann, bob].map((guest) => guest.becomes({ isConnected: false, isReconnecting: true, socketId: undefined })));
  await ann.fails(WebSocketErrorCode.CONNECTION_ERROR);
  const say = (room: string) => ann.now.sendMessage({ room, content: "while away" });
  const waiting = [ann.now.joinRoom({ room: "new" }), say("one"), say("new")];
  ann.now.startTyping("one");
  await server.run();
  await bob.connected();
  await bob.hears("room-joined", 6);
  expect(await Promise.all(waiting)).toMatchObject([{ success: true, room: "new" }, { success: true }, { success: true }]);
  await ann.becomes({ isConnected: true, isReconnecting: false, recovered: false, lastError: null });
  expect(ann.called).toEqual([["onConnect"], ["onDisconnect", expect.stringMatching(/transport/)], ["onConnect"], ["onReconnect", expect.any(Number)]]);
  expect(ann.called.at(-1)![1]).toBeGreaterThanOrEqual(1);
  // Entered again: the two, in their order, and not the one that was left; then the new one.
  const joined = await ann.hears("room-joined", 6);
  expect(joined.map((each) => (each as { room: string }).room)).toEqual(["one", "two", "left", "one", "two", "new"]);
  expect(await bob.now.sendMessage({ room: "two", content: "to those who are back" })).toMatchObject({ success: true });
  expect(await ann.hears("message")).toMatchObject([{ from: "bob", room: "two" }]);
  expect(ann.errors.every((error) => error.code === WebSocketErrorCode.CONNECTION_ERROR), JSON.stringify(ann.errors)).toBe(true);
  ann.leave();
  bob.leave();
});

test("a recovered connection is still in its rooms, has missed nothing, and leaves what was left meanwhile", async () => {
  const [ann, bob] = [enter("ann", { namespace: "/kept" }), enter("bob", { namespace: "/kept", url: server.url })];
  for (const guest of [ann, bob]) for (const room of ["one", "left"]) await guest.now.joinRoom({ room });
  // An event with an offset is what it can be recovered from.
  await bob.now.sendMessage({ room: "one", content: "before" });
  await ann.hears("message");
  const id = ann.now.socketId;
  way.cut();
  await ann.becomes({ isReconnecting: true });
  expect(await ann.now.leaveRoom({ room: "left" })).toEqual({ success: true, room: "left" });
  await bob.now.sendMessage({ room: "one", content: "missed" });
  way.isOpen = true;
  await ann.becomes({ isConnected: true, recovered: true, socketId: id });
  expect(await ann.hears("message", 2)).toMatchObject([{ content: "before" }, { content: "missed" }]);
  expect(await ann.hears("room-left")).toMatchObject([{ success: true, room: "left" }]);
  await bob.now.sendMessage({ room: "left", content: "nobody else is here" });
  await bob.now.sendMessage({ room: "one", content: "after" });
  expect(await ann.hears("message", 3)).toMatchObject([{ content: "before" }, { content: "missed" }, { content: "after" }]);
  expect(await ann.hears("room-joined", 2)).toHaveLength(2);
  ann.leave();
  bob.leave();
});

test("it gives up after so many attempts, and tries again when it is told to", async () => {
  const ann = enter("ann", { reconnectionAttempts: 2 });
  await ann.connected();
  way.cut();
  await waitFor(() => expect(ann.now.lastError).toMatchObject({ code: "CONNECTION_ERROR", message: "No connection after 2 attempts" }));
  expect(ann.rendered).toEqual(["away", "connected", "reconnecting", "away"]);
  expect(ann.errors).toEqual([NO_CONNECTION, NO_CONNECTION, NO_CONNECTION]);
  way.isOpen = true;
  ann.now.connect();
  await ann.connected();
  // Nobody came back by itself.
  expect(ann.called.map(([name]) => name)).toEqual(["onConnect", "onDisconnect", "onConnect"]);
  ann.leave();
});

test("without reconnection it stays away until it is told to connect", async () => {
  const ann = enter("ann", { reconnection: false, requestTimeout: 300 });
  await ann.connected();
  way.cut();
  await ann.becomes({ isConnected: false, isReconnecting: false });
  const made = way.made;
  expect(await ann.now.sendMessage({ content: "waits in vain" })).toEqual({ success: false, error: NO_CONNECTION });
  expect(way.made).toBe(made);
  // Told while there is no way, it tries once.
  ann.now.connect();
  await waitFor(() => expect(ann.errors).toHaveLength(2));
  expect(ann.now.isReconnecting).toBe(false);
  way.isOpen = true;
  ann.now.connect();
  await ann.connected();
  expect(ann.called).toEqual([["onConnect"], ["onDisconnect", expect.any(String)], ["onConnect"]]);
  ann.leave();
});

test("a server that sends somebody away is not asked again by itself", async () => {
  const ann = enter("sent-away");
  await ann.now.joinRoom({ room: "mine" });
  await server.admin("DELETE", "/v1/users/sent-away");
  await ann.becomes({ isConnected: false, isReconnecting: false });
  expect(ann.called).toEqual([["onConnect"], ["onDisconnect", "io server disconnect"]]);
  ann.now.connect();
  await ann.connected();
  expect(await ann.now.sendMessage({ room: "mine", content: "a member again" })).toMatchObject({ success: true });
  ann.leave();
});

test("a new token that is still to be told when the old one ends is tried in a new connection", async () => {
  const exp = Math.floor(Date.now() / 1000) + 4;
  const ann = enter("ann", { token: server.token("ann", { exp }) });
  await ann.connected();
  ann.change({ token: server.token("ann", { exp: 1 }) });
  await waitFor(() => expect(ann.called.at(-1)).toEqual(["onDisconnect", "io server disconnect"]));
  await waitFor(() => expect(ann.errors.map(({ code }) => code)).toEqual(["AUTHENTICATION_FAILED", "AUTHENTICATION_FAILED"]));
  expect(ann.now.isConnected).toBe(false);
  ann.change({ token: server.token("ann") });
  await ann.connected();
  ann.leave();
});

test("calls without a connection end in time", async () => {
  const ann = enter("ann", { autoConnect: false, requestTimeout: 100 });
  const calls = [ann.now.joinRoom({ room: "r" }), ann.now.sendMessage({ room: "r", content: "x" }), ann.now.authenticate(server.token("ann"))];
  const failed = { success: false, error: NO_CONNECTION };
  expect(await Promise.all(calls)).toEqual([{ ...failed, room: "r", memberCount: 0 }, failed, failed]);
  expect(ann.errors).toHaveLength(3);
  // Nobody is in a room without a connection.
  expect(await ann.now.leaveRoom({ room: "r" })).toEqual({ success: true, room: "r" });
  // The room that was asked for and not left is entered late rather than never.
  expect(await ann.now.joinRoom({ room: "late" })).toMatchObject({ success: false, error: NO_CONNECTION });
  ann.now.connect();
  await ann.connected();
  expect(await ann.hears("room-joined")).toEqual([{ success: true, room: "late", memberCount: 1 }]);
  expect(ann.heard).toHaveLength(1);
  ann.leave();
});

test("no more of them wait than a person makes", async () => {
  const ann = enter("ann", { autoConnect: false });
  const waiting = Array.from({ length: WAITING_MAX }, (_, number) => ann.now.sendMessage({ to: "ann", content: `${number}` }));
  expect(await ann.now.sendMessage({ to: "ann", content: "too many" })).toEqual({ success: false, error: NO_CONNECTION });
  ann.now.connect();
  expect((await Promise.all(waiting)).every(({ success }) => success)).toBe(true);
  const contents = (await ann.hears("message", WAITING_MAX)).map((message) => (message as { content: string }).content);
  expect(contents).toEqual(Array.from({ length: WAITING_MAX }, (_, number) => `${number}`));
  ann.leave();
});

test("a room that is left before there is a connection is never entered", async () => {
  const ann = enter("ann", { autoConnect: false });
  const joined = ann.now.joinRoom({ room: "r" });
  void ann.now.leaveRoom({ room: "r" });
  expect(await joined).toEqual({ success: false, room: "r", memberCount: 0, error: NO_CONNECTION });
  ann.now.connect();
  await ann.connected();
  await ann.now.ping();
  expect(ann.heard.map(([event]) => event)).toEqual(["pong"]);
  expect(ann.errors).toEqual([]);
  ann.leave();
});

test("a connection that ends takes the calls with it that have no answer", async () => {
  const ann = enter("ann");
  await ann.now.joinRoom({ room: "left" });
  way.cut();
  // Not noticed yet, so they are sent; the answers never come.
  const [joined, left, sent] = [ann.now.joinRoom({ room: "r" }), ann.now.leaveRoom({ room: "left" }), ann.now.sendMessage({ to: "ann", content: "x" })];
  expect(await joined).toEqual({ success: false, room: "r", memberCount: 0, error: NO_CONNECTION });
  expect(await left).toEqual({ success: true, room: "left" });
  expect(await sent).toEqual({ success: false, error: NO_CONNECTION });
  way.isOpen = true;
  // Entered all the same.
  const rooms = (await ann.hears("room-joined", 2)).map((answer) => (answer as { room: string }).room);
  expect(rooms).toEqual(["left", "r"]);
  way.cut();
  await ann.becomes({ isConnected: false });
  const before = ann.errors.length, waits = ann.now.sendMessage({ to: "ann", content: "y" });
  ann.leave();
  expect(await waits).toEqual({ success: false, error: NO_CONNECTION });
  expect(ann.errors).toHaveLength(before);
  way.isOpen = true;
  await waitFor(async () => expect(await server.connections("ann")).toEqual([]));
});
