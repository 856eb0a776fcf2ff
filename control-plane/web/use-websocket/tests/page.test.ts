// @vitest-environment node
// The built page in a real browser: two tabs chat, and a server that starts anew does not keep them from it. Leaves a screenshot.

import { mkdirSync } from "node:fs";
import { chromium, type Browser, type Page } from "playwright-core";
import { afterAll, beforeAll, expect, test } from "vitest";
import { serve } from "../page/serve.mjs";
import { PATIENCE_MS, Server } from "./server.js";

const OPTIONS = {
  executablePath: process.env["CHROMIUM"] ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync"],
};
const SHOTS = new URL("../generated/", import.meta.url).pathname;

let server: Server, site: Awaited<ReturnType<typeof serve>>, browser: Browser;
const faults: string[] = [];
/** While the server is stopped and started again. */
let isAway = false;

beforeAll(async () => {
  site = await serve("generated/page", (user) => ({ url: server.url, token: server.token(user), expiresIn: 3600 }));
  server = await Server.start({ origin: site.origin, path: "/live" });
  browser = await chromium.launch(OPTIONS);
  mkdirSync(SHOTS, { recursive: true });
});
afterAll(async () => {
  await browser?.close();
  site?.close();
  await server?.end();
});

async function tab(name: string, viewport = { width: 1000, height: 640 }): Promise<Page> {
  const context = await browser.newContext({ viewport });
  await context.addInitScript((name) => sessionStorage.setItem("name", name), name);
  const page = await context.newPage();
  page.setDefaultTimeout(PATIENCE_MS);
  page.on("pageerror", (fault) => faults.push(`${name}: ${fault}`));
  page.on("console", (said) => {
    // The browser itself says of each attempt that nobody is there.
    // A server that ends may still refuse a handshake, with words for no page in particular.
    const isExpected = /ERR_CONNECTION|WebSocket connection .* failed/.test(said.text()) || (isAway && /CORS policy|ERR_FAILED/.test(said.text()));
    if (said.type() === "error" && !isExpected) faults.push(`${name}: ${said.text()}`);
  });
  page.on("request", (asked) => { if (new URL(asked.url()).hostname !== "127.0.0.1") faults.push(`${name} asks ${asked.url()}`); });
  await page.goto(site.origin);
  await isIn(page, name);
  return page;
}

/** The page shows that it is connected when it has asked for its rooms; what counts is that it is in the last of them. */
async function isIn(page: Page, name: string): Promise<void> {
  await reads(page, ".state", "connected");
  await expect.poll(() => server.connections(name, "garden"), { timeout: PATIENCE_MS }).toHaveLength(1);
}

const reads = (page: Page, selector: string, text: string) => page.waitForFunction(
  ([where, wanted]) => (document.querySelector(where!) as HTMLElement | null)?.innerText.includes(wanted!), [selector, text]);
const write = (page: Page, text: string) => page.getByLabel("message").pressSequentially(text, { delay: 5 });

async function says(page: Page, text: string): Promise<void> {
  await write(page, text);
  await page.getByRole("button", { name: "Send" }).click();
  await reads(page, ".log", text);
}

test("two tabs chat, see each other typing, and go on after the server's restart", async () => {
  const ann = await tab("Ann"), bob = await tab("Bob", { width: 420, height: 640 });
  await says(ann, "Hello from Ann <b>&amp;");
  await reads(bob, ".log", "Hello from Ann <b>&amp;");
  await says(bob, "Hello back from Bob");
  await reads(ann, ".log", "Hello back from Bob");
  await ann.getByLabel("I am").selectOption("busy");

  await write(bob, "I have");
  await reads(ann, ".typing", "Bob typing…");
  await bob.getByLabel("message").fill("");
  await ann.waitForFunction(() => (document.querySelector(".typing") as HTMLElement).innerText === "");

  // A room that one does not look at is heard all the same.
  await bob.getByRole("button", { name: "# kitchen" }).click();
  await says(bob, "Tea is ready");
  await reads(ann, "nav .unread", "1");

  isAway = true;
  await server.stop("SIGTERM");
  await Promise.all([ann, bob].map((page) => reads(page, ".state", "reconnecting…")));
  await server.run();
  await Promise.all([isIn(ann, "Ann"), isIn(bob, "Bob")]);
  isAway = false;
  await reads(ann, ".log", "back again, with attempt");
  await ann.getByRole("button", { name: "# kitchen" }).click();
  await says(ann, "And we are back");
  await reads(bob, ".log", "And we are back");
  await says(bob, "in the same rooms");
  await reads(ann, ".log", "in the same rooms");
  await write(bob, "so it");
  await reads(ann, ".typing", "Bob typing…");
  await ann.screenshot({ path: `${SHOTS}page.png` });
  await bob.screenshot({ path: `${SHOTS}page-narrow.png` });
  expect(faults).toEqual([]);
});
