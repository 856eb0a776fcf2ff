import { fileURLToPath } from "node:url";
import { defineConfig } from "vitest/config";

const built = fileURLToPath(new URL("dist/index.js", import.meta.url));

export default defineConfig({
  // Users import what is built, by its name or by that which the old front ends have.
  resolve: { alias: { "@uringcast/use-websocket": built, "@/hooks/useWebSocket": built, "@repo/types": built } },
  test: {
    environment: "jsdom",
    include: ["tests/**/*.test.{ts,tsx}"],
    // Real waits on a machine that does other things too.
    testTimeout: 60_000,
    hookTimeout: 60_000,
    pool: "forks",
    poolOptions: { forks: { maxForks: 2 } },
  },
});
