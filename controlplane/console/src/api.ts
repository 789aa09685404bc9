// Talking to the console. Everything that is kept: the key, for as long as this tab lives.

import type { Mistake } from "./model";

const KEPT = "stillpoint-key";
/** Something was changed, or happened: what is shown is asked for again. */
export const CHANGED = "stillpoint-changed";
/** The key is good for nothing any more, or there is one now. */
export const SESSION = "stillpoint-session";
/** How long is waited for what is only shown. */
export const ASK_LIMIT_MS = 10_000;
/** How long for what changes something. The console gives the daemon 300 s and says then that it may go on. */
export const CHANGE_LIMIT_MS = 310_000;

export class ApiError extends Error {
  constructor(readonly status: number, readonly mistake: Mistake) {
    super(mistake.message);
  }
}

export function hasKey(): boolean {
  return sessionStorage.getItem(KEPT) !== null;
}

function setKey(key: string | null) {
  if (key === null) {
    sessionStorage.removeItem(KEPT);
  } else {
    sessionStorage.setItem(KEPT, key);
  }
  window.dispatchEvent(new Event(SESSION));
}

/** Takes the ticket out of the address, if there is one, and gets a key for it. */
export async function admit(): Promise<void> {
  const ticket = /^#([0-9a-f]{64})$/.exec(location.hash)?.[1];
  if (!ticket) {
    return;
  }
  history.replaceState(null, "", "/#/");
  // Without the key of before: it is not what is refused if the ticket is not good any more.
  const { key } = await send<{ key: string }>("POST", "/session", { ticket }, null);
  setKey(key);
}

interface Manner {
  /** Nobody wants the answer any more. */
  signal?: AbortSignal;
  limit_ms?: number;
}

export async function call<T>(method: string, path: string, body?: unknown, manner: Manner = {}): Promise<T> {
  const key = sessionStorage.getItem(KEPT);
  try {
    return await send<T>(method, path, body, key, manner);
  } catch (error) {
    // Only the key that was refused goes: there may be another since.
    if (error instanceof ApiError && error.status === 401 && key !== null && sessionStorage.getItem(KEPT) === key) {
      setKey(null);
    }
    throw error;
  }
}

async function send<T>(method: string, path: string, body: unknown, key: string | null, { signal, limit_ms }: Manner = {}): Promise<T> {
  const headers: Record<string, string> = { "content-type": "application/json" };
  if (key !== null) {
    headers.authorization = `Bearer ${key}`;
  }
  const patience_ms = limit_ms ?? (method === "GET" ? ASK_LIMIT_MS : CHANGE_LIMIT_MS);
  const limit = AbortSignal.timeout(patience_ms);
  let response: Response;
  let text: string;
  try {
    const either = signal ? AbortSignal.any([signal, limit]) : limit;
    // Past the cache: browsers let requests for the same address wait for each other there, also those of other tabs.
    response = await fetch(path, { method, headers, body: body === undefined ? null : JSON.stringify(body), signal: either, cache: "no-store" });
    text = await response.text();
  } catch (error) {
    if (signal?.aborted) {
      throw error;
    }
    throw new ApiError(0, limit.aborted ? late(method, path, patience_ms) : GONE);
  }
  if (response.ok) {
    return (text === "" ? null : JSON.parse(text)) as T;
  }
  throw new ApiError(response.status, mistakeIn(text, response.status));
}

const GONE: Mistake = {
  kind: "unavailable",
  message: "the console does not answer",
  hint: "is `stillpoint console` still running, and the way to it (ssh -L)?",
};

function late(method: string, path: string, patience_ms: number): Mistake {
  const who = path.startsWith("/v1/") ? "the daemon" : "the console";
  const may = method === "GET" ? "it may be busy, or hang; it is asked again" : "what was asked for may go on: look before it is done again";
  return { kind: "unavailable", message: `${who} gave no answer within ${patience_ms / 1000} s`, hint: may };
}

function mistakeIn(text: string, status: number): Mistake {
  try {
    const read = JSON.parse(text) as Mistake;
    if (typeof read.message === "string") {
      return read;
    }
  } catch {
    // Not JSON: shown as it is.
  }
  return { kind: "failure", message: `${status}: ${text.slice(0, 300)}` };
}

export function get<T>(path: string, signal: AbortSignal, limit_ms = ASK_LIMIT_MS): Promise<T> {
  return call<T>("GET", path, undefined, { signal, limit_ms });
}

/** Changes something; what is shown is asked for again then. */
export async function change<T = unknown>(method: "POST" | "DELETE", path: string, body?: unknown): Promise<T> {
  try {
    return await call<T>(method, path, body);
  } finally {
    window.dispatchEvent(new Event(CHANGED));
  }
}

/** A path of which `${}` are names. */
export function at(parts: TemplateStringsArray, ...names: string[]): string {
  return parts.map((part, index) => part + (names[index] === undefined ? "" : encodeURIComponent(names[index]))).join("");
}
