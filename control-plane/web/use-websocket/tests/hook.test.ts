// One connection after the other: what the hook gives, and when it connects and does not.

import { waitFor } from "@testing-library/react";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { isWebSocketError, MessageType, PresenceStatus, WebSocketErrorCode, type UseWebSocketOptions } from "../src/index.js";
import { Guest, TIME } from "./guest.js";
import { Server, Way } from "./server.js";

let server: Server;
beforeAll(async () => { server = await Server.start(); });
afterAll(() => server.end());

const enter = (name: string, options: UseWebSocketOptions = {}) => new Guest({ url: server.url, token: server.token(name), ...options });
const gone = (name: string) => waitFor(async () => expect(await server.connections(name)).toEqual([]));

describe("connecting", () => {
  test("with a token, and closing with the component", async () => {
    const ann = enter("ann");
    expect(ann.now).toMatchObject({ isConnected: false, isReconnecting: false, socketId: undefined, recovered: false, lastError: null });
    await ann.connected();
    expect(await server.connections("ann")).toEqual([ann.now.socketId]);
    expect(ann.called).toEqual([["onConnect"]]);
    ann.leave();
    await gone("ann");
    expect(ann.called).toEqual([["onConnect"]]);
  });

  test("a refused token is told as the server's object, and another one is tried", async () => {
    const eve = enter("eve", { token: "nonsense" });
    const error = await eve.fails(WebSocketErrorCode.AUTHENTICATION_FAILED);
    expect(error).toEqual({ code: "AUTHENTICATION_FAILED", message: "Invalid authentication token", timestamp: TIME });
    await eve.becomes({ isConnected: false, isReconnecting: false, lastError: error });
    eve.change({ token: server.token("eve") });
    await eve.connected();
    expect(eve.now.lastError).toBeNull();
    eve.leave();
  });

  test("a namespace that is not there is a connection error", async () => {
    const ann = enter("ann", { namespace: "/nowhere" });
    expect(await ann.fails(WebSocketErrorCode.CONNECTION_ERROR)).toEqual({ code: "CONNECTION_ERROR", message: "Invalid namespace", timestamp: TIME });
    expect(ann.now.isReconnecting).toBe(false);
  });

  test("it waits for a token, and ends without one", async () => {
    const ann = enter("late", { token: undefined, userId: "late" });
    const joined = ann.now.joinRoom({ room: "waits for a token" });
    expect(ann.now).toMatchObject({ isConnected: false, isReconnecting: false });
    ann.change({ token: server.token("late") });
    expect(await joined).toEqual({ success: true, room: "waits for a token", memberCount: 1 });
    ann.change({ token: null });
    await ann.becomes({ isConnected: false });
    await gone("late");
    expect(ann.errors).toEqual([]);
    ann.leave();
  });

  test("without a token where none is asked for, as whom the option says", async () => {
    const [ann, bob] = [enter("", { token: undefined, namespace: "/lobby", userId: "said", tokenRequired: false }), enter("bob", { namespace: "lobby" })];
    await Promise.all([ann.connected(), bob.connected()]);
    ann.now.startTyping();
    expect(await bob.hears("typing-start")).toEqual([{ userId: "said", isTyping: true, timestamp: TIME }]);
    ann.leave();
    bob.leave();
  });

  test("on demand", async () => {
    const ann = enter("manual", { autoConnect: false });
    // Time for what must not happen.
    await new Promise((resolve) => setTimeout(resolve, 200));
    expect(await server.connections("manual")).toEqual([]);
    ann.now.connect();
    ann.now.connect();
    await ann.connected();
    ann.now.connect();
    expect(await server.connections("manual")).toHaveLength(1);
    ann.now.disconnect();
    await ann.becomes({ isConnected: false, isReconnecting: false });
    await gone("manual");
    expect(ann.called).toEqual([["onConnect"], ["onDisconnect", "io client disconnect"]]);
    ann.change({ token: server.token("manual") });
    ann.now.connect();
    await ann.connected();
    ann.change({ autoConnect: true });
    await ann.connected();
    ann.leave();
    await gone("manual");
  });

  test("React's strict mode makes one connection and leaves none", async () => {
    const way = await Way.to(server.url);
    const options = { url: way.url, token: server.token("strict"), socketOptions: { transports: ["websocket"] } };
    const ann = new Guest(options, { isStrict: true });
    await ann.connected();
    expect(way.made).toBe(1);
    await ann.now.sendMessage({ to: "strict", content: "to myself" });
    expect(await ann.hears("message")).toHaveLength(1);
    ann.leave();
    await gone("strict");
    way.end();
  });

  test("other callbacks and options of no weight keep the connection and the functions", async () => {
    const called: string[] = [];
    const ann = enter("steady", { onError: () => called.push("first") });
    await ann.connected();
    const before = ann.now;
    ann.change({ onError: () => called.push("second"), reconnectionDelay: 50, socketOptions: {} });
    expect(ann.now).toBe(before);
    await ann.now.sendMessage({ room: "not entered", content: "x" });
    expect(called).toEqual(["second"]);
    expect(await server.connections("steady")).toEqual([before.socketId]);
    ann.leave();
  });

  test("one connection too many of a user is refused, and comes in when there is room", async () => {
    const tabs = [1, 2, 3, 4].map(() => enter("many"));
    await Promise.all(tabs.map((tab) => tab.connected()));
    const more = enter("many");
    const error = await more.fails(WebSocketErrorCode.RATE_LIMIT_EXCEEDED);
    expect(error).toEqual({ code: "RATE_LIMIT_EXCEEDED", message: "Maximum connection limit reached", timestamp: TIME });
    expect(isWebSocketError(error)).toBe(true);
    tabs[0]!.leave();
    await waitFor(async () => expect(await server.connections("many")).toHaveLength(3));
    more.now.connect();
    await more.connected();
  });
});

