// What components share: asking again and again, the figures of the last ten minutes, what happened.

import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { ApiError, CHANGED, get } from "./api";
import { joined } from "./figures";
import type { History, Mistake, Occurrence, Occurrences, Point } from "./model";

const OCCURRENCES_MAX = 500;
/** What happens often does not have everything asked for more often than this. */
const CHANGES_MS = 1500;

export interface Asked<T> {
  data: T | null;
  mistake: Mistake | null;
}

export function mistakeOf(error: unknown): Mistake {
  return error instanceof ApiError ? error.mistake : { kind: "failure", message: error instanceof Error ? error.message : String(error) };
}

/** GET, again each period while the page is seen, and whenever something changed. What is there stays when the daemon is away. */
export function useAsked<T>(path: string, period_ms: number): Asked<T> {
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
        const data = await get<T>(path, ended.signal);
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
      if (!document.hidden) {
        void ask();
      }
    };
    void ask();
    const timer = setInterval(seen, period_ms);
    window.addEventListener(CHANGED, ask);
    document.addEventListener("visibilitychange", seen);
    return () => {
      ended.abort();
      clearInterval(timer);
      window.removeEventListener(CHANGED, ask);
      document.removeEventListener("visibilitychange", seen);
    };
  }, [path, period_ms]);
  return asked.path === path ? asked : { data: null, mistake: null };
}

export interface Past {
  points: Point[];
  away: History["away"];
  /** The console itself does not answer. */
  lost: Mistake | null;
}

/** The last ten minutes, each second. */
export function usePast(): Past {
  const [past, setPast] = useState<Past>({ points: [], away: null, lost: null });
  const points = useRef<Point[]>([]);
  useEffect(() => {
    const ended = new AbortController();
    let asking = false;
    const ask = async () => {
      if (asking) {
        return;
      }
      asking = true;
      try {
        const last = points.current.at(-1)?.time_ms ?? 0;
        const history = await get<History>(`/history?after_ms=${last}`, ended.signal);
        points.current = joined(points.current, history.points);
        setPast({ points: points.current, away: history.away, lost: null });
      } catch (error) {
        if (!ended.signal.aborted) {
          setPast({ points: points.current, away: null, lost: mistakeOf(error) });
        }
      }
      asking = false;
    };
    void ask();
    const timer = setInterval(ask, 1000);
    return () => {
      ended.abort();
      clearInterval(timer);
    };
  }, []);
  return past;
}

/** What happened, newest first; waits for more. */
export function useOccurrences(): Occurrence[] {
  const [occurrences, setOccurrences] = useState<Occurrence[]>([]);
  useEffect(() => {
    const ended = new AbortController();
    let due = 0;
    const tell = () => {
      if (due === 0) {
        due = window.setTimeout(() => {
          due = 0;
          window.dispatchEvent(new Event(CHANGED));
        }, CHANGES_MS);
      }
    };
    const follow = async () => {
      let started_ns = 0;
      let last = 0;
      while (!ended.signal.aborted) {
        try {
          const path = started_ns === 0 ? "/v1/events?limit=200" : `/v1/events?after=${last}&limit=200&wait_s=20`;
          const list = await get<Occurrences>(path, ended.signal);
          if (started_ns !== 0 && list.started_ns !== started_ns) {
            // Another daemon: it counts anew.
            started_ns = 0;
            continue;
          }
          const first = started_ns === 0;
          started_ns = list.started_ns;
          last = list.events.at(-1)?.number ?? list.last;
          const newest = list.events.toReversed();
          setOccurrences((before) => (first ? newest : [...newest, ...before].slice(0, OCCURRENCES_MAX)));
          if (first || newest.length > 0) {
            tell();
          }
        } catch {
          started_ns = 0;
          await new Promise((done) => setTimeout(done, 2000));
        }
      }
    };
    void follow();
    return () => {
      ended.abort();
      clearTimeout(due);
    };
  }, []);
  return occurrences;
}

/** Does something that may go wrong; says whether it is under way, and what went wrong. */
export function useDoing(): { busy: boolean; mistake: Mistake | null; clear: () => void; doing: (work: () => Promise<unknown>) => Promise<boolean> } {
  const [busy, setBusy] = useState(false);
  const [mistake, setMistake] = useState<Mistake | null>(null);
  const doing = useCallback(async (work: () => Promise<unknown>) => {
    setBusy(true);
    setMistake(null);
    try {
      await work();
      return true;
    } catch (error) {
      setMistake(mistakeOf(error));
      return false;
    } finally {
      setBusy(false);
    }
  }, []);
  const clear = useCallback(() => setMistake(null), []);
  return { busy, mistake, clear, doing };
}
