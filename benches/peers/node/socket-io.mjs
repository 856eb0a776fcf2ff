// A rooms server on Node's Socket.IO, set as its documentation advises for many connections. PORT in the environment.
import { createServer } from "node:http";
import { Server } from "socket.io";
import { serve } from "./rooms.mjs";

const web = createServer();
const io = new Server(web, { httpCompression: false, perMessageDeflate: false, serveClient: false, transports: ["websocket"] });
// socket.io/docs/v4/memory-usage: the request of the handshake need not be kept.
io.engine.on("connection", (connection) => {
  connection.request = null;
});
serve(io);
web.listen(Number(process.env.PORT), "127.0.0.1", 4096);
