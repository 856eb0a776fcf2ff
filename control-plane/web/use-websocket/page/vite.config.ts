import { fileURLToPath } from "node:url";
import { defineConfig } from "vite";

const path = process.env["NEXT_PUBLIC_WEBSOCKET_PATH"];

export default defineConfig({
  root: fileURLToPath(new URL(".", import.meta.url)),
  // As an application has it: what is built of the package, by its name.
  resolve: { alias: { "@uringcast/use-websocket": fileURLToPath(new URL("../dist/index.js", import.meta.url)) } },
  // As Next.js puts variables in; the URL is left to the option.
  define: path ? { "process.env.NEXT_PUBLIC_WEBSOCKET_PATH": JSON.stringify(path) } : {},
  build: { outDir: "../generated/page", emptyOutDir: true },
});
