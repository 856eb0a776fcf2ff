// A rooms server on `ws`: a set of sockets per room, one send per receiver, what was said goes out as it came. PORT in the environment.
import { WebSocketServer } from "ws";
import { PONG, WELCOME, subscribed } from "./plain.mjs";

const rooms = new Map();
const server = new WebSocketServer({ host: "127.0.0.1", port: Number(process.env.PORT), backlog: 4096, clientTracking: false, perMessageDeflate: false });
const asText = { binary: false };

server.on("connection", (socket) => {
  const joined = [];
  socket.on("message", (bytes) => {
    const { type, payload } = JSON.parse(bytes);
    if (type === "CHAT_MESSAGE") {
      for (const member of rooms.get(payload.roomId) ?? []) member.send(bytes, asText);
    } else if (type === "PING") {
      socket.send(PONG);
    } else if (type === "SUBSCRIBE") {
      if (!rooms.has(payload.roomId)) rooms.set(payload.roomId, new Set());
      rooms.get(payload.roomId).add(socket);
      joined.push(payload.roomId);
      socket.send(subscribed(payload.roomId));
    }
  });
  socket.on("error", () => {});
  socket.on("close", () => joined.forEach((room) => rooms.get(room).delete(socket)));
  socket.send(WELCOME);
});
