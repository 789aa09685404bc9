// What is made of the API's answers: pure functions.

import { duration } from "./format";
import type { Newest, Occurrence, Occurrences, Point, Snapshot, Stage, Volume } from "./model";

export const KINDS = ["read", "write", "discard", "flush", "query"];
export const STAGES = ["receive", "ring", "map", "device", "log", "held", "reply", "total"];

export interface StageRow {
  kind: string;
  stage: string;
  count: number;
  sum_ns: number;
  p50_ns: number;
  p99_ns: number;
  p999_ns: number;
  max_ns: number;
}

/** What was counted after `before`. */
export function difference(before: Stage[], after: Stage[]): Stage[] {
  const key = (stage: Stage) => `${stage.processor} ${stage.kind} ${stage.stage}`;
  const known = new Map(before.map((stage) => [key(stage), stage]));
  return after
    .map((stage) => {
      const old = known.get(key(stage));
      if (!old) {
        return stage;
      }
      const counted = new Map(old.counted);
      return {
        ...stage,
        count: Math.max(0, stage.count - old.count),
        sum_ns: Math.max(0, stage.sum_ns - old.sum_ns),
        counted: stage.counted
          .map(([end, count]): [number, number] => [end, count - (counted.get(end) ?? 0)])
          .filter(([, count]) => count > 0),
      };
    })
    .filter((stage) => stage.count > 0);
}

/** What the daemon had counted at one moment. */
export interface Answer {
  time_ms: number;
  /** 0: not known. */
  pid: number;
  stages: Stage[];
}

/** What is shown was counted in so many answers: ten seconds. */
const ANSWERS_MAX = 11;

/** The answers before and one more; alone, if another daemon gave it, which counts anew. */
export function answersWith(before: Answer[], more: Answer): Answer[] {
  const last = before.at(-1);
  const key = (stage: Stage) => `${stage.processor} ${stage.kind} ${stage.stage}`;
  const counts = new Map(more.stages.map((stage) => [key(stage), stage.count]));
  const isLess = last?.stages.some((stage) => (counts.get(key(stage)) ?? 0) < stage.count);
  const isAnother = last !== undefined && last.pid !== 0 && more.pid !== 0 && last.pid !== more.pid;
  return [...(isLess || isAnother ? [] : before), more].slice(-ANSWERS_MAX);
}

/** One row for each kind and stage, of one processor or of all, in the order of a request's way. */
export function stageRows(stages: Stage[], processor: number | null): StageRow[] {
  const rows = new Map<string, { kind: string; stage: string; count: number; sum_ns: number; counted: Map<number, number> }>();
  for (const stage of stages) {
    if (processor !== null && stage.processor !== processor) {
      continue;
    }
    const key = `${stage.kind} ${stage.stage}`;
    const row = rows.get(key) ?? { kind: stage.kind, stage: stage.stage, count: 0, sum_ns: 0, counted: new Map<number, number>() };
    row.count += stage.count;
    row.sum_ns += stage.sum_ns;
    for (const [end, count] of stage.counted) {
      row.counted.set(end, (row.counted.get(end) ?? 0) + count);
    }
    rows.set(key, row);
  }
  const place = (names: string[], name: string) => (names.includes(name) ? names.indexOf(name) : names.length);
  return [...rows.values()]
    .sort((a, b) => place(KINDS, a.kind) - place(KINDS, b.kind) || place(STAGES, a.stage) - place(STAGES, b.stage))
    .map(({ kind, stage, count, sum_ns, counted }) => {
      const sorted = [...counted].sort(([a], [b]) => a - b);
      const [p50_ns, p99_ns, p999_ns, max_ns] = [500, 990, 999, 1000].map((part) => below(sorted, part)) as [number, number, number, number];
      return { kind, stage, count, sum_ns, p50_ns, p99_ns, p999_ns, max_ns };
    });
}

/** The time that so many of a thousand took less than; pairs sorted by time. */
export function below(counted: [number, number][], perMille: number): number {
  const total = counted.reduce((sum, [, count]) => sum + count, 0);
  const wanted = Math.ceil((total * perMille) / 1000);
  let seen = 0;
  for (const [end, count] of counted) {
    seen += count;
    if (count > 0 && seen >= wanted) {
      return end;
    }
  }
  return 0;
}

/** Ten minutes. */
export const POINTS_MAX = 600;

/** What is known and what came behind it; alone, if it came from before: a clock was set back, and what is known lies in the future. */
export function joined(known: Point[], more: Point[]): Point[] {
  const [first, last] = [more[0], known.at(-1)];
  const follows = !first || !last || first.time_ms > last.time_ms;
  return [...(follows ? known : []), ...more].slice(-POINTS_MAX);
}