describe("talking", () => {
  test("rooms, messages, typing and presence", async () => {
    const [ann, bob] = [enter("ann"), enter("bob")];
    // Asked for before there is any connection.
    expect(await ann.now.joinRoom({ room: "team" })).toEqual({ success: true, room: "team", memberCount: 1 });
    expect(await bob.now.joinRoom({ room: "team", metadata: { device: "phone" } })).toEqual({ success: true, room: "team", memberCount: 2 });

    const sent = await ann.now.sendMessage({ from: "somebody", room: "team", content: "Hello!", type: MessageType.TEXT, metadata: { mood: 1 } });
    expect(sent).toEqual({ success: true, id: expect.stringMatching(/^msg_/), timestamp: TIME });
    const { success: _, ...stamp } = sent;
    expect(await bob.hears("message")).toEqual([{ ...stamp, from: "ann", room: "team", content: "Hello!", type: "text", metadata: { mood: 1 } }]);

    ann.now.startTyping({ room: "team" });
    ann.now.stopTyping("team");
    const typing = { userId: "ann", room: "team", timestamp: TIME };
    expect(await bob.hears("typing-start")).toEqual([{ ...typing, isTyping: true }]);
    expect(await bob.hears("typing-stop")).toEqual([{ ...typing, isTyping: false }]);

    expect(await ann.now.updatePresence(PresenceStatus.AWAY)).toEqual({ success: true });
    expect(await ann.now.updatePresence({ status: "busy", metadata: { until: "noon" } })).toEqual({ success: true });
    const presence = { userId: "ann", timestamp: TIME };
    const updates = (await bob.hears("presence-update", 2)).filter((update) => (update as { userId: string }).userId === "ann");
    expect(updates).toEqual([{ ...presence, status: "away" }, { ...presence, status: "busy", metadata: { until: "noon" } }]);

    expect(await bob.now.leaveRoom({ room: "team" })).toEqual({ success: true, room: "team" });
    expect(await bob.hears("room-left")).toEqual([{ success: true, room: "team" }]);
    expect(await ann.now.joinRoom({ room: "team" })).toMatchObject({ memberCount: 1 });
    expect([ann.errors, bob.errors]).toEqual([[], []]);
    ann.leave();
    bob.leave();
  });

  test("what the server refuses is the promise's result and an error, both once", async () => {
    const ann = enter("ann");
    await ann.connected();
    const invalid = { code: WebSocketErrorCode.INVALID_ROOM, message: expect.any(String), timestamp: TIME };
    expect(await ann.now.joinRoom({ room: "" })).toEqual({ success: false, room: "", memberCount: 0, error: invalid });
    expect(await ann.now.leaveRoom({ room: "a\nb" })).toMatchObject({ success: false, error: invalid });
    const outside = await ann.now.sendMessage({ room: "elsewhere", content: "x" });
    expect(outside).toEqual({ success: false, error: { code: "AUTHORIZATION_FAILED", message: expect.any(String), timestamp: TIME } });
    ann.now.startTyping("elsewhere");
    await waitFor(() => expect(ann.errors.map(({ code }) => code)).toEqual(["INVALID_ROOM", "INVALID_ROOM", "AUTHORIZATION_FAILED", "AUTHORIZATION_FAILED"]));
    expect(ann.errors[2]).toEqual(outside.error);
    expect(ann.now.lastError).toEqual(ann.errors[3]);
    expect(await ann.hears("room-error", 2)).toEqual(ann.errors.slice(0, 2));
    expect(await ann.hears("error", 2)).toEqual(ann.errors.slice(2));
    ann.leave();
  });

  test("over the rate: the error says when to come again", async () => {
    const ann = enter("hasty");
    await ann.connected();
    const results = await Promise.all(Array.from({ length: 3_000 }, () => ann.now.sendMessage({ to: "hasty", content: "x" })));
    const { error } = results.find(({ success }) => !success)!;
    const details = { limit: 1000, windowMs: 10000, retryAfterMs: expect.any(Number) };
    expect(error).toEqual({ code: "RATE_LIMIT_EXCEEDED", message: expect.any(String), details, timestamp: TIME });
    expect(await ann.fails("RATE_LIMIT_EXCEEDED")).toMatchObject({ details: error!.details });
  });

  test("ping measures the way there and back", async () => {
    const ann = enter("ann");
    expect(await ann.now.ping()).toMatchObject({ success: false, error: { code: "CONNECTION_ERROR" } });
    await ann.connected();
    const answer = await ann.now.ping();
    expect(answer).toEqual({ success: true, latency: expect.any(Number) });
    expect(answer.success && answer.latency > 0 && answer.latency < 15_000).toBe(true);
    expect(await ann.hears("pong")).toEqual([undefined]);
    ann.leave();
  });

  test("listeners come and go, and one that is added twice hears once", async () => {
    const ann = enter("ann"), heard: string[] = [];
    const listener = ({ content }: { content: string }) => heard.push(content);
    ann.now.on("message", listener);
    ann.now.on("message", listener);
    const stop = ann.now.on("message", () => heard.push("other"));
    await ann.connected();
    const say = async (content: string) => {
      await ann.now.sendMessage({ to: "ann", content });
      await waitFor(() => expect(ann.heard.at(-1)?.[1]).toMatchObject({ content }));
    };
    await say("one");
    stop();
    await say("two");
    ann.now.off("message", listener);
    await say("three");
    expect(heard).toEqual(["one", "other", "two"]);
    ann.now.on("message", listener);
    ann.now.off("message");
    await ann.now.sendMessage({ to: "ann", content: "four" });
    await ann.now.ping();
    expect(heard).toEqual(["one", "other", "two"]);
    ann.leave();
  });
});

