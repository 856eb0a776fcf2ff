// Code of those who use the hook: the README's example, and a component as the old server's documents tell front ends to write it, with
// their imports, their variables and nothing else.

import { useWebSocket } from "@/hooks/useWebSocket";
import { MessageType, WebSocketErrorCode, WebSocketEvent, type JoinRoomResponse, type MessagePayload, type WebSocketError } from "@repo/types";
import { fireEvent, render, screen } from "@testing-library/react";
import { StrictMode, useEffect, useState } from "react";
import { renderToString } from "react-dom/server";
import { afterAll, beforeAll, expect, test } from "vitest";
import { ChatRoom } from "../generated/readme/example1.js";
import { Guest, TIME } from "./guest.js";
import { Server } from "./server.js";

let server: Server;
beforeAll(async () => {
  server = await Server.start({ path: "/old-path" });
  process.env["NEXT_PUBLIC_WEBSOCKET_URL"] = server.url;
  process.env["NEXT_PUBLIC_WEBSOCKET_PATH"] = "/old-path";
});
afterAll(() => server.end());

const enter = async (name: string, room: string) => {
  const guest = new Guest({ token: server.token(name) });
  expect(await guest.now.joinRoom({ room })).toMatchObject({ success: true });
  return guest;
};

const joined: JoinRoomResponse[] = [];
const failed: WebSocketError[] = [];

function OldChat({ token }: { token: string }) {
  const [received, setReceived] = useState<string[]>([]);
  const { isConnected, isReconnecting, joinRoom, leaveRoom, sendMessage, startTyping, stopTyping, on, off } = useWebSocket({
    token,
    userId: "user-123",
    autoConnect: true,
    reconnection: true,
    reconnectionAttempts: 5,
    reconnectionDelay: 100,
    onConnect: () => undefined,
    onDisconnect: (reason) => reason.length,
    onReconnect: (attempt) => attempt + 1,
    onError: (error: WebSocketError) => {
      switch (error.code) {
        case WebSocketErrorCode.AUTHORIZATION_FAILED:
          failed.push(error);
          break;
        default:
      }
    },
  });

  useEffect(() => {
    if (isConnected) {
      joinRoom({ room: "chat-room" }).then((response) => {
        joined.push(response);
      });
    }
    return () => {
      leaveRoom({ room: "chat-room" });
    };
  }, [isConnected]);

  useEffect(() => {
    const handleMessage = (message: MessagePayload) => {
      setReceived((all) => [...all, message.content]);
    };
    on(WebSocketEvent.MESSAGE, handleMessage);
    return () => {
      off(WebSocketEvent.MESSAGE, handleMessage);
    };
  }, [on, off]);

  const send = (room: string) => sendMessage({ from: "user-123", room, content: "Hello!", type: MessageType.TEXT });
  return (
    <div>
      <div>Status: {isConnected ? "Connected" : "Disconnected"}</div>
      {isReconnecting && <div>Reconnecting...</div>}
      <div>{received.map((content) => `heard ${content}`)}</div>
      <button onClick={() => { startTyping("chat-room"); stopTyping("chat-room"); void send("chat-room"); }}>Send Message</button>
      <button onClick={() => void send("elsewhere")}>Send elsewhere</button>
    </div>
  );
}

test("a component of the old front end, through a restart", async () => {
  const bob = await enter("bob", "chat-room");
  const page = render(<StrictMode><OldChat token={server.token("user-123")} /></StrictMode>);
  await screen.findByText("Status: Connected");
  fireEvent.click(screen.getByText("Send Message"));
  const hello = { id: expect.any(String), from: "user-123", room: "chat-room", content: "Hello!", type: "text", timestamp: TIME };
  expect(await bob.hears("message")).toEqual([hello]);
  await bob.hears("typing-stop");
  // Whether strict mode's second effect comes before or after connecting, nobody is in the room twice.
  expect(joined.filter(({ success }) => success).every(({ memberCount }) => memberCount === 2), JSON.stringify(joined)).toBe(true);

  await server.stop("SIGKILL");
  await screen.findByText("Reconnecting...");
  await server.run();
  await screen.findByText("Status: Connected");
  await bob.hears("room-joined", 2);
  fireEvent.click(screen.getByText("Send Message"));
  expect(await bob.hears("message", 2)).toHaveLength(2);
  await bob.now.sendMessage({ room: "chat-room", content: "you" });
  await screen.findByText("heard you");
  fireEvent.click(screen.getByText("Send elsewhere"));
  await expect.poll(() => failed).toHaveLength(1);
  page.unmount();
  await expect.poll(() => bob.now.joinRoom({ room: "chat-room" })).toMatchObject({ memberCount: 1 });
});

test("the README's component", async () => {
  const bob = await enter("bob", "readme");
  const props = { url: server.url, room: "readme" };
  const page = render(<StrictMode><ChatRoom {...props} token={undefined} /></StrictMode>);
  expect(screen.getByRole("status").textContent).toBe("Connecting…");
  page.rerender(<StrictMode><ChatRoom {...props} token={server.token("ann")} /></StrictMode>);
  await screen.findByText("Connected");
  fireEvent.click(screen.getByText("Say hello"));
  expect(await bob.hears("message")).toMatchObject([{ from: "ann", content: "Hello!" }]);
  await bob.now.sendMessage({ room: "readme", content: "Good day" });
  await screen.findByText("bob: Good day");
});

test("a server renders it without a connection", () => {
  expect(renderToString(<ChatRoom url={server.url} room="r" token={server.token("ann")} />)).toContain("Connecting…");
});
