// A rooms server on Bun's own WebSockets and their publish and subscribe. PORT in the environment.
import { PONG, WELCOME, subscribed } from "./plain.mjs";

const server = Bun.serve({
  hostname: "127.0.0.1",
  port: Number(process.env.PORT),
  fetch: (request, server) => (server.upgrade(request) ? undefined : new Response("rooms")),
  websocket: {
    perMessageDeflate: false,
    open: (socket) => void socket.send(WELCOME),
    message(socket, text) {
      const { type, payload } = JSON.parse(text);
      if (type === "CHAT_MESSAGE") {
        server.publish(payload.roomId, text);
      } else if (type === "PING") {
        socket.send(PONG);
      } else if (type === "SUBSCRIBE") {
        socket.subscribe(payload.roomId);
        socket.send(subscribed(payload.roomId));
      }
    },
  },
});
