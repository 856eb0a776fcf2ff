// The demo page in a real browser: two tabs chat in both columns. Leaves a screenshot where SCREENSHOT says.
import { check, need, ok, PORT, run } from "./lib.mjs";

const { chromium } = need("playwright-core");
const OPTIONS = {
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
};

check("two tabs chat with each other, in community and in rooms", async () => {
  const browser = await chromium.launch(OPTIONS);
  try {
    const faults = [];
    const reads = (page, selector, text) => page.waitForFunction(
      ([where, wanted]) => document.querySelector(where).innerText.includes(wanted), [selector, text], { timeout: 10_000 });
    const tab = async (name) => {
      const page = await (await browser.newContext({ viewport: { width: 1100, height: 700 } })).newPage();
      page.on("pageerror", (fault) => faults.push(`${name}: ${fault}`));
      page.on("request", (asked) => { if (new URL(asked.url()).hostname !== "127.0.0.1") faults.push(`${name} asks ${asked.url()}`); });
      await page.goto(`http://127.0.0.1:${PORT}/`);
      await page.fill("#name", name);
      await page.click("#who button");
      // The page connects by itself under a name of its choice first; ours is there when the list of people shows it.
      for (const column of ["community", "rooms"]) {
        await reads(page, `#${column} .people`, name);
        await page.waitForSelector(`#${column} .write button:enabled`);
      }
      return page;
    };
    const [ann, bob] = [await tab("Ann"), await tab("Bob")];
    const says = async (page, column, text) => { await page.fill(`#${column} .write input`, text); await page.click(`#${column} .write button`); };
    for (const column of ["community", "rooms"]) {
      await says(ann, column, `Hello from Ann in ${column} <b>&amp;`);
      await reads(bob, `#${column} .log`, `Hello from Ann in ${column} <b>&amp;`);
      await says(bob, column, `Hello back from Bob in ${column}`);
      await reads(ann, `#${column} .log`, `Hello back from Bob in ${column}`);
      const log = await bob.innerText(`#${column} .log`);
      ok(log.includes("Ann"), `the ${column} log names nobody: ${log}`);
    }
    if (process.env.SCREENSHOT) await bob.screenshot({ path: process.env.SCREENSHOT });
    ok(faults.length === 0, faults.join("\n"));
  } finally {
    await browser.close();
  }
});

await run();