/** The events that are known. */
export interface Known {
  /** Of which daemon; 0: none yet. */
  started_ms: number;
  /** Up to this number. */
  last: number;
  /** Newest first. */
  occurrences: Occurrence[];
}

export const NOTHING_KNOWN: Known = { started_ms: 0, last: 0, occurrences: [] };
export const OCCURRENCES_MAX = 500;
const OCCURRENCES_AT_ONCE = 200;

/**
 * What to ask for when `newest` is there: at once answered, for a request that waits would take one of a browser's six connections. Nothing
 * if nobody looks, or nobody would answer: `isWanted` is false.
 */
export function whereToAsk(known: Known, newest: Newest | null, isWanted: boolean): string | null {
  if (!isWanted || !newest || (newest.started_ms === known.started_ms && newest.last <= known.last)) {
    return null;
  }
  const isAnother = newest.started_ms !== known.started_ms;
  return `/v1/events?${isAnother ? "" : `after=${known.last}&`}limit=${OCCURRENCES_AT_ONCE}`;
}

/** What is known then. */
export function knownWith(known: Known, newest: Newest, list: Occurrences): Known {
  const isAnother = newest.started_ms !== known.started_ms;
  const isAll = isAnother || list.events.length < OCCURRENCES_AT_ONCE;
  return {
    started_ms: newest.started_ms,
    last: isAll ? list.last : (list.events.at(-1)?.number ?? list.last),
    occurrences: [...list.events.toReversed(), ...(isAnother ? [] : known.occurrences)].slice(0, OCCURRENCES_MAX),
  };
}

/** The instant of a snapshot in a chart. */
export interface Mark {
  key: string;
  time_s: number;
  label: string;
  about: string;
}

/** The snapshots of the last ten minutes, oldest first, also those that have been deleted since they were seen. */
export function marksWith(before: Mark[], snapshots: Snapshot[], now_s: number): Mark[] {
  const marks = new Map(before.map((mark) => [mark.key, mark]));
  for (const snapshot of snapshots) {
    const key = `${snapshot.pool}/${snapshot.id}`;
    const hold = duration(snapshot.hold_ns_max);
    const about = `${snapshot.name}: hold ${hold}, ${snapshot.answers_held} answers held, durable in ${duration(snapshot.durable_ns)}`;
    marks.set(key, { key, time_s: snapshot.time_stamp_ns / 1e9, label: hold, about });
  }
  return [...marks.values()].filter((mark) => mark.time_s >= now_s - POINTS_MAX).sort((a, b) => a.time_s - b.time_s);
}

export type Node = { depth: number; volume: Volume } & ({ snapshot: Snapshot; view: string } | { snapshot: null });

/** Volumes, below each its snapshots (oldest first), below each of these the clones that were made of it. */
export function tree(volumes: Volume[], snapshots: Snapshot[]): Node[] {
  const key = (pool: string, name: string) => `${pool}/${name}`;
  const own = new Map<string, Snapshot[]>();
  for (const snapshot of snapshots) {
    for (const { name } of snapshot.volumes) {
      const of = key(snapshot.pool, name);
      own.set(of, [...(own.get(of) ?? []), snapshot]);
    }
  }
  const views = new Set(snapshots.flatMap((snapshot) => snapshot.volumes.map(({ name }) => key(snapshot.pool, viewOf(name, snapshot)))));
  const clones = new Map<string, Volume[]>();
  const roots: Volume[] = [];
  for (const volume of volumes) {
    const origin = volume.origin === null ? null : key(volume.pool, volume.origin);
    if (origin !== null && views.has(origin)) {
      clones.set(origin, [...(clones.get(origin) ?? []), volume]);
    } else {
      roots.push(volume);
    }
  }
  const nodes: Node[] = [];
  const seen = new Set<Volume>();
  const add = (volume: Volume, depth: number) => {
    if (seen.has(volume)) {
      return;
    }
    seen.add(volume);
    nodes.push({ depth, volume, snapshot: null });
    const mine = own.get(key(volume.pool, volume.name)) ?? [];
    for (const snapshot of mine.toSorted((a, b) => a.time_stamp_ns - b.time_stamp_ns)) {
      const view = viewOf(volume.name, snapshot);
      nodes.push({ depth: depth + 1, volume, snapshot, view });
      for (const clone of clones.get(key(volume.pool, view)) ?? []) {
        add(clone, depth + 2);
      }
    }
  };
  for (const volume of roots.toSorted((a, b) => key(a.pool, a.name).localeCompare(key(b.pool, b.name)))) {
    add(volume, 0);
  }
  return nodes;
}

/** A snapshot as one of its volumes has it: `volume@name`. */
export function viewOf(volume: string, snapshot: Snapshot): string {
  return `${volume}@${snapshot.name.slice(snapshot.name.indexOf("@") + 1)}`;
}
