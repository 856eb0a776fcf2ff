// Makes files of the examples in README.md, so that they are compiled, and one of them run.

import { mkdirSync, readFileSync, writeFileSync } from "node:fs";

const readme = readFileSync("README.md", "utf8");
const examples = [...readme.matchAll(/^```(tsx?)\n(.*?)^```/gms)];
if (examples.length < 2) throw new Error("README.md has lost its examples");
mkdirSync("generated/readme", { recursive: true });
for (const [index, [, kind, text]] of examples.entries()) writeFileSync(`generated/readme/example${index + 1}.${kind}`, `${text}`);
