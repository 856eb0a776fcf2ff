// A rooms server on Socket.IO with Bun's engine below it. PORT in the environment.
import { Server as Engine } from "@socket.io/bun-engine";
import { Server } from "socket.io";
import { serve } from "./rooms.mjs";

const io = new Server();
const engine = new Engine({ path: "/socket.io/" });
io.bind(engine);
serve(io);
Bun.serve({ hostname: "127.0.0.1", port: Number(process.env.PORT), ...engine.handler() });