describe("tokens", () => {
  test("a new one of the same user is told on the same connection, which outlives the old one", async () => {
    const exp = Math.floor(Date.now() / 1000) + 4;
    const [ann, old] = [enter("ann", { token: server.token("ann", { exp }) }), enter("old", { token: server.token("old", { exp }) })];
    await Promise.all([ann.connected(), old.connected()]);
    const id = ann.now.socketId;
    ann.change({ token: server.token("ann", { email: "ann@example.com" }) });
    expect(await ann.hears("authenticated")).toEqual([{ userId: "ann", email: "ann@example.com" }]);
    await old.becomes({ isConnected: false, isReconnecting: false });
    // By then the server must have closed the other one too, if it has not heard.
    await new Promise((resolve) => setTimeout(resolve, exp * 1000 + 2_500 - Date.now()));
    expect(old.called).toEqual([["onConnect"], ["onDisconnect", "io server disconnect"]]);
    expect(await ann.now.ping()).toMatchObject({ success: true });
    expect(ann.now.socketId).toBe(id);
    // It comes back when it has a token again, and not before.
    old.change({ token: server.token("old") });
    await old.connected();
    ann.leave();
    old.leave();
  });

  test("a refused one changes nothing", async () => {
    const ann = enter("ann");
    await ann.connected();
    const id = ann.now.socketId;
    expect(await ann.now.authenticate(server.token("somebody else"))).toMatchObject({ success: false, error: { code: "AUTHENTICATION_FAILED" } });
    expect(await ann.now.authenticate(server.token("ann"))).toEqual({ success: true });
    ann.change({ token: server.token("ann", { exp: 1 }) });
    await waitFor(() => expect(ann.errors.map(({ code }) => code)).toEqual(["AUTHENTICATION_FAILED", "AUTHENTICATION_FAILED"]));
    expect(await ann.now.ping()).toMatchObject({ success: true });
    expect(ann.now.socketId).toBe(id);
    // Told once, however often it is rendered.
    ann.change({});
    expect(await ann.now.ping()).toMatchObject({ success: true });
    expect(ann.errors).toHaveLength(2);
    ann.leave();
  });

  test("one of another user makes another connection, without the rooms and calls of the first", async () => {
    const ann = enter("first"), bob = enter("bob");
    await ann.now.joinRoom({ room: "of first" });
    await bob.now.joinRoom({ room: "of first" });
    const id = ann.now.socketId;
    ann.change({ token: server.token("second") });
    // In the very render, so that nobody sees the second user with the first one's connection.
    expect(ann.now.isConnected).toBe(false);
    await ann.connected();
    expect(ann.now.socketId).not.toBe(id);
    await gone("first");
    expect(await server.connections("second")).toEqual([ann.now.socketId]);
    expect(await ann.now.sendMessage({ room: "of first", content: "x" })).toMatchObject({ success: false, error: { code: "AUTHORIZATION_FAILED" } });
    await bob.now.sendMessage({ to: "second", content: "the listeners are still there" });
    expect(await ann.hears("message")).toHaveLength(1);
    expect(ann.called).toEqual([["onConnect"], ["onConnect"]]);
    ann.leave();
    bob.leave();
  });
});
