// Talking to the console. Everything that is kept: the key, for as long as this tab lives.

import type { Mistake } from "./model";

const KEPT = "stillpoint-key";
/** Something was changed, or happened: what is shown is asked for again. */
export const CHANGED = "stillpoint-changed";
/** The key is good for nothing any more, or there is one now. */
export const SESSION = "stillpoint-session";

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
  const { key } = await call<{ key: string }>("POST", "/session", { ticket });
  setKey(key);
}

export async function call<T>(method: string, path: string, body?: unknown, signal?: AbortSignal): Promise<T> {
  const headers: Record<string, string> = { "content-type": "application/json" };
  const key = sessionStorage.getItem(KEPT);
  if (key !== null) {
    headers.authorization = `Bearer ${key}`;
  }
  let response: Response;
  let text: string;
  try {
    response = await fetch(path, { method, headers, body: body === undefined ? null : JSON.stringify(body), signal: signal ?? null });
    text = await response.text();
  } catch (error) {
    if (signal?.aborted) {
      throw error;
    }
    const hint = "is `stillpoint console` still running, and the way to it (ssh -L)?";
    throw new ApiError(0, { kind: "unavailable", message: "the console does not answer", hint });
  }
  if (response.ok) {
    return (text === "" ? null : JSON.parse(text)) as T;
  }
  if (response.status === 401 && key !== null) {
    setKey(null);
  }
  throw new ApiError(response.status, mistakeIn(text, response.status));
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

export function get<T>(path: string, signal?: AbortSignal): Promise<T> {
  return call<T>("GET", path, undefined, signal);
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
