import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";
import { admit, ApiError, call, get, hasKey, SESSION } from "./api";

// What a browser has and node has not, as far as it is used.
const kept = new Map<string, string>();
const page = new EventTarget();
const place = { hash: "" };
let sessions = 0;
page.addEventListener(SESSION, () => sessions++);
Object.assign(globalThis, {
  window: page,
  location: place,
  history: { replaceState: () => (place.hash = "") },
  sessionStorage: {
    getItem: (name: string) => kept.get(name) ?? null,
    setItem: (name: string, value: string) => kept.set(name, value),
    removeItem: (name: string) => kept.delete(name),
  },
});

type Asked = { path: string; key: string | undefined; signal: AbortSignal };

/** From now on requests are answered so. */
function answering(answer: (asked: Asked) => Promise<Response> | Response) {
  globalThis.fetch = async (path, init) => {
    const headers = init?.headers as Record<string, string>;
    return answer({ path: String(path), key: headers.authorization, signal: init?.signal as AbortSignal });
  };
}

const refused = () => Response.json({ kind: "usage", message: "not known" }, { status: 401 });
const failed = (work: Promise<unknown>) => work.then(() => assert.fail("it succeeded"), (error) => error as ApiError);
/** As a browser does: an answer that never comes, until the signal ends the wait. */
const never = ({ signal }: Asked) => new Promise<Response>((_, fail) => signal.addEventListener("abort", () => fail(signal.reason as Error)));
const key = () => kept.get("stillpoint-key");

beforeEach(() => {
  kept.clear();
  kept.set("stillpoint-key", "first");
  sessions = 0;
});

test("the key that is refused goes", async () => {
  answering(refused);
  assert.equal((await failed(call("GET", "/v1/status"))).status, 401);
  assert.equal(hasKey(), false);
  assert.equal(sessions, 1);
});

test("a late refusal of an old key leaves the new one", async () => {
  let refuse = (_: Response) => {};
  answering(({ path }) => (path === "/session" ? Response.json({ key: "second" }) : new Promise((done) => (refuse = done))));
  const old = failed(call("GET", "/v1/status"));
  place.hash = `#${"0".repeat(64)}`;
  await admit();
  assert.equal(key(), "second");
  refuse(refused());
  assert.equal((await old).status, 401);
  assert.equal(key(), "second");
});

test("a ticket that is refused takes no key along", async () => {
  const asked: Asked[] = [];
  answering((one) => (asked.push(one), refused()));
  place.hash = `#${"0".repeat(64)}`;
  assert.equal((await failed(admit())).status, 401);
  assert.deepEqual([asked.map((one) => one.key), key(), sessions], [[undefined], "first", 0]);
});

test("what does not answer is said after a limit", { timeout: 20_000 }, async () => {
  answering(never);
  // Its own timer keeps node from ending before.
  const alive = setInterval(() => {}, 1000);
  const wanted = new AbortController();
  const daemon = await failed(get("/v1/status", wanted.signal, 20));
  assert.equal(daemon.message, "the daemon gave no answer within 0.02 s");
  const console = await failed(get("/history", wanted.signal, 20));
  assert.equal(console.message, "the console gave no answer within 0.02 s");
  const change = await failed(call("POST", "/v1/pools", {}, { limit_ms: 20 }));
  assert.match(change.mistake.hint ?? "", /may go on/);
  clearInterval(alive);
  assert.equal(key(), "first");
});

test("an answer whose end does not come is late too", { timeout: 20_000 }, async () => {
  answering(({ signal }) => {
    const body = new ReadableStream({ start: (stream) => signal.addEventListener("abort", () => stream.error(signal.reason)) });
    return new Response(body);
  });
  const alive = setInterval(() => {}, 1000);
  const late = await failed(get("/v1/status", new AbortController().signal, 20));
  assert.equal(late.message, "the daemon gave no answer within 0.02 s");
  clearInterval(alive);
});

test("what nobody wants any more is no mistake of the console", async () => {
  answering(never);
  const wanted = new AbortController();
  const left = failed(get("/v1/status", wanted.signal));
  wanted.abort();
  assert.equal((await left).name, "AbortError");
  answering(() => Promise.reject(new TypeError("refused")));
  assert.equal((await failed(get("/v1/status", new AbortController().signal))).message, "the console does not answer");
});
