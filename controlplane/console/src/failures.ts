// What went wrong when nobody looked any more: a dialog was closed, or the page left, before the daemon had answered.

import type { Mistake } from "./model";

export interface Failure {
  number: number;
  /** What was to be done. */
  title: string;
  mistake: Mistake;
}

/** So many are kept; the oldest go. */
export const FAILURES_MAX = 10;

let kept: Failure[] = [];
let next = 1;
const listeners = new Set<() => void>();

function keep(failures: Failure[]) {
  kept = failures;
  listeners.forEach((listener) => listener());
}

/** Those that nobody has put away, oldest first. */
export function failures(): Failure[] {
  return kept;
}

export function putAway(number: number) {
  keep(kept.filter((failure) => failure.number !== number));
}

/** Has `listener` called whenever they change; gives what ends that. */
export function onFailures(listener: () => void): () => void {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

/** Somebody who waits for something to be done, and may leave before. */
export class Waiting {
  private gone = false;

  leave() {
    this.gone = true;
  }

  /** What went wrong goes to who waits; to everybody, if they left. */
  failed(title: string, mistake: Mistake, show: (mistake: Mistake) => void) {
    if (this.gone) {
      keep([...kept, { number: next++, title, mistake }].slice(-FAILURES_MAX));
    } else {
      show(mistake);
    }
  }
}
