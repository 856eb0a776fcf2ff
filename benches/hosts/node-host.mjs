// One Socket.IO server of Node with the Redis adapter, to measure beside: clients enter a room and talk to it. PORT is printed.
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { join } from "node:path";

const need = createRequire(join(process.env.CLIENT_MODULES, "/"));
const { Server } = need("socket.io");
const { createAdapter } = need("@socket.io/redis-adapter");
const { createClient } = need("redis");

const connected = async () => createClient({ url: process.env.REDIS_URL }).on("error", () => {}).connect();
const web = createServer();
const io = new Server(web, { adapter: createAdapter(await connected(), await connected()), perMessageDeflate: false });
io.on("connection", (socket) => {
  socket.on("room:join", ({ roomId }, ack) => { socket.join(roomId); ack({ success: true }); });
  socket.on("message", (message) => io.to(message.roomId).emit("message", message));
});
web.listen(0, "127.0.0.1", () => console.log(web.address().port));
