// What components share: asking again and again, the figures of the last ten minutes, what happened.

import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { ApiError, ASK_LIMIT_MS, CHANGED, get } from "./api";
import { Waiting } from "./failures";
import { joined, knownWith, NOTHING_KNOWN, whereToAsk } from "./figures";
import type { History, Mistake, Newest, Occurrence, Occurrences, Point } from "./model";

/** The console answers by itself: it is soon noticed when it does not. */
const PAST_LIMIT_MS = 5000;
/** What happens often does not have everything asked for more often than this. */
const CHANGES_MS = 1500;

export interface Asked<T> {
  data: T | null;
  mistake: Mistake | null;
}

export function mistakeOf(error: unknown): Mistake {
  return error instanceof ApiError ? error.mistake : { kind: "failure", message: error instanceof Error ? error.message : String(error) };
}

/** The daemon is known not to answer: what hangs there would only take connections, which are needed to see it come back. */
let isAway = false;

/** Whether anybody looks, and would get an answer. */
function isWanted(): boolean {
  return !document.hidden && !isAway;
}

function tellChanged() {
  window.dispatchEvent(new Event(CHANGED));
}

/** GET, again each period while the page is seen, and whenever something changed. What is there stays when the daemon is away. */
export function useAsked<T>(path: string, period_ms: number, limit_ms = ASK_LIMIT_MS): Asked<T> {
  const [asked, setAsked] = useState<Asked<T> & { path: string }>({ path, data: null, mistake: null });
  useEffect(() => {
    const ended = new AbortController();
    let asking = false;
    let again = false;
    const ask = async () => {
      if (asking) {
        again = true;
        return;
      }
      asking = true;
      try {
        const data = await get<T>(path, ended.signal, limit_ms);
        setAsked({ path, data, mistake: null });
      } catch (error) {
        if (!ended.signal.aborted) {
          setAsked((before) => ({ path, data: before.path === path ? before.data : null, mistake: mistakeOf(error) }));
        }
      }
      asking = false;
      if (again && !ended.signal.aborted) {
        again = false;
        void ask();
      }
    };
    const seen = () => {
      if (isWanted()) {
        void ask();
      }
    };
    void ask();
    const timer = setInterval(seen, period_ms);
    window.addEventListener(CHANGED, seen);
    document.addEventListener("visibilitychange", seen);
    return () => {
      ended.abort();
      clearInterval(timer);
      window.removeEventListener(CHANGED, seen);
      document.removeEventListener("visibilitychange", seen);
    };
  }, [path, period_ms, limit_ms]);
  return asked.path === path ? asked : { data: null, mistake: null };
}

export interface Past {
  points: Point[];
  away: History["away"];
  newest: Newest | null;
  /** The console itself does not answer. */
  lost: Mistake | null;
}

/** The last ten minutes, each second while the page is seen. */
export function usePast(): Past {
  const [past, setPast] = useState<Past>({ points: [], away: null, newest: null, lost: null });
  const points = useRef<Point[]>([]);
  useEffect(() => {
    const ended = new AbortController();
    let asking = false;
    const ask = async () => {
      if (asking || document.hidden) {
        return;
      }
      asking = true;
      try {
        const last = points.current.at(-1)?.time_ms ?? 0;
        const { points: more, away, newest } = await get<History>(`/history?after_ms=${last}`, ended.signal, PAST_LIMIT_MS);
        points.current = joined(points.current, more);
        setPast({ points: points.current, away, newest, lost: null });
        const isBack = isAway && away === null;
        isAway = away !== null;
        if (isBack) {
          tellChanged();
        }
      } catch (error) {
        if (!ended.signal.aborted) {
          setPast({ points: points.current, away: null, newest: null, lost: mistakeOf(error) });
          isAway = true;
        }
      }
      asking = false;
    };
    void ask();
    const timer = setInterval(ask, 1000);
    document.addEventListener("visibilitychange", ask);
    return () => {
      ended.abort();
      clearInterval(timer);
      document.removeEventListener("visibilitychange", ask);
      isAway = false;
    };
  }, []);
  return past;
}

/** What happened, newest first; asked for when the past says that there is more, while the page is seen and the daemon is there. */
export function useOccurrences({ newest }: Past): Occurrence[] {
  const [known, setKnown] = useState(NOTHING_KNOWN);
  const ended = useRef<AbortController | null>(null);
  const asking = useRef(false);
  const due = useRef(0);
  useEffect(() => {
    ended.current = new AbortController();
    return () => {
      ended.current?.abort();
      clearTimeout(due.current);
    };
  }, []);
  useEffect(() => {
    const path = whereToAsk(known, newest, isWanted());
    const signal = ended.current?.signal;
    if (!path || !newest || !signal || asking.current) {
      return;
    }
    asking.current = true;
    const ask = async () => {
      try {
        const list = await get<Occurrences>(path, signal);
        setKnown((before) => knownWith(before, newest, list));
        if (list.events.length > 0 && due.current === 0) {
          due.current = window.setTimeout(() => {
            due.current = 0;
            tellChanged();
          }, CHANGES_MS);
        }
      } catch {
        // The next answer about the past has it asked again.
      }
      asking.current = false;
    };
    void ask();
  }, [newest]);
  return known.occurrences;
}

/** Does something that may go wrong; says whether it is under way, and what went wrong. Who has left by then finds that below `title`. */
export function useDoing(title: string): { busy: boolean; mistake: Mistake | null; clear: () => void; doing: (work: () => Promise<unknown>) => Promise<boolean> } {
  const [busy, setBusy] = useState(false);
  const [mistake, setMistake] = useState<Mistake | null>(null);
  const waiting = useRef(new Waiting());
  useEffect(() => () => waiting.current.leave(), []);
  const doing = useCallback(async (work: () => Promise<unknown>) => {
    setBusy(true);
    setMistake(null);
    try {
      await work();
      return true;
    } catch (error) {
      waiting.current.failed(title, mistakeOf(error), setMistake);
      return false;
    } finally {
      setBusy(false);
    }
  }, [title]);
  const clear = useCallback(() => setMistake(null), []);
  return { busy, mistake, clear, doing };
}
