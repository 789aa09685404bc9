// Makes dist/ of src/: `npm run build`. With --test it makes the tests instead and runs them.

import { execFileSync } from "node:child_process";
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { build } from "esbuild";

const here = import.meta.dirname;
const inHere = (path) => join(here, path);

async function test() {
  const directory = mkdtempSync(join(tmpdir(), "stillpoint-console-"));
  try {
    const tests = readdirSync(inHere("src")).filter((name) => name.endsWith(".test.ts"));
    const entryPoints = tests.map((name) => inHere(`src/${name}`));
    await build({ entryPoints, bundle: true, platform: "node", format: "esm", outdir: directory, outExtension: { ".js": ".mjs" } });
    execFileSync(process.execPath, ["--test", directory], { stdio: "inherit" });
  } finally {
    rmSync(directory, { recursive: true });
  }
}

async function page() {
  rmSync(inHere("dist"), { recursive: true, force: true });
  mkdirSync(inHere("dist"));
  await build({
    entryPoints: [inHere("src/console.tsx"), inHere("src/console.css")],
    bundle: true,
    minify: true,
    format: "iife",
    target: "es2022",
    legalComments: "none",
    jsx: "automatic",
    jsxImportSource: "preact",
    outdir: inHere("dist"),
  });
  for (const name of ["index.html", "icon.svg"]) {
    copyFileSync(inHere(`src/${name}`), inHere(`dist/${name}`));
  }
  const license = (name) => `${name}\n\n${readFileSync(inHere(`node_modules/${name}/LICENSE`), "utf8").trim()}\n`;
  writeFileSync(inHere("dist/licenses.txt"), ["preact", "uplot"].map(license).join("\n\n"));
  writeFileSync(inHere("dist/made-of.txt"), madeOf());
}

// A checksum of every source and of every file that was made; a test of the appliance compares them with what is there.
function madeOf() {
  const inside = (directory) => readdirSync(inHere(directory)).map((name) => `${directory}/${name}`);
  const files = ["build.mjs", "package.json", "package-lock.json", "tsconfig.json", ...inside("src"), ...inside("dist")];
  return files
    .sort()
    .map((name) => `${crc32c(readFileSync(inHere(name)))}  ${name}\n`)
    .join("");
}

function crc32c(bytes) {
  let crc = ~0;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) {
      crc = crc & 1 ? (crc >>> 1) ^ 0x82f63b78 : crc >>> 1;
    }
  }
  return (~crc >>> 0).toString(16).padStart(8, "0");
}

await (process.argv.includes("--test") ? test() : page());
